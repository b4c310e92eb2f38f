"""What is measured: a module a scenario, each with `run(settings) -> Outcome`."""

from __future__ import annotations
