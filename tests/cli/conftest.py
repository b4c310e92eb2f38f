"""The real command, and a real receiver beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx


@pytest.fixture
def tdx(tmp_path: Path) -> Tdx:
    return Tdx(tmp_path / "state")


@pytest.fixture
def receiver(tdx: Tdx, tmp_path: Path) -> Iterator[RunningReceiver]:
    """A receiver into an empty folder, which must end well and must not have failed meanwhile."""
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700)
    running = RunningReceiver(tdx, folder, tmp_path / "serve.log")
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def second(tdx: Tdx, tmp_path: Path) -> Iterator[RunningReceiver]:
    """Another receiver."""
    folder = tmp_path / "second"
    folder.mkdir(mode=0o700)
    running = RunningReceiver(
        tdx, folder, tmp_path / "second.log", ("--state", str(tmp_path / "second-state"))
    )
    try:
        yield running
    finally:
        assert running.stop() == 0
