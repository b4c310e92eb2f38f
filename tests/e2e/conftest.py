"""What the tests with real processes share: the processes, and a fast place for their files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Processes, Receiver, reaped

ROOMY = 2 << 30
"""Bytes that must be free in memory before the tests put their files there."""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes; all are reaped at the end, and their logs shown after a failure."""
    yield from reaped(Processes(tmp_path / "logs"))


@pytest.fixture
def area(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that other users can look into, in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > ROOMY
    base = memory if roomy else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix="tdx-e2e-", dir=base) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def receiver(processes: Processes, area: Path) -> Receiver:
    """A receiver that listens, with an empty folder."""
    return processes.receiver(area / "inbox", area / "receiver-state")
