"""Pushing standard input: read once, of unknown length."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.datakit import pattern
from support.proxy import Fault, at_random, mistreating, once
from support.receiving import RunningReceiver, in_background, push_stream
from tdx.control.sender import SenderOptions
from tdx.errors import Busy, ConnectionLost, Exists, UsageError, VerificationFailed
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, Outcome

EXTENT = 4 << 20
BLOCK = 16 << 20

pytestmark = pytest.mark.usefixtures("short_waits")


@contextmanager
def piped(content: bytes) -> Iterator[int]:
    """A descriptor from which ``content`` can be read once, then the end."""
    reading, writing = os.pipe()

    def write() -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(writing, view[:100_000]) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()


@pytest.mark.parametrize(
    "size", [0, 1, 65537, EXTENT + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 5]
)
def test_a_stream_of_any_length_arrives(receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
    content = pattern(size)
    with piped(content) as descriptor:
        result = push_stream(receiver.peer, descriptor, tmp_path / "sender", name="out.bin")
    assert (result.outcome, result.size, result.sent_bytes) == (Outcome.PUBLISHED, size, size)
    extent = EXTENT if size < BLOCK else BLOCK
    digests = [digest_of(content[at : at + extent]) for at in range(0, size, extent)]
    assert result.root == str(Root.over(digests, size, extent))
    assert receiver.visible() == {"out.bin": content}
    assert receiver.staged() == []
    assert receiver.uploads_ended("tdx", "published") == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_survives_connections_that_are_cut(
    receiver: RunningReceiver, tmp_path: Path, seed: int
) -> None:
    content = pattern(2 * BLOCK + 777, seed)
    plan = at_random(seed, connections=3, within=BLOCK, kinds=("cut", "reset", "lose-answers"))
    with mistreating(receiver.port, plan) as proxy, piped(content) as descriptor:
        push_stream(proxy.peer, descriptor, tmp_path / "sender", name="out.bin")
    assert receiver.visible() == {"out.bin": content}
    assert receiver.staged() == []


@pytest.mark.parametrize("after", range(0, 700, 100))
def test_a_creation_whose_answer_gets_lost_leaves_no_upload_behind(
    receiver: RunningReceiver, tmp_path: Path, after: int
) -> None:
    content = pattern(BLOCK + 1)
    with (
        mistreating(receiver.port, once(Fault("lose-answers", after))) as proxy,
        piped(content) as descriptor,
    ):
        push_stream(proxy.peer, descriptor, tmp_path / "sender", name="out.bin")
    assert receiver.visible() == {"out.bin": content}
    assert receiver.staged() == []


def test_a_flipped_byte_costs_its_extent_once_more(receiver: RunningReceiver, tmp_path: Path) -> None:
    content = pattern(BLOCK + 1)
    with (
        mistreating(receiver.port, once(Fault("flip", BLOCK // 2))) as proxy,
        piped(content) as descriptor,
    ):
        result = push_stream(proxy.peer, descriptor, tmp_path / "sender", name="out.bin")
    assert result.sent_bytes == 2 * BLOCK + 1
    assert receiver.visible() == {"out.bin": content}


def test_corruption_without_end_fails_and_publishes_nothing(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    fault = Fault("flip", 500_000, every=1_000_000)
    with (
        mistreating(receiver.port, lambda _: fault) as proxy,
        piped(pattern(BLOCK + 1)) as descriptor,
        pytest.raises(VerificationFailed),
    ):
        push_stream(proxy.peer, descriptor, tmp_path / "sender", name="out.bin")
    assert receiver.visible() == {}


@pytest.mark.parametrize("kind", ["cut", "reset", "lose-answers"])
def test_a_stream_that_fails_leaves_nothing_at_the_receiver(
    receiver: RunningReceiver, tmp_path: Path, kind: str
) -> None:
    no_retries = SenderOptions(retries=0, stall_timeout=10.0)
    with (
        mistreating(receiver.port, once(Fault(kind, BLOCK + 500_000))) as proxy,
        piped(pattern(2 * BLOCK)) as descriptor,
        pytest.raises(ConnectionLost),
    ):
        push_stream(proxy.peer, descriptor, tmp_path / "sender", name="out.bin", sender=no_retries)
    assert receiver.staged() == []
    assert receiver.visible() == {}
    assert receiver.uploads_ended("tdx", "cancelled") == 1


def test_a_stream_that_fails_because_the_receiver_went_away_still_ends(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    no_retries = SenderOptions(limit_rate=20e6, retries=0, stall_timeout=10.0)
    with (
        piped(pattern(2 * BLOCK)) as descriptor,
        in_background(
            lambda: push_stream(
                receiver.peer, descriptor, tmp_path / "sender", name="out.bin", sender=no_retries
            )
        ) as pushing,
    ):
        receiver.has_received(EXTENT)
        receiver.stop()
    assert isinstance(pushing.exception(), ConnectionLost | Busy)


@pytest.mark.parametrize("size", [10, BLOCK + 1])
def test_conflicts_are_settled_as_for_files(receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
    receiver.request("PUT", "/files/out.bin", b"there")
    content = pattern(size)
    for conflict, path in ((Conflict.RENAME, "out (1).bin"), (Conflict.OVERWRITE, "out.bin")):
        with piped(content) as descriptor:
            result = push_stream(
                receiver.peer, descriptor, tmp_path / "sender", name="out.bin", conflict=conflict
            )
        assert result.path == path
    with piped(b"x" * size) as descriptor:
        result = push_stream(
            receiver.peer, descriptor, tmp_path / "sender", name="out.bin", conflict=Conflict.SKIP
        )
    assert result.outcome is Outcome.SKIPPED
    with piped(b"y" * size) as descriptor, pytest.raises(Exists):
        push_stream(receiver.peer, descriptor, tmp_path / "sender", name="out.bin", conflict=Conflict.ERROR)
    assert receiver.visible() == {"out.bin": content, "out (1).bin": content}


def test_a_stream_needs_a_name(receiver: RunningReceiver, tmp_path: Path) -> None:
    with piped(b"x") as descriptor, pytest.raises(UsageError):
        push_stream(receiver.peer, descriptor, tmp_path / "sender")
