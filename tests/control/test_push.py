"""Pushing files to a receiver that nothing disturbs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, in_background, local_store, push, running
from tdx.control import ending
from tdx.control.progress import Tally
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.control.session import Session
from tdx.data.source import Source
from tdx.errors import (
    BadName,
    Exists,
    Forbidden,
    NoSpace,
    SourceError,
    UnknownPeer,
    Unreachable,
    VerificationFailed,
)
from tdx.integrity import MIB, Root, digest_of
from tdx.metrics import Metrics
from tdx.model import Conflict, Outcome
from tdx.policy.rules import Policy, Rule

EXTENT = 4 << 20
SIZES = [0, 1, 65536, 65537, EXTENT - 1, EXTENT, EXTENT + 1, 2 * EXTENT, 3 * EXTENT + 12345]


def source_of(tmp_path: Path, content: bytes, name: str = "disk.img") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_123_456_789))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_a_file_arrives_with_its_bytes_its_time_and_its_mode(
    receiver: RunningReceiver, tmp_path: Path, size: int
) -> None:
    content = pattern(size)
    source = source_of(tmp_path, content)
    source.chmod(0o640)
    tally = Tally()
    result = push(receiver.peer, source, tmp_path / "sender", tally=tally)
    assert (result.outcome, result.name, result.path, result.size) == (
        Outcome.PUBLISHED,
        "disk.img",
        "disk.img",
        size,
    )
    assert (result.sent_bytes, result.resumed_bytes, tally.retries) == (size, 0, 0)
    digests = [digest_of(content[at : at + EXTENT]) for at in range(0, size, EXTENT)]
    assert result.root == str(Root.over(digests, size, EXTENT))
    assert receiver.visible() == {"disk.img": content}
    assert receiver.staged() == []
    status = (receiver.folder / "disk.img").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (1_600_000_000_123_456_789, 0o640)
    assert receiver.uploads_ended("tdx", "published") == 1
    assert receiver.metrics.received_bytes.value(("tdx",)) == size


@pytest.mark.parametrize("size", [0, 1, EXTENT, 2 * EXTENT + 1])
def test_the_same_file_again_is_identical_and_sends_next_to_nothing(
    receiver: RunningReceiver, tmp_path: Path, size: int
) -> None:
    source = source_of(tmp_path, pattern(size))
    first = push(receiver.peer, source, tmp_path / "sender")
    again = push(receiver.peer, source, tmp_path / "sender")
    assert (again.outcome, again.path, again.root) == (Outcome.IDENTICAL, "disk.img", first.root)
    if size > EXTENT:
        assert again.sent_bytes == 0
    assert list(receiver.visible()) == ["disk.img"]
    assert receiver.uploads_ended("tdx", "identical") == 1


@pytest.mark.parametrize("size", [10, 2 * EXTENT + 1])
class TestConflict:
    def test_rename(self, receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
        receiver.request("PUT", "/files/disk.img", bytes(size))
        result = push(receiver.peer, source_of(tmp_path, pattern(size)), tmp_path / "sender")
        assert result.path == "disk (1).img"
        assert receiver.visible() == {"disk.img": bytes(size), "disk (1).img": pattern(size)}

    def test_overwrite(self, receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
        receiver.request("PUT", "/files/disk.img", bytes(size))
        source = source_of(tmp_path, pattern(size))
        assert (
            push(receiver.peer, source, tmp_path / "sender", conflict=Conflict.OVERWRITE).path == "disk.img"
        )
        assert receiver.visible() == {"disk.img": pattern(size)}

    def test_skip(self, receiver: RunningReceiver, tmp_path: Path, size: int) -> None:
        receiver.request("PUT", "/files/disk.img", bytes(size))
        source = source_of(tmp_path, pattern(size))
        assert (
            push(receiver.peer, source, tmp_path / "sender", conflict=Conflict.SKIP).outcome
            is Outcome.SKIPPED
        )
        assert receiver.visible() == {"disk.img": bytes(size)}

    @pytest.mark.parametrize("there", ["same size", "another size"])
    def test_error(self, receiver: RunningReceiver, tmp_path: Path, size: int, there: str) -> None:
        content = bytes(size if there == "same size" else size + 1)
        receiver.request("PUT", "/files/disk.img", content)
        with pytest.raises(Exists):
            push(
                receiver.peer,
                source_of(tmp_path, pattern(size)),
                tmp_path / "sender",
                conflict=Conflict.ERROR,
            )
        assert (receiver.visible(), receiver.staged()) == ({"disk.img": content}, [])


def test_a_name_may_be_given(receiver: RunningReceiver, tmp_path: Path) -> None:
    source = source_of(tmp_path, b"content")
    push(receiver.peer, source, tmp_path / "sender", name="folder/🦊 100%.txt")
    assert receiver.visible() == {"folder/🦊 100%.txt": b"content"}
    with pytest.raises(BadName):
        push(receiver.peer, source, tmp_path / "sender", name="../out")


def test_holes_are_neither_sent_nor_stored(receiver: RunningReceiver, tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    data = pattern(EXTENT)
    with path.open("wb") as file:
        file.seek(2 * EXTENT)
        file.write(data)
        file.truncate(9 * EXTENT + 100)
    if path.stat().st_blocks * 512 > 2 * EXTENT:
        pytest.skip("this filesystem keeps no holes")
    result = push(receiver.peer, path, tmp_path / "sender")
    assert result.sent_bytes == EXTENT
    assert receiver.visible() == {"sparse.img": bytes(2 * EXTENT) + data + bytes(6 * EXTENT + 100)}
    assert (receiver.folder / "sparse.img").stat().st_blocks * 512 < 2 * EXTENT
    assert push(receiver.peer, path, tmp_path / "sender").outcome is Outcome.IDENTICAL


@pytest.mark.parametrize("size", [EXTENT // 2, 3 * EXTENT])
def test_holes_too_small_to_be_told_are_made_again(
    receiver: RunningReceiver, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(0, size, MIB // 2):
            file.seek(at)
            file.write(pattern(4096))
    taken = path.stat().st_blocks
    if taken * 512 > size // 2:
        pytest.skip("this filesystem keeps no holes")
    assert push(receiver.peer, path, tmp_path / "sender").sent_bytes == size
    arrived = receiver.folder / "sparse.img"
    assert arrived.read_bytes() == path.read_bytes()
    assert arrived.stat().st_blocks <= taken + 16
    assert arrived.stat().st_mtime_ns == path.stat().st_mtime_ns


def test_a_file_that_is_one_hole_arrives(receiver: RunningReceiver, tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(3 * EXTENT)
    assert push(receiver.peer, path, tmp_path / "sender").size == 3 * EXTENT
    assert receiver.visible() == {"hole": bytes(3 * EXTENT)}


def test_streams_move_parts_at_the_same_time(receiver: RunningReceiver, tmp_path: Path) -> None:
    content = pattern(16 * EXTENT)
    source = source_of(tmp_path, content)
    slowly = SenderOptions(limit_rate=80e6, stall_timeout=10.0)
    with in_background(
        lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, streams=4)
    ) as pushing:
        receiver.has_bodies(4)
    assert pushing.result().sent_bytes == len(content)
    assert receiver.visible() == {"disk.img": content}


def test_a_rate_limit_holds_over_all_streams(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            return cls.now

    def sleep(self: object, seconds: float) -> None:
        Clock.now += seconds

    monkeypatch.setattr("tdx.control.pace.time", Clock)
    monkeypatch.setattr("tdx.data.port.Cancel.sleep", sleep)
    source = source_of(tmp_path, pattern(5 * EXTENT))
    options = SenderOptions(limit_rate=1e6, stall_timeout=10.0)
    push(receiver.peer, source, tmp_path / "sender", sender=options, streams=1)
    assert Clock.now == pytest.approx(5 * EXTENT / 1e6, rel=0.1)


@pytest.mark.parametrize("sending", ["sendfile", "buffered"])
@pytest.mark.parametrize("receiving", ["splice", "buffered"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_pair_of_pumps_moves_every_byte_on_every_loop(
    tmp_path: Path, sending: str, receiving: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDX_LOOP", loop)
    with running(tmp_path, pump=receiving) as receiver:
        assert loop in type(receiver._loop).__module__
        for size in (5, EXTENT, 3 * EXTENT + 12345):
            content = pattern(size, size)
            source = source_of(tmp_path, content, f"f{size}")
            push(receiver.peer, source, tmp_path / "sender", pump=sending)
            assert receiver.visible()[f"f{size}"] == content


def test_pushes_over_one_sender_share_a_connection_and_are_counted(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    metrics = Metrics("0")
    for number in range(2):
        source = source_of(tmp_path, pattern(2 * EXTENT, number), f"f{number}")
        push(receiver.peer, source, tmp_path / "sender", metrics=metrics)
    assert metrics.sent_bytes.value() == 4 * EXTENT
    assert metrics.uploads.value(("tdx", "published")) == 2
    assert metrics.stage_seconds.value(("send",)) > 0
    distribution = metrics.transfer_duration.family().distribution
    assert distribution is not None
    assert distribution.buckets[-1][1] == 2


class TestRefused:
    def test_a_full_disk_is_refused_before_the_first_byte(self, tmp_path: Path) -> None:
        with running(tmp_path, make_store=local_store(reserve=1 << 60)) as receiver:
            for size in (10, 3 * EXTENT):
                with pytest.raises(NoSpace):
                    push(receiver.peer, source_of(tmp_path, pattern(size)), tmp_path / "sender")
            assert receiver.metrics.received_bytes.value(("tdx",)) == 0
            assert (receiver.visible(), receiver.staged()) == ({}, [])
            assert receiver.refusals() == {("no-space",): 2}

    def test_nobody_listens(self, tmp_path: Path, receiver: RunningReceiver) -> None:
        receiver.stop()
        with pytest.raises(Unreachable):
            push(receiver.peer, source_of(tmp_path, b"x"), tmp_path / "sender")

    def test_no_such_peer(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownPeer):
            push(Peer("no-such-host.invalid"), source_of(tmp_path, b"x"), tmp_path / "sender")

    def test_no_such_source(self, tmp_path: Path, receiver: RunningReceiver) -> None:
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(SourceError):
                push(receiver.peer, path, tmp_path / "sender")

    def test_the_receiver_says_no(self, tmp_path: Path, receiver: RunningReceiver) -> None:
        receiver.running.policy = Policy([Rule("not-today", allow=False, provider="local")])
        for size in (10, 5 * EXTENT):
            with pytest.raises(Forbidden, match="not-today"):
                push(receiver.peer, source_of(tmp_path, pattern(size)), tmp_path / "sender")
        assert receiver.visible() == {}


@pytest.mark.parametrize("size", [1000, 9 << 20])
def test_a_push_repeated_after_its_name_was_numbered_makes_no_further_copy(
    receiver: RunningReceiver, tmp_path: Path, size: int
) -> None:
    source = tmp_path / "disk.img"
    source.write_bytes(pattern(size))
    (receiver.folder / "disk.img").write_bytes(b"of somebody else")
    first = push(receiver.peer, source, tmp_path / "own")
    again = push(receiver.peer, source, tmp_path / "own")
    assert (first.outcome, first.path) == (Outcome.PUBLISHED, "disk (1).img")
    assert (again.outcome, again.path) == (Outcome.IDENTICAL, "disk (1).img")
    source.write_bytes(pattern(size, 7))
    changed = push(receiver.peer, source, tmp_path / "own")
    assert (changed.outcome, changed.path) == (Outcome.PUBLISHED, "disk (2).img")
    assert sorted(receiver.visible()) == ["disk (1).img", "disk (2).img", "disk.img"]


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("size", [0, 1000, 9 << 20])
def test_a_further_digest_of_the_whole_file_is_verified_before_it_is_published(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, algorithm: str
) -> None:
    seen: list[str] = []
    content_digest = ending._content_digest

    def noticed(session: Session, digests: Sequence[bytes], asked: str) -> bytes:
        seen.append(asked)
        return content_digest(session, digests, asked)

    monkeypatch.setattr(ending, "_content_digest", noticed)
    source = tmp_path / "f"
    source.write_bytes(pattern(size))
    result = push(receiver.peer, source, tmp_path / "own", digest=algorithm)
    assert result.outcome is Outcome.PUBLISHED
    assert algorithm in seen
    assert receiver.visible() == {"f": pattern(size)}


@pytest.mark.parametrize("size", [1000, 9 << 20])
def test_a_file_without_its_further_digest_is_not_published(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(Source, "content_digest", lambda *_: bytes(32))
    source = tmp_path / "f"
    source.write_bytes(pattern(size))
    with pytest.raises(VerificationFailed):
        push(receiver.peer, source, tmp_path / "own", digest="sha-256")
    assert receiver.visible() == {}
