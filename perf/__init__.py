"""The benchmarks: `python -m perf`."""

from __future__ import annotations
