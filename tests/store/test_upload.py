"""One upload on the disk: marks, writeback, failed syncs, a torn journal, expiry of what a crash left."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.conformance import EXTENT, ME, content, publish, push, send, spec, visible
from store.faulty import FaultySystem, Stopped
from tdx.data.port import DescriptorSink
from tdx.errors import Busy, NoSpace, NotFound, StorageError, UploadBusy
from tdx.integrity import MIB, digest_of, extent_size_for, zero_digest
from tdx.model import FileName, Span, UploadId, UploadSpec
from tdx.ranges import RangeSet
from tdx.store import datafile
from tdx.store import upload as upload_module
from tdx.store.datafile import WRITEBACK_WINDOW
from tdx.store.gate import Phase
from tdx.store.journal import RECORD_SIZE
from tdx.store.local import LocalStore
from tdx.store.port import Piece
from tdx.store.syscalls import BTRFS, TMPFS
from tdx.store.upload import LocalUpload

DATA = content(4 * EXTENT)


class OnDisk(FaultySystem):
    """An ext4, whatever the tests run on, with a clock that a test sets."""

    kind = 0xEF53

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def filesystem(self, fd: int) -> int:
        return self.kind

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def system() -> OnDisk:
    return OnDisk()


@pytest.fixture
def store(tmp_path: Path, system: OnDisk) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", reserve=0, system=system)
    yield store
    system.heal()
    store.close()
    assert system.fds == set()


@pytest.fixture
def upload(store: LocalStore) -> LocalUpload:
    return store.create(spec(length=len(DATA)))


def folder_of(tmp_path: Path, upload: LocalUpload) -> Path:
    return tmp_path / "inbox" / ".tdx" / "uploads" / upload.id


# --- marks ------------------------------------------------------------------------------


def marked(system: OnDisk) -> threading.Event:
    """Set when a mark's sync of the data begins."""
    begun = threading.Event()

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fdatasync":
            begun.set()

    system.before = note
    return begun


def test_a_mark_is_made_in_the_background_when_enough_bytes_have_gathered(
    upload: LocalUpload, system: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "MARK_BYTES", 2 * EXTENT)
    begun = marked(system)
    send(upload, DATA, range(1))
    assert upload._background is None
    send(upload, DATA, range(1, 2))
    assert begun.wait(60)
    upload.close()


def test_a_mark_is_made_when_enough_time_has_passed(upload: LocalUpload, system: OnDisk) -> None:
    begun = marked(system)
    system.now += 29
    send(upload, DATA, range(1))
    assert upload._background is None
    system.now += 1
    send(upload, DATA, range(1, 2))
    assert begun.wait(60)
    upload.close()


def test_a_mark_for_which_no_thread_can_be_started_is_made_later(
    upload: LocalUpload, system: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    begun = marked(system)
    system.now += 30
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        send(upload, DATA, range(1))
    assert not begun.is_set()
    send(upload, DATA, range(1, 2))
    assert begun.wait(60)
    upload.close()


def test_a_mark_covers_only_what_was_recorded_before_its_sync_began(tmp_path: Path) -> None:
    system = OnDisk()
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(2))

    def meanwhile(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fdatasync":
            system.heal()
            send(upload, DATA, range(2, 3))

    system.before = meanwhile
    upload.mark()
    system.die()
    store._receipts.close()
    rebooted = FaultySystem(boot=b"another boot id!")
    again = LocalStore(tmp_path / "inbox", tmp_path / "state", system=rebooted)
    assert set(again.open(upload.id).digests) == {0, 1}
    again.close()


def test_recording_goes_on_while_a_mark_waits_for_the_disk(upload: LocalUpload, system: OnDisk) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def slow(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fdatasync" and not go_on.is_set():
            waiting.set()
            assert go_on.wait(60)

    system.before = slow
    send(upload, DATA, range(1))
    marker = threading.Thread(target=upload.mark)
    marker.start()
    assert waiting.wait(60)
    send(upload, DATA, range(1, 4))
    assert len(upload.digests) == 4
    go_on.set()
    marker.join()
    assert upload._state.recent() == {1, 2, 3}


@pytest.mark.parametrize(
    ("stuck", "path"),
    [
        ("pwrite", "journal"),
        ("fdatasync", "journal"),
        ("fsync", "meta.tmp"),
        ("fsync", "uploads"),
        ("fdatasync", "data"),
    ],
)
def test_a_look_at_an_upload_never_waits_for_the_disk(
    upload: LocalUpload, system: OnDisk, stuck: str, path: str
) -> None:
    send(upload, DATA, range(2))
    waiting, go_on = threading.Event(), threading.Event()

    def slow(called: str, arguments: tuple[Any, ...]) -> None:
        if called == stuck and os.readlink(f"/proc/self/fd/{arguments[0]}").endswith(f"/{path}"):
            waiting.set()
            assert go_on.wait(60)

    def work() -> None:
        upload.invalidate([1])
        upload.refresh(spec(length=len(DATA), key="k2"))
        send(upload, DATA, range(1, 3))
        upload.mark()

    seen: list[Any] = []

    def look() -> None:
        seen.append((upload.held, upload.digests, upload.tails, upload.suspects, upload.still_needed()))
        seen.append((upload.epoch, upload.spec, upload.spoiled))

    system.before = slow
    worker, looker = threading.Thread(target=work), threading.Thread(target=look, daemon=True)
    worker.start()
    assert waiting.wait(60)
    looker.start()
    looker.join(10)
    stood_still = looker.is_alive()
    go_on.set()
    worker.join()
    assert not stood_still
    assert len(seen) == 2
    assert set(upload.digests) == {0, 1, 2}


def test_a_piece_is_claimed_only_once_it_is_in_the_journal(upload: LocalUpload, system: OnDisk) -> None:
    before: list[bool] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "pwrite" and arguments[0] == upload._folder.journal:
            before.append(bool(upload.held))

    system.before = note
    send(upload, DATA, range(1))
    assert before == [False]
    assert list(upload.held) == [Span(0, EXTENT)]


def test_a_piece_that_was_on_its_way_when_a_sync_failed_is_lost_or_refused(
    store: LocalStore, system: OnDisk
) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))
    waiting, go_on = threading.Event(), threading.Event()

    def failing(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "pwrite" and arguments[0] == upload._folder.journal and not waiting.is_set():
            waiting.set()
            assert go_on.wait(60)
        if called == "fdatasync" and arguments[0] == upload._folder.data:
            raise OSError(errno.EIO, "gone")

    outcomes: list[str] = []

    def attempt(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                work()
                outcomes.append("done")
            except StorageError:
                outcomes.append("refused")

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    system.before = failing
    threads = [attempt(lambda: send(upload, DATA, range(1, 2)))]
    assert waiting.wait(60)
    threads += [attempt(lambda: send(upload, DATA, range(2, 3))), attempt(upload.mark)]
    while not upload.spoiled:
        go_on.wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) in (["done", "refused", "refused"], ["done", "done", "refused"])
    system.heal()
    assert not upload.held
    upload.close()
    assert not store.open(upload.id).held


def test_a_second_mark_is_not_started_while_one_runs(
    upload: LocalUpload, system: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "MARK_BYTES", 1)
    waiting, go_on = threading.Event(), threading.Event()

    def slow(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fdatasync" and not go_on.is_set():
            waiting.set()
            assert go_on.wait(60)

    system.before = slow
    send(upload, DATA, range(1))
    assert waiting.wait(60)
    background = upload._background
    send(upload, DATA, range(1, 4))
    assert upload._background is background
    go_on.set()
    upload.close()


def test_a_mark_with_nothing_new_costs_nothing(upload: LocalUpload, system: OnDisk) -> None:
    send(upload, DATA)
    upload.mark()
    system.log.clear()
    upload.mark()
    assert "fdatasync" not in system.log


def test_an_uploads_own_folder_is_durable_with_its_first_mark(
    upload: LocalUpload, system: OnDisk, tmp_path: Path
) -> None:
    synced: list[str] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called in ("fsync", "fdatasync"):
            synced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    system.before = note
    send(upload, DATA, range(1))
    assert synced == []
    upload.mark()
    folder = str(folder_of(tmp_path, upload))
    assert synced == [
        f"{folder}/data",
        f"{folder}/journal",
        f"{folder}/meta",
        folder,
        os.path.dirname(folder),
    ]
    send(upload, DATA, range(1, 2))
    upload.mark()
    assert synced[5:] == [f"{folder}/data", f"{folder}/journal"]


# --- failed syncs -------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1], ids=["of the data", "of the journal"])
def test_a_failed_sync_is_final(store: LocalStore, system: OnDisk, skip: int) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))
    upload.mark()
    send(upload, DATA, range(1, 3))
    system.fail("fdatasync", errno.EIO, skip=skip)
    with pytest.raises(StorageError):
        upload.mark()
    system.heal()
    assert set(upload.digests) == ({0} if skip == 0 else {0, 1, 2})
    for call in (
        upload.mark,
        upload.raise_epoch,
        lambda: upload.write_at(memoryview(b"x"), 0),
        lambda: upload.wrote(0, 1),
        lambda: upload.record(Piece(Span(0, EXTENT), bytes(16))),
        lambda: upload.invalidate([0]),
        lambda: upload.recheck([0]),
        lambda: publish(upload, DATA),
    ):
        with pytest.raises(StorageError, match="failed to make data durable"):
            call()
    upload.close()
    again = store.open(upload.id)
    send(again, DATA, range(1, 4))
    publish(again, DATA)


def test_after_a_failed_sync_an_extent_that_had_grown_is_held_as_far_as_the_last_mark(
    store: LocalStore, system: OnDisk
) -> None:
    upload = store.create(spec(length=len(DATA)))
    beginning = Span(0, 1000)
    upload.write_at(memoryview(DATA)[:1000], 0)
    upload.record(Piece(beginning, digest_of(DATA[:1000])))
    upload.mark()
    send(upload, DATA, range(2))
    system.fail("fdatasync", errno.EIO)
    with pytest.raises(StorageError):
        upload.mark()
    assert (upload.held, set(upload.tails)) == (RangeSet([beginning]), {0})
    upload.close()
    again = store.open(upload.id)
    assert (again.held, again.tails[0].digest) == (RangeSet([beginning]), digest_of(DATA[:1000]))
    send(again, DATA, range(4))
    publish(again, DATA)


def test_extents_recorded_while_a_sync_failed_are_lost_with_the_others(
    store: LocalStore, system: OnDisk
) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))

    def failing(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fdatasync":
            system.heal()
            send(upload, DATA, range(1, 2))
            raise OSError(errno.EIO, "gone")

    system.before = failing
    with pytest.raises(StorageError):
        upload.mark()
    upload.close()
    assert not store.open(upload.id).held


def test_a_failed_sync_in_the_background_is_told_to_the_next_call(
    upload: LocalUpload, system: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "MARK_BYTES", 1)
    system.fail("fdatasync", errno.EIO)
    send(upload, DATA, range(1))
    background = upload._background
    if background is not None:
        background.join()
    with pytest.raises(StorageError):
        send(upload, DATA, range(1, 2))
    upload.close()


def test_an_upload_whose_journal_cannot_say_what_is_lost_is_removed(
    store: LocalStore, system: OnDisk
) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))
    system.fail("fdatasync", errno.EIO, times=2)
    with pytest.raises(StorageError):
        upload.mark()
    upload.close()
    system.heal()
    with pytest.raises(NotFound):
        store.open(upload.id)
    assert store.partials() == []


def test_closing_never_raises_for_a_failed_mark(store: LocalStore, system: OnDisk) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))
    system.fail("fdatasync", errno.EIO)
    upload.close()
    system.heal()
    assert not store.open(upload.id).held


def test_an_epoch_that_is_not_durable_is_not_told(upload: LocalUpload, system: OnDisk) -> None:
    system.fail("fsync", errno.EIO)
    with pytest.raises(StorageError):
        upload.raise_epoch()


# --- writing ------------------------------------------------------------------------------


def test_what_comes_in_one_piece_is_written_in_several(
    upload: LocalUpload, system: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datafile, "WRITE_MOST", EXTENT)
    written: list[tuple[int, int]] = []

    def look(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "pwrite":
            written.append((len(arguments[1]), arguments[2]))

    system.before = look
    size = 2 * EXTENT + 3
    upload.write_at(memoryview(DATA)[:size], 0)
    system.heal()
    assert written == [(EXTENT, 0), (EXTENT, EXTENT), (3, 2 * EXTENT)]
    found = bytearray(size)
    upload.read_at(memoryview(found), 0)
    assert found == DATA[:size]
    upload.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_space(upload: LocalUpload, system: OnDisk, code: int) -> None:
    system.fail("pwrite", code)
    with pytest.raises(NoSpace):
        upload.write_at(memoryview(b"x"), 0)
    system.fail("pwrite", code, skip=1)
    with pytest.raises(NoSpace):
        send(upload, DATA, range(1))
    assert not upload.held


def test_a_failed_write_or_read_is_a_storage_error(upload: LocalUpload, system: OnDisk) -> None:
    system.fail("pwrite", errno.EIO)
    with pytest.raises(StorageError):
        upload.write_at(memoryview(b"x"), 0)
    system.fail("preadv", errno.EIO)
    with pytest.raises(StorageError):
        upload.read_at(memoryview(bytearray(1)), 0)


def test_a_disk_that_takes_no_bytes_is_not_asked_for_ever(store: LocalStore) -> None:
    class Full(OnDisk):
        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return 0

    upload = store.create(spec(length=1))
    upload._data._system = Full()
    with pytest.raises(StorageError):
        upload.write_at(memoryview(b"x"), 0)


def test_an_unreadable_extent_is_one_that_differs(upload: LocalUpload, system: OnDisk) -> None:
    send(upload, DATA)
    system.fail("preadv", errno.EIO, skip=1)
    assert upload.recheck(range(4)) == {1}
    os.ftruncate(upload.descriptor, 3 * EXTENT + 1)
    assert upload.recheck(range(4)) == {3}


def test_an_extent_that_changed_during_its_recheck_is_left_as_it_is(
    upload: LocalUpload, system: OnDisk
) -> None:
    send(upload, content(4 * EXTENT, seed=2))

    def change(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "preadv":
            system.heal()
            upload.invalidate([0])
            send(upload, DATA, range(1))

    system.before = change
    assert upload.recheck([0]) == frozenset()
    assert upload.digests[0] == digest_of(DATA[:EXTENT])


def test_writeback_starts_when_a_window_is_full(store: LocalStore, system: OnDisk) -> None:
    upload = store.create(spec(length=100 * MIB))
    started: list[tuple[int, int]] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "start_writeback":
            started.append((arguments[1], arguments[2]))
            raise OSError(errno.EIO, "the disk's error is for fdatasync to tell")

    system.before = note
    block = memoryview(bytes(MIB))
    for at in range(0, WRITEBACK_WINDOW - MIB, MIB):
        upload.write_at(block, at)
    assert started == []
    upload.write_at(block, WRITEBACK_WINDOW - MIB)
    assert started == [(0, WRITEBACK_WINDOW)]
    upload.wrote(WRITEBACK_WINDOW, 2 * WRITEBACK_WINDOW + 5)
    assert started[1:] == [(WRITEBACK_WINDOW, 2 * WRITEBACK_WINDOW)]
    assert isinstance(upload, DescriptorSink)


def test_in_memory_there_is_nothing_to_write_back_and_nothing_to_allocate(tmp_path: Path) -> None:
    system = OnDisk()
    system.kind = TMPFS
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    upload = store.create(spec(length=WRITEBACK_WINDOW))
    upload.wrote(0, WRITEBACK_WINDOW)
    assert not {"start_writeback", "fallocate_keep_size"} & set(system.log)
    store.close()


# --- space --------------------------------------------------------------------------------


def test_data_is_preallocated_without_changing_the_length_and_holes_stay_holes(
    store: LocalStore, system: OnDisk
) -> None:
    size = 16 * MIB
    holes = (Span(4 * MIB, 12 * MIB),)
    asked: list[tuple[int, int]] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fallocate_keep_size":
            asked.append((arguments[1], arguments[2]))

    system.before = note
    upload = store.create(UploadSpec(ME, FileName("f"), size, 4 * MIB, holes=holes))
    assert asked == [(0, 4 * MIB), (12 * MIB, 4 * MIB)]
    assert os.fstat(upload.descriptor).st_size == 0
    assert upload.still_needed() <= 8 * MIB


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_too_full_to_preallocate_refuses_before_the_first_byte(
    store: LocalStore, system: OnDisk, code: int
) -> None:
    system.fail("fallocate_keep_size", code)
    with pytest.raises(NoSpace):
        store.create(spec(length=8 * MIB))
    assert store.partials() == []
    assert store._uploads.ids() == []


def test_a_filesystem_that_cannot_preallocate_is_written_without(store: LocalStore, system: OnDisk) -> None:
    system.fail("fallocate_keep_size", errno.EOPNOTSUPP)
    upload = store.create(spec(length=8 * MIB))
    assert upload.still_needed() == 8 * MIB
    upload.write_at(memoryview(bytes(MIB)), 0)
    assert upload.still_needed() == 7 * MIB


def test_an_interrupted_preallocation_is_begun_again(store: LocalStore, system: OnDisk) -> None:
    system.fail("fallocate_keep_size", errno.EINTR)
    store.create(spec(length=8 * MIB))
    assert system.log.count("fallocate_keep_size") == 2


@pytest.mark.parametrize("call", ["fstatvfs", "fstat"])
def test_free_space_that_cannot_be_told_is_a_storage_error(
    store: LocalStore, system: OnDisk, upload: LocalUpload, call: str
) -> None:
    system.fail(call, errno.EIO)
    with pytest.raises(StorageError):
        store.free_bytes()


def test_on_copy_on_write_filesystems_nothing_is_preallocated(tmp_path: Path) -> None:
    system = OnDisk()
    system.kind = BTRFS
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    store.create(spec(length=8 * MIB)).discard()
    assert "fallocate_keep_size" not in system.log
    store.close()


def test_the_reserve_is_never_promised(tmp_path: Path) -> None:
    system = OnDisk()
    system.free = 10 * EXTENT
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", reserve=4 * EXTENT, system=system)
    assert store.free_bytes() == 6 * EXTENT
    with pytest.raises(NoSpace) as refused:
        store.create(spec(length=6 * EXTENT + 1))
    assert refused.value.details == {"needed": 6 * EXTENT + 1, "free": 6 * EXTENT}
    system.free = EXTENT
    assert store.free_bytes() == 0
    store.close()


@pytest.mark.parametrize("spliced", [False, True], ids=["written", "spliced"])
def test_an_upload_of_unknown_length_stops_at_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, spliced: bool
) -> None:
    monkeypatch.setattr(datafile, "SPACE_BYTES", 4 * EXTENT)
    system = OnDisk()
    system.free = 100 * EXTENT
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", reserve=50 * EXTENT, system=system)
    upload = store.create(spec(length=None))
    known = store.create(spec("known", length=EXTENT))
    block = memoryview(bytes(EXTENT))

    def write(number: int) -> None:
        if spliced:
            os.pwrite(upload.descriptor, block, number * EXTENT)
            upload.wrote(number * EXTENT, EXTENT)
        else:
            upload.write_at(block, number * EXTENT)

    system.log.clear()
    for number in range(8):
        write(number)
    assert system.log.count("fstatvfs") == 2
    system.free = 50 * EXTENT
    for number in range(8, 11):
        write(number)
    for _ in range(2):
        with pytest.raises(NoSpace, match="reserve"):
            write(11)
    known.write_at(block, 0)
    system.free = 51 * EXTENT
    write(11)
    system.fail("fstatvfs", errno.EIO)
    for number in range(12, 15):
        write(number)
    with pytest.raises(StorageError):
        write(15)
    system.heal()
    store.close()


# --- the journal on the disk -----------------------------------------------------------------


def test_a_torn_tail_is_dropped_and_written_over(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(3))
    upload.close()
    journal = folder_of(tmp_path, upload) / "journal"
    whole = journal.read_bytes()
    # Session, three pieces, mark: tear the third piece.
    journal.write_bytes(whole[: 3 * RECORD_SIZE + 10])
    again = store.open(upload.id)
    assert set(again.digests) == {0, 1}
    send(again, DATA, range(2, 4))
    again.close()
    assert set(store.open(upload.id).digests) == {0, 1, 2, 3}


def test_a_failed_append_does_not_hide_later_records(store: LocalStore) -> None:
    class Torn(OnDisk):
        """Writes half of a record, then fails once."""

        failures = 1

        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            if len(data) != RECORD_SIZE and self.failures:
                self.failures = 0
                raise OSError(errno.ENOSPC, "full")
            if len(data) == RECORD_SIZE and self.failures:
                return os.pwrite(fd, data[:20], offset)
            return os.pwrite(fd, data, offset)

    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(1))
    upload._ledger._system = Torn()
    with pytest.raises(NoSpace):
        upload.record(Piece(Span(EXTENT, 2 * EXTENT), digest_of(DATA[EXTENT : 2 * EXTENT])))
    assert set(upload.digests) == {0}
    send(upload, DATA, range(2, 4))
    upload.close()
    assert set(store.open(upload.id).digests) == {0, 2, 3}


@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "flock", "fstat"])
def test_an_upload_that_cannot_be_opened_says_so_and_is_kept(
    store: LocalStore, system: OnDisk, call: str
) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(2))
    upload.close()
    opened = len(system.fds)
    system.fail(call, errno.EIO)
    with pytest.raises(StorageError):
        store.open(upload.id)
    assert len(system.fds) == opened
    system.heal()
    assert set(store.open(upload.id).digests) == {0, 1}


@pytest.mark.parametrize(
    ("call", "skip"),
    [("mkdir", 0), ("open", 0), ("open", 1), ("open", 2), ("flock", 0), ("write", 0), ("pwrite", 0)],
)
def test_an_upload_that_cannot_be_made_leaves_nothing(
    store: LocalStore, system: OnDisk, call: str, skip: int
) -> None:
    opened = len(system.fds)
    system.fail(call, errno.EIO, skip=skip)
    with pytest.raises(StorageError):
        store.create(spec())
    system.heal()
    assert len(system.fds) == opened
    assert store._uploads.ids() == []


@pytest.mark.parametrize("broken", ["journal", "meta"])
def test_an_upload_that_the_disk_no_longer_gives_makes_way_for_a_new_push(
    store: LocalStore, system: OnDisk, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    upload = store.create(spec(length=len(DATA), source_id="s"))
    send(upload, DATA, range(2))
    upload.close()
    opened = len(system.fds)

    def lost(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "read" and os.readlink(f"/proc/self/fd/{arguments[0]}").endswith(f"/{broken}"):
            raise OSError(errno.EIO, "Input/output error")

    system.before = lost
    with pytest.raises(NotFound):
        store.open(upload.id)
    assert len(system.fds) == opened
    assert f"removing the upload {upload.id}" in caplog.text
    assert store.find(ME, FileName("disk.img"), len(DATA), "s") == []
    assert store._uploads.ids() == []


@pytest.mark.parametrize("start", [False, True], ids=["at opening", "at the start"])
def test_an_upload_whose_journal_cannot_even_be_opened_is_removed(
    store: LocalStore, tmp_path: Path, *, start: bool
) -> None:
    upload = store.create(spec(length=len(DATA)))
    upload.close()
    journal = folder_of(tmp_path, upload) / "journal"
    journal.unlink()
    journal.symlink_to("elsewhere")
    beside = LocalStore(tmp_path / "inbox", tmp_path / "state", exclusive=False)
    with pytest.raises(StorageError):
        beside.open(upload.id)
    assert beside.recover() == []
    beside.close()
    assert store._uploads.ids() == [upload.id]
    if start:
        assert store.recover() == []
    else:
        with pytest.raises(NotFound):
            store.open(upload.id)
    assert store._uploads.ids() == []


def test_an_upload_that_only_now_cannot_be_opened_is_kept(store: LocalStore, system: OnDisk) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA, range(2))
    upload.close()
    for call, skip in (("open", 0), ("open", 1), ("read", 0)):
        system.fail(call, errno.ENOMEM, skip=skip)
        with pytest.raises(StorageError):
            store.open(upload.id)
        system.heal()
    assert set(store.open(upload.id).digests) == {0, 1}


def test_an_unreadable_upload_that_cannot_be_removed_is_logged(
    store: LocalStore, system: OnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    upload = store.create(spec(length=len(DATA)))
    upload.close()

    def broken(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "read" or (called == "unlink" and arguments[0] == "meta"):
            raise OSError(errno.EIO, "Input/output error")

    system.before = broken
    with pytest.raises(NotFound):
        store.open(upload.id)
    assert f"the upload {upload.id} cannot be removed" in caplog.text


def test_an_unlinked_upload_is_not_claimed(store: LocalStore, system: OnDisk, upload: LocalUpload) -> None:
    upload.close()

    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "flock":
            system.heal()
            store.open(upload.id).discard()

    system.before = race
    with pytest.raises(NotFound):
        store.open(upload.id)


def test_data_locked_by_the_senders_permission_bits_is_opened_again(
    store: LocalStore, system: OnDisk, upload: LocalUpload, tmp_path: Path
) -> None:
    send(upload, DATA)
    os.fchmod(upload.descriptor, 0)
    upload.close()
    refusals = iter([True])

    def strict(called: str, arguments: tuple[Any, ...]) -> None:
        # What the kernel does for anyone but root.
        if called == "open" and arguments[0] == "data" and next(refusals, False):
            raise OSError(errno.EACCES, "Permission denied")

    system.before = strict
    again = store.open(upload.id)
    assert (folder_of(tmp_path, upload) / "data").stat().st_mode & 0o777 == 0o600
    publish(again, DATA)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_refresh_that_fails_changes_nothing(store: LocalStore, system: OnDisk, code: int) -> None:
    upload = store.create(spec(length=None, key="k1"))
    system.fail("write", code)
    with pytest.raises((NoSpace, StorageError)):
        upload.refresh(spec(key="k2"))
    system.fail("write", code)
    with pytest.raises((NoSpace, StorageError)):
        upload.set_length(1)
    assert upload.spec.key == "k1"
    assert upload.spec.length is None
    upload.close()
    assert store.open(upload.id).spec.key == "k1"


def test_a_discard_that_fails_can_be_tried_again(
    upload: LocalUpload, store: LocalStore, system: OnDisk
) -> None:
    system.fail("rmdir", errno.EIO)
    with pytest.raises(StorageError):
        upload.discard()
    system.heal()
    upload.discard()
    assert store._uploads.ids() == []


# --- what crashes leave ------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(12))
def test_killed_while_an_upload_is_made_the_remains_are_no_upload_and_go(tmp_path: Path, step: int) -> None:
    system = OnDisk()
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    system.stop_at(3 + step)
    with contextlib.suppress(Stopped):
        store.create(spec())
    system.die()
    store._receipts.close()
    again = LocalStore(tmp_path / "inbox", tmp_path / "state")
    assert again.recover() == []
    for partial in again.partials():
        again.open(partial.upload).discard()
    again.expire(time.time() + 3700)
    assert again._uploads.ids() == []
    again.close()


@pytest.mark.parametrize("step", range(14))
def test_killed_while_an_upload_is_discarded_the_remains_go(tmp_path: Path, step: int) -> None:
    system = OnDisk()
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    upload = store.create(spec())
    send(upload, DATA[: 3 * EXTENT])
    system.stop_at(step)
    with contextlib.suppress(Stopped):
        upload.discard()
    system.die()
    store._receipts.close()
    again = LocalStore(tmp_path / "inbox", tmp_path / "state", exclusive=False)
    assert again.recover() == []
    again.expire(time.time() + 8 * 86400)
    assert again._uploads.ids() == []
    again.close()


def test_a_folder_in_the_making_is_not_taken_for_the_remains_of_a_crash(
    store: LocalStore, tmp_path: Path
) -> None:
    fresh = tmp_path / "inbox" / ".tdx" / "uploads" / ("0" * 32)
    fresh.mkdir(mode=0o700)
    beside = LocalStore(tmp_path / "inbox", tmp_path / "state", exclusive=False)
    assert beside.recover() == []
    beside.expire(time.time() + 60, older_than=0)
    assert fresh.exists()
    beside.expire(time.time() + 3700)
    assert not fresh.exists()
    beside.close()


@pytest.mark.parametrize("meta", [b"", b"{", b"[]", b"{}", b'{"version": 2}', b'{"version": 1}'])
def test_a_folder_with_a_broken_meta_is_no_upload(
    store: LocalStore, tmp_path: Path, upload: LocalUpload, meta: bytes
) -> None:
    upload.close()
    (folder_of(tmp_path, upload) / "meta").write_bytes(meta)
    assert store.partials() == []
    with pytest.raises(NotFound):
        store.open(upload.id)
    store.expire(time.time())
    assert store._uploads.ids() == [upload.id]
    store.expire(time.time() + 3700)
    assert store._uploads.ids() == []


def test_strangers_in_the_uploads_folder_are_left_alone(store: LocalStore, tmp_path: Path) -> None:
    stranger = tmp_path / "inbox" / ".tdx" / "uploads" / "lost+found"
    stranger.mkdir()
    assert store.partials() == []
    store.recover()
    store.expire(1e12)
    assert stranger.exists()


def test_an_upload_published_after_a_crash_but_not_recovered_yet_is_not_expired_as_a_partial(
    store: LocalStore, system: OnDisk, tmp_path: Path
) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA)
    system.spoil("rmdir", Stopped())
    with pytest.raises(Stopped):
        publish(upload, DATA)
    system.heal()
    os.close(upload._folder.journal)
    system.fds.discard(upload._folder.journal)
    upload._folder.journal = -1
    (folder_of(tmp_path, upload) / "journal").write_bytes(b"")
    assert store.expire(1e12) == []
    assert visible(tmp_path / "inbox") == {"disk.img": DATA}


def test_one_unreadable_upload_hides_no_other_and_is_logged(
    store: LocalStore, system: OnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = sorted(store.create(spec(str(number))).id for number in range(2))
    for call, found in ((store.partials, 1), (store.recover, 0), (lambda: store.expire(1e12), 0)):
        # Those in use are nothing to speak of.
        caplog.clear()
        system.fail("open", errno.ENOMEM)
        assert len(call()) == found
        assert [record.getMessage().split()[2] for record in caplog.records] == [uploads[0]]
    for each in list(store._running.values()):
        each.close()
    system.fail("open", errno.ENOMEM)
    assert len(store.expire(1e12)) == 1
    system.fail("unlink", errno.EIO)
    assert store.expire(1e12) == []
    system.fail("listdir", errno.EIO)
    with pytest.raises(StorageError):
        store.partials()


def test_an_upload_gone_between_the_look_and_the_claim_is_not_counted_as_expired(
    store: LocalStore, system: OnDisk, upload: LocalUpload, tmp_path: Path
) -> None:
    upload.close()

    def gone(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "flock":
            system.heal()
            (folder_of(tmp_path, upload) / "meta").unlink()

    system.before = gone
    assert store.expire(1e12) == []


def test_closing_the_store_closes_its_uploads(tmp_path: Path) -> None:
    system = OnDisk()
    store = LocalStore(tmp_path / "inbox", tmp_path / "state", system=system)
    store.create(spec())
    store.create(spec())
    store.close()
    assert system.fds == set()


def test_closing_waits_for_whoever_is_inside(upload: LocalUpload, system: OnDisk, store: LocalStore) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "pwrite" and not go_on.is_set():
            inside.set()
            assert go_on.wait(60)

    system.before = slow
    writer = threading.Thread(target=lambda: upload.write_at(memoryview(DATA), 0))
    writer.start()
    assert inside.wait(60)
    closers = [threading.Thread(target=upload.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    while upload._gate.phase is Phase.OPEN:
        # No close has begun yet.
        go_on.wait(0.001)
    with pytest.raises(UploadBusy):
        upload.wrote(0, 1)
    assert upload.descriptor >= 0
    go_on.set()
    for thread in (writer, *closers):
        thread.join()
    assert upload.descriptor == -1
    view = memoryview(bytearray(len(DATA)))
    again = store.open(upload.id)
    assert again.read_at(view, 0) == len(DATA)
    assert bytes(view) == DATA


# --- large and sparse ---------------------------------------------------------------------------


def test_a_sparse_hundred_gibibytes_need_a_journal_of_a_few_records(
    store: LocalStore, tmp_path: Path
) -> None:
    length = 100 << 30
    size = extent_size_for(length)
    upload = store.create(UploadSpec(ME, FileName("f"), length, size, holes=(Span(0, length - 1),)))
    assert list(upload.held) == [Span(0, length - size)]
    assert upload.digests == dict.fromkeys(range(length // size - 1), zero_digest(size))
    upload.close()
    assert (folder_of(tmp_path, upload) / "journal").stat().st_size <= 4 * RECORD_SIZE
    assert store.staged_bytes() < length


def test_a_second_upload_id_is_never_guessed_from_the_first(store: LocalStore) -> None:
    ids = {store.create(spec()).id for _ in range(5)}
    assert len(ids) == 5
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in ids)
    with pytest.raises(NotFound):
        store.open(UploadId("0" * 32))


def test_a_push_after_a_push_leaves_one_receipt_each(store: LocalStore) -> None:
    first, second = push(store, b"1", key="a"), push(store, b"2", key="a")
    assert store.receipt(first.upload) == first
    assert store.receipt(second.upload) == second


def test_bytes_lost_while_nobody_had_the_upload_are_not_held(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA)
    upload.close()
    os.truncate(folder_of(tmp_path, upload) / "data", 2 * EXTENT + 1)
    upload = store.open(upload.id)
    assert list(upload.held) == [Span(0, 2 * EXTENT)]
    send(upload, DATA, range(2, 4))
    publish(upload, DATA)
    assert visible(tmp_path / "inbox") == {"disk.img": DATA}


def test_publishing_never_fills_up_with_zeros_what_was_recorded(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create(spec(length=len(DATA)))
    send(upload, DATA)
    os.truncate(folder_of(tmp_path, upload) / "data", 3 * EXTENT)
    with pytest.raises(StorageError, match="sent again"):
        publish(upload, DATA)
    assert list(upload.held) == [Span(0, 3 * EXTENT)]
    send(upload, DATA, range(3, 4))
    publish(upload, DATA)
    assert visible(tmp_path / "inbox") == {"disk.img": DATA}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_want_of_descriptors_is_for_another_time(store: LocalStore, system: OnDisk, code: int) -> None:
    system.fail("open", code)
    with pytest.raises(Busy):
        store.create(spec(length=len(DATA)))
