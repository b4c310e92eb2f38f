"""Sources that change: while they are sent, and between a push and its resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datakit import pattern
from support.proxy import Fault, mistreating, once
from support.receiving import RunningReceiver, in_background, push
from tdx.control.progress import Tally
from tdx.control.sender import SenderOptions
from tdx.data.source import Source
from tdx.errors import ConnectionLost, SourceChanged
from tdx.model import Outcome

EXTENT = 4 << 20
SIZE = 5 * EXTENT + 12345
CONTENT = pattern(SIZE)
LONG_AGO = 1_600_000_000

pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def shrink(path: Path) -> None:
    os.truncate(path, EXTENT + 1)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def change(path: Path) -> None:
    overwrite(path, SIZE - 10, b"other")


def change_and_set_the_time_back(path: Path) -> None:
    overwrite(path, 10, b"other")
    os.utime(path, (LONG_AGO, LONG_AGO))


@pytest.mark.parametrize("pump", ["sendfile", "buffered"])
@pytest.mark.parametrize("happen", [shrink, grow, change, change_and_set_the_time_back])
def test_a_source_that_changes_while_it_is_sent_is_not_published(
    receiver: RunningReceiver, source: Path, tmp_path: Path, happen: Callable[[Path], None], pump: str
) -> None:
    slowly = SenderOptions(limit_rate=20e6, stall_timeout=10.0)
    with in_background(
        lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, pump=pump, streams=1)
    ) as pushing:
        receiver.has_received(EXTENT)
        happen(source)
    assert isinstance(pushing.exception(), SourceChanged)
    assert receiver.visible() == {}


def test_a_source_that_is_replaced_while_it_is_sent_arrives_as_it_was(
    receiver: RunningReceiver, source: Path, tmp_path: Path
) -> None:
    slowly = SenderOptions(limit_rate=20e6, stall_timeout=10.0)
    with in_background(
        lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, streams=1)
    ) as pushing:
        receiver.has_received(EXTENT)
        other = tmp_path / "other"
        other.write_bytes(b"another file")
        other.rename(source)
    assert pushing.result().outcome is Outcome.PUBLISHED
    assert receiver.visible() == {"disk.img": CONTENT}


def test_a_source_whose_permissions_change_while_it_is_sent_arrives(
    receiver: RunningReceiver, source: Path, tmp_path: Path
) -> None:
    slowly = SenderOptions(limit_rate=20e6, stall_timeout=10.0)
    with in_background(
        lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, streams=1)
    ) as pushing:
        receiver.has_received(EXTENT)
        source.chmod(0o600)
    assert pushing.result().outcome is Outcome.PUBLISHED
    assert receiver.visible() == {"disk.img": CONTENT}


def test_a_small_source_that_changes_while_it_is_read_is_not_published(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"a" * 1000)
    os.utime(small, (LONG_AGO, LONG_AGO))
    before, read_all = small.stat(), Source.read_all

    def read_torn(source: Source) -> bytearray:
        content = read_all(source)
        while small.stat().st_ctime_ns == before.st_ctime_ns:  # a filesystem's clock is coarse
            overwrite(small, 0, b"b" * 500)
            os.utime(small, (LONG_AGO, LONG_AGO))
        return content

    monkeypatch.setattr(Source, "read_all", read_torn)
    with pytest.raises(SourceChanged):
        push(receiver.peer, small, tmp_path / "sender")
    assert receiver.visible() == {}


class TestResume:
    def interrupted(self, receiver: RunningReceiver, source: Path, tmp_path: Path) -> None:
        """A push that left its first three extents."""
        once_only = SenderOptions(retries=0, stall_timeout=10.0)
        cut = once(Fault("cut", 3 * EXTENT + 100_000))
        with mistreating(receiver.port, cut) as proxy, pytest.raises(ConnectionLost):
            push(proxy.peer, source, tmp_path / "sender", sender=once_only, streams=1)
        receiver.has_bodies(0)

    def test_only_what_is_missing_is_sent(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        receiver.restart()
        tally = Tally()
        result = push(receiver.peer, source, tmp_path / "sender", resume=True, tally=tally)
        assert (result.resumed_bytes, result.sent_bytes) == (3 * EXTENT, SIZE - 3 * EXTENT)
        assert tally.checked == 0
        assert receiver.visible() == {"disk.img": CONTENT}

    def test_without_its_digest_log_the_sender_hashes_what_is_held_while_it_sends_the_rest(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        tally = Tally()
        result = push(receiver.peer, source, tmp_path / "elsewhere", resume=True, tally=tally)
        assert (result.resumed_bytes, result.sent_bytes) == (3 * EXTENT, SIZE - 3 * EXTENT)
        assert tally.checked == 3 * EXTENT
        assert receiver.visible() == {"disk.img": CONTENT}

    @pytest.mark.parametrize("log", ["sender", "elsewhere"])
    def test_of_a_source_that_changed_meanwhile_only_extents_that_differ_are_sent(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path, log: str
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        overwrite(source, EXTENT + 17, b"changed")
        result = push(receiver.peer, source, tmp_path / log, resume=True)
        assert result.sent_bytes == SIZE - 3 * EXTENT + EXTENT
        assert receiver.visible() == {"disk.img": source.read_bytes()}

    def test_a_change_that_left_the_time_as_it_was_is_found_by_the_ctime(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        overwrite(source, EXTENT + 17, b"changed")
        os.utime(source, (LONG_AGO, LONG_AGO))
        push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert receiver.visible() == {"disk.img": source.read_bytes()}

    def test_a_source_of_another_size_begins_anew(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        grow(source)
        result = push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert (result.resumed_bytes, result.sent_bytes) == (0, SIZE + 4)
        assert receiver.visible() == {"disk.img": source.read_bytes()}
        assert receiver.staged() == []

    def test_another_source_of_the_same_name_and_size_shares_nothing(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        self.interrupted(receiver, source, tmp_path)
        (tmp_path / "other").mkdir()
        other = tmp_path / "other" / "disk.img"
        other.write_bytes(bytes(SIZE))
        result = push(receiver.peer, other, tmp_path / "sender", resume=True)
        assert result.resumed_bytes == 0
        assert receiver.visible() == {"disk.img": bytes(SIZE)}
        result = push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert (result.resumed_bytes, result.path) == (3 * EXTENT, "disk (1).img")

    def test_resuming_what_was_never_begun_is_a_push(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        result = push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert (result.resumed_bytes, result.sent_bytes) == (0, SIZE)

    def test_bytes_that_were_spoilt_at_the_receiver_are_found_and_sent_again(
        self, receiver: RunningReceiver, source: Path, tmp_path: Path
    ) -> None:
        """The disk gives back other bytes after a reboot: what was held is read again first."""
        self.interrupted(receiver, source, tmp_path)
        receiver.stop()
        (staged,) = receiver.staged()
        overwrite(staged / "data", EXTENT + 5, b"\xff\xfe\xfd")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tdx.store.syscalls.System.boot_id", lambda _: bytes(16))
            receiver.start()
        result = push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert receiver.visible() == {"disk.img": CONTENT}
        assert result.sent_bytes >= SIZE - 3 * EXTENT + EXTENT
