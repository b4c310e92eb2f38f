"""A receiver for each test: real sockets, real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.receiving import RunningReceiver, running


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path) as started:
        yield started


class Impatient:
    """Draws the shortest wait there is."""

    @staticmethod
    def random() -> float:
        return 0.0


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are followed by the next try at once."""
    monkeypatch.setattr("tdx.control.client.random", Impatient)
