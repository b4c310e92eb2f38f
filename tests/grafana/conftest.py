"""What the tests with a real Prometheus share: the processes, and a place for their files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Processes, reaped


@pytest.fixture
def area() -> Iterator[Path]:
    """An empty folder, which goes with the test."""
    with tempfile.TemporaryDirectory(prefix="tdx-grafana-") as name:
        yield Path(name)


@pytest.fixture
def processes(area: Path) -> Iterator[Processes]:
    """Starts processes; all are reaped at the end, and their logs shown after a failure."""
    yield from reaped(Processes(area / "logs"))
