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
