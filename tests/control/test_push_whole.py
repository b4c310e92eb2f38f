"""Files of one extent: one PUT, and no body for what the receiver will not take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.receiving import RunningReceiver, push
from tdx.control.push_whole import AT_ONCE
from tdx.errors import Exists
from tdx.model import Conflict, Outcome

LARGE = 3 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(LARGE))
    return path


def test_a_file_that_is_there_already_is_not_sent(
    receiver: RunningReceiver, source: Path, tmp_path: Path
) -> None:
    first = push(receiver.peer, source, tmp_path / "own")
    again = push(receiver.peer, source, tmp_path / "own")
    assert (first.outcome, first.sent_bytes) == (Outcome.PUBLISHED, LARGE)
    assert (again.outcome, again.sent_bytes) == (Outcome.IDENTICAL, 0)
    assert again.root == first.root
    assert receiver.visible() == {"file.bin": source.read_bytes()}


def test_a_file_that_is_to_be_skipped_is_not_sent(
    receiver: RunningReceiver, source: Path, tmp_path: Path
) -> None:
    push(receiver.peer, source, tmp_path / "own")
    before = source.read_bytes()
    source.write_bytes(os.urandom(LARGE))
    result = push(receiver.peer, source, tmp_path / "own", conflict=Conflict.SKIP)
    assert (result.outcome, result.sent_bytes) == (Outcome.SKIPPED, 0)
    assert receiver.visible() == {"file.bin": before}


def test_a_refused_file_is_not_sent(receiver: RunningReceiver, source: Path, tmp_path: Path) -> None:
    push(receiver.peer, source, tmp_path / "own")
    source.write_bytes(os.urandom(LARGE))
    before = receiver.metrics.received_bytes.value(("tdx",))
    with pytest.raises(Exists):
        push(receiver.peer, source, tmp_path / "own", conflict=Conflict.ERROR)
    assert receiver.metrics.received_bytes.value(("tdx",)) == before


def test_a_small_file_travels_with_its_request(receiver: RunningReceiver, tmp_path: Path) -> None:
    source = tmp_path / "small"
    source.write_bytes(os.urandom(AT_ONCE))
    result = push(receiver.peer, source, tmp_path / "own")
    assert (result.outcome, result.sent_bytes) == (Outcome.PUBLISHED, AT_ONCE)
    assert receiver.visible() == {"small": source.read_bytes()}
