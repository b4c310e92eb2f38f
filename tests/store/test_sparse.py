"""Zeros that take no room: what is read stays what it was, whatever the filesystem can or cannot."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.conformance import EXTENT, content, publish, push, send, spec
from store.faulty import FaultySystem, HalfWriting
from tdx.errors import StorageError
from tdx.model import FileName, Span
from tdx.store.local import LocalStore
from tdx.store.sparse import BLOCK, punch_zeros

ZEROS = bytes(BLOCK)
DATA = content(BLOCK)
SHARED = Path("/dev/shm")


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the filesystem that tests lie on, and one in memory."""
    if request.param == "disk":
        yield tmp_path
    elif not SHARED.is_dir():
        pytest.skip("there is no /dev/shm")
    else:
        with tempfile.TemporaryDirectory(dir=SHARED) as made:
            yield Path(made)


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture
def store(folder: Path, system: FaultySystem) -> Iterator[LocalStore]:
    store = LocalStore(folder / "inbox", folder / "state", reserve=0, system=system)
    yield store
    store.close()
    assert system.fds == set()


def blocks(path: Path) -> int:
    """The blocks that it takes, settled first: what is yet to be written counts in other ways."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return path.stat().st_blocks * 512 // BLOCK


def punched(system: FaultySystem, path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        punch_zeros(system, fd)
    finally:
        os.close(fd)


def parts(*kinds: int) -> bytes:
    return b"".join(DATA if kind else ZEROS for kind in kinds)


@pytest.mark.parametrize(
    ("before", "taken"),
    [
        pytest.param(parts(1, 1, 1), 3, id="no zeros"),
        pytest.param(parts(0, 0, 0, 0), 0, id="nothing else"),
        pytest.param(parts(0, 1, 0, 0, 1, 0), 2, id="runs between data"),
        pytest.param(parts(1, 0) + ZEROS[:-1], 2, id="a last block that is not whole stays"),
        pytest.param(DATA[:-1] + ZEROS + DATA[:1], 2, id="zeros off the boundary are no block"),
        pytest.param(parts(1) + bytes(3 << 20) + parts(1), 2, id="a run longer than what is read at once"),
        pytest.param(b"", 0, id="empty"),
    ],
)
def test_whole_blocks_of_zeros_take_no_room_and_nothing_else_changes(
    folder: Path, system: FaultySystem, before: bytes, taken: int
) -> None:
    path = folder / "f"
    path.write_bytes(before)
    punched(system, path)
    assert path.read_bytes() == before
    assert blocks(path) == taken


def test_what_is_a_hole_already_is_not_read(folder: Path, system: FaultySystem) -> None:
    path = folder / "f"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        os.pwrite(file.fileno(), DATA + ZEROS + DATA, 1 << 39)
    punched(system, path)
    assert system.log.count("preadv") <= 2
    assert path.stat().st_size == 1 << 40
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 3 * BLOCK, 1 << 39) == DATA + ZEROS + DATA
    assert blocks(path) <= 2


@settings(max_examples=40)
@given(st.lists(st.integers(0, 1), max_size=40), st.integers(0, BLOCK - 1), st.booleans())
def test_whatever_the_pattern_what_is_read_is_the_same(kinds: list[int], more: int, short: bool) -> None:
    before = parts(*kinds) + DATA[:more]
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "f"
        path.write_bytes(before)
        punched(HalfWriting() if short else FaultySystem(), path)
        assert path.read_bytes() == before
        # With many holes ext4 takes a block to note where the rest is.
        assert blocks(path) - (sum(kinds) + bool(more)) in (0, 1)


@pytest.mark.parametrize("call", ["fstat", "next_data", "next_hole", "preadv", "punch_hole"])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EIO, errno.ENOSPC])
def test_whatever_fails_the_file_stays_as_it_was(tmp_path: Path, call: str, code: int) -> None:
    path, system = tmp_path / "f", FaultySystem()
    path.write_bytes(parts(0, 1, 0))
    system.fail(call, code)
    punched(system, path)
    assert path.read_bytes() == parts(0, 1, 0)


def test_a_filesystem_that_contradicts_itself_ends_it(tmp_path: Path) -> None:
    class Confused(FaultySystem):
        def next_hole(self, fd: int, offset: int) -> int:
            return offset

    path = tmp_path / "f"
    path.write_bytes(parts(0, 1))
    punched(Confused(), path)
    assert path.read_bytes() == parts(0, 1)


def test_a_file_that_is_shorter_than_was_said_ends_it(tmp_path: Path) -> None:
    class Lying(FaultySystem):
        def next_hole(self, fd: int, offset: int) -> int:
            return 1 << 20

        def fstat(self, fd: int) -> os.stat_result:
            found = list(os.fstat(fd))
            found[6] = 1 << 20
            return os.stat_result(found)

    path = tmp_path / "f"
    path.write_bytes(parts(0, 1))
    punched(Lying(), path)
    assert path.read_bytes() == parts(0, 1)


# --- on its way to be published ----------------------------------------------------------


HALF = content(EXTENT) + bytes(EXTENT) + content(EXTENT) + bytes(2 * EXTENT)
assert EXTENT == BLOCK


@pytest.mark.parametrize("sparse", [True, False])
def test_only_what_comes_of_a_sparse_source_is_made_sparse(
    store: LocalStore, folder: Path, sparse: bool
) -> None:
    push(store, HALF, sparse=sparse, mtime_ns=10**18, mode=0o640)
    path = folder / "inbox" / "disk.img"
    assert path.read_bytes() == HALF
    assert blocks(path) == (2 if sparse else 5)
    assert (path.stat().st_mtime_ns, path.stat().st_mode & 0o777) == (10**18, 0o640)


def test_it_is_remembered_over_a_restart(store: LocalStore, folder: Path) -> None:
    upload = store.create(spec(length=len(HALF), sparse=True, source_id="s"))
    send(upload, HALF, range(2))
    upload.close()
    (partial,) = store.find(upload.spec.owner, FileName("disk.img"), len(HALF), "s")
    again = store.open(partial.upload)
    assert again.spec.sparse
    send(again, HALF, range(2, 5))
    publish(again, HALF)
    assert blocks(folder / "inbox" / "disk.img") == 2


def test_a_new_run_says_anew_whether_its_source_has_holes(store: LocalStore) -> None:
    upload = store.create(spec(sparse=True))
    upload.refresh(spec(sparse=False))
    assert not upload.spec.sparse
    upload.discard()


def test_holes_that_were_told_and_zeros_that_were_sent_end_alike(store: LocalStore, folder: Path) -> None:
    upload = store.create(spec(length=len(HALF), sparse=True, holes=(Span(3 * EXTENT, 5 * EXTENT),)))
    send(upload, HALF, range(3))
    publish(upload, HALF)
    path = folder / "inbox" / "disk.img"
    assert path.read_bytes() == HALF
    assert blocks(path) == 2


def test_holes_are_made_before_what_makes_them_durable(store: LocalStore, system: FaultySystem) -> None:
    upload = store.create(spec(length=len(HALF), sparse=True, mtime_ns=1))
    send(upload, HALF)
    begun = len(system.log)
    publish(upload, HALF)
    log = system.log[begun:]
    last = len(log) - 1 - log[::-1].index("punch_hole")
    assert last < log.index("utime") < log.index("fsync") < log.index("rename_noreplace")


def test_a_filesystem_without_holes_publishes_all_the_same(
    store: LocalStore, folder: Path, system: FaultySystem
) -> None:
    system.fail("punch_hole", errno.EOPNOTSUPP, times=9)
    push(store, HALF, sparse=True)
    assert (folder / "inbox" / "disk.img").read_bytes() == HALF


def test_a_sync_that_fails_after_it_is_final(store: LocalStore, folder: Path, system: FaultySystem) -> None:
    upload = store.create(spec(length=len(HALF), sparse=True))
    send(upload, HALF)

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fsync" and "punch_hole" in system.log:
            raise OSError(errno.EIO, "the disk is dying")

    system.before = before
    with pytest.raises(StorageError):
        publish(upload, HALF)
    system.heal()
    upload.close()
    assert not (folder / "inbox" / "disk.img").exists()
