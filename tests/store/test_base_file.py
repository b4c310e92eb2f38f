"""What is taken from an earlier version on the disk: by cloning, copying, by hand; its holes; its faults."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.base_conformance import nothing_ends, opened, stored
from store.conformance import EXTENT, content, spec
from store.faulty import FaultySystem
from tdx.errors import NoSpace, StorageError
from tdx.model import Conflict, FileName, Span
from tdx.store.local import LocalStore
from tdx.store.memory_disk import MemoryBase
from tdx.store.upload import LocalUpload

OLD = content(3 * EXTENT + 100)
ALL = Span(0, 4 * EXTENT)


class Sharing(FaultySystem):
    """A filesystem whose files can share blocks, as far as anybody can see."""

    def clone_range(self, source: int, target: int, offset: int, length: int) -> None:
        data = os.pread(source, length, offset)
        os.pwrite(target, data, offset)


class Apart(FaultySystem):
    """One whose files cannot."""

    def clone_range(self, source: int, target: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "inbox"
    path.mkdir()
    (path / "disk.img").write_bytes(OLD)
    return path


@pytest.fixture(params=[Apart, Sharing])
def system(request: pytest.FixtureRequest) -> FaultySystem:
    made = request.param()
    assert isinstance(made, FaultySystem)
    return made


@pytest.fixture
def store(folder: Path, tmp_path: Path, system: FaultySystem) -> Iterator[LocalStore]:
    made = LocalStore(folder, tmp_path / "state", reserve=0, system=system)
    yield made
    system.heal()
    made.close()


@pytest.fixture
def upload(store: LocalStore) -> LocalUpload:
    return store.create(spec(length=4 * EXTENT, conflict=Conflict.OVERWRITE))


def take(store: LocalStore, upload: LocalUpload, span: Span = ALL) -> bytes:
    base = opened(store)
    try:
        upload.take(base, span, nothing_ends)
    finally:
        base.close()
    return stored(upload, span)


def refuse(system: FaultySystem, *codes: tuple[str, int]) -> None:
    def before(name: str, _arguments: tuple[Any, ...]) -> None:
        for call, code in codes:
            if name == call:
                raise OSError(code, os.strerror(code))

    system.before = before


def test_blocks_are_shared_where_the_filesystem_can(folder: Path, tmp_path: Path) -> None:
    system = Sharing()
    store = LocalStore(folder, tmp_path / "state", reserve=0, system=system)
    upload = store.create(spec(length=4 * EXTENT, conflict=Conflict.OVERWRITE))
    system.log.clear()
    assert take(store, upload) == OLD
    assert "copy_file_range" not in system.log
    store.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM])
def test_where_it_cannot_bytes_are_copied(
    store: LocalStore, upload: LocalUpload, system: FaultySystem, code: int
) -> None:
    refuse(system, ("clone_range", code))
    assert take(store, upload) == OLD
    assert "copy_file_range" in system.log


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EXDEV, errno.EIO, errno.EPERM])
def test_where_that_fails_too_they_are_copied_by_hand(
    store: LocalStore, upload: LocalUpload, system: FaultySystem, code: int
) -> None:
    refuse(system, ("clone_range", errno.EOPNOTSUPP), ("copy_file_range", code))
    assert take(store, upload) == OLD


def test_a_copy_that_breaks_off_is_gone_on_with_by_hand(
    store: LocalStore, upload: LocalUpload, system: FaultySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(system, ("clone_range", errno.EOPNOTSUPP))
    copied: list[int] = []

    def faltering(_: FaultySystem, source: int, target: int, _count: int, offset: int) -> int:
        copied.append(offset)
        if len(copied) == 2:
            raise InterruptedError
        if len(copied) == 4:
            raise OSError(errno.EIO, "no further")
        return os.copy_file_range(source, target, 100, offset, offset)

    monkeypatch.setattr(type(system), "copy_file_range", faltering)
    assert take(store, upload) == OLD
    assert copied == [0, 100, 100, 200]


@pytest.mark.parametrize("call", ["clone_range", "copy_file_range", "pwrite"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_space(
    store: LocalStore, upload: LocalUpload, system: FaultySystem, call: str, code: int
) -> None:
    calls = ("clone_range", "copy_file_range", "pwrite")
    before = calls[: calls.index(call)]
    refuse(system, *((each, errno.EOPNOTSUPP) for each in before), (call, code))
    with pytest.raises(NoSpace):
        take(store, upload)


def test_an_old_file_that_cannot_be_read_is_no_help_and_no_failure(
    store: LocalStore, upload: LocalUpload, system: FaultySystem
) -> None:
    refuse(system, *((call, errno.EIO) for call in ("clone_range", "copy_file_range", "preadv")))
    base = opened(store)
    upload.take(base, ALL, nothing_ends)
    assert base.read_at(memoryview(bytearray(10)), 0) == 0
    system.heal()
    assert stored(upload, ALL) in (b"", bytes(len(OLD)))
    base.close()


def test_an_old_file_that_is_cut_meanwhile_gives_what_is_left(
    store: LocalStore, upload: LocalUpload, folder: Path
) -> None:
    base = opened(store)
    os.truncate(folder / "disk.img", 1000)
    upload.take(base, Span(0, EXTENT), nothing_ends)
    assert stored(upload, Span(0, EXTENT))[:1000] == OLD[:1000]
    base.close()


@pytest.mark.parametrize("system", [Apart], indirect=True)
@pytest.mark.parametrize("tells", [True, False], ids=["told", "not told"])
def test_holes_are_not_filled(store: LocalStore, system: FaultySystem, folder: Path, tells: bool) -> None:
    old, size = folder / "disk.img", 4 << 20
    with old.open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"x" * 65536)
    if old.stat().st_blocks * 512 > size // 2:
        pytest.skip("there are no holes on this filesystem")
    if not tells:
        refuse(system, ("seek", errno.EINVAL))
    upload = store.create(spec(length=size, conflict=Conflict.OVERWRITE))
    before = os.fstat(upload.descriptor).st_blocks
    assert take(store, upload, Span(0, size)) == old.read_bytes()
    if tells and not before:
        assert os.fstat(upload.descriptor).st_blocks * 512 < size // 4


def test_a_hole_at_the_end_never_cuts_what_others_write_behind_it(
    store: LocalStore, upload: LocalUpload, folder: Path
) -> None:
    os.truncate(folder / "disk.img", 0)
    os.truncate(folder / "disk.img", EXTENT)
    upload.write_at(memoryview(b"y" * 10), 3 * EXTENT)
    assert take(store, upload, Span(0, EXTENT)) == bytes(EXTENT)
    assert stored(upload, Span(3 * EXTENT, 3 * EXTENT + 10)) == b"y" * 10


@pytest.mark.parametrize("system", [Apart], indirect=True)
def test_a_hole_that_cannot_be_made_part_of_the_file_is_a_failure(
    store: LocalStore, upload: LocalUpload, folder: Path, system: FaultySystem
) -> None:
    os.truncate(folder / "disk.img", 0)
    os.truncate(folder / "disk.img", EXTENT)
    refuse(system, ("pwrite", errno.EIO))
    with pytest.raises(StorageError):
        take(store, upload, Span(0, EXTENT))


def symbolic(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("become", [symbolic, fifo, directory, Path.unlink])
def test_only_a_regular_file_is_taken_from(
    store: LocalStore, folder: Path, become: Callable[[Path], None]
) -> None:
    become(folder / "disk.img")
    assert store.open_base(FileName("disk.img")) is None


def test_a_file_that_cannot_be_looked_at_is_a_storage_error(store: LocalStore, system: FaultySystem) -> None:
    looks = 0

    def before(name: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal looks
        looks += name == "fstat"
        if name == "fstat" and looks == 2:  # the first is the tree's own
            raise OSError(errno.EIO, "broken")

    open_before = set(system.fds)
    system.before = before
    with pytest.raises(StorageError):
        store.open_base(FileName("disk.img"))
    assert system.fds == open_before


def test_a_base_of_another_store_is_refused(upload: LocalUpload) -> None:
    with pytest.raises(TypeError):
        upload.take(MemoryBase(OLD), ALL, nothing_ends)
