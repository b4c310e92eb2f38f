"""Who takes part: tdx, and what people would use instead."""

from __future__ import annotations
