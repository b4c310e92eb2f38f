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
    """Draws short waits, that double all the same: 0.0125 s, 0.025 s and so on."""

    @staticmethod
    def random() -> float:
        return 0.05


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are soon followed by the next try."""
    monkeypatch.setattr("tdx.control.client.random", Impatient)
