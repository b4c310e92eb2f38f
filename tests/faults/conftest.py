"""What tests of faults share with those of whole processes."""

from __future__ import annotations

from e2e.conftest import area

__all__ = ["area"]
