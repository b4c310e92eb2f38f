"""The real system calls, and what the store does where the system lacks them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdx.errors import Busy, NoSpace, StorageError, StorageUnusable, TdxError, TooLarge, disk_failure
from tdx.store import syscalls
from tdx.store.syscalls import System


@pytest.fixture
def fd(tmp_path: Path) -> Any:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_a_boot_has_an_id_that_stays() -> None:
    assert len(System().boot_id()) == 16
    assert System().boot_id() == System().boot_id()


def test_a_mount_has_an_id_that_stays(fd: int, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    assert System().mount_id(fd) == System().mount_id(other) > 0
    os.close(other)


def test_the_umask_is_read_without_being_changed() -> None:
    before = os.umask(0o027)
    try:
        assert System().umask() == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_filesystem_is_known_by_its_number(fd: int) -> None:
    assert System().filesystem(fd) > 0
    memory = os.open("/proc/self", os.O_RDONLY)
    assert System().filesystem(memory) == 0x9FA0
    os.close(memory)


def test_preallocation_keeps_the_size(fd: int) -> None:
    with contextlib.suppress(OSError):  # not every filesystem has it
        System().fallocate_keep_size(fd, 0, 1 << 20)
    assert os.fstat(fd).st_size == 0


def test_writeback_is_started(fd: int) -> None:
    os.pwrite(fd, bytes(4096), 0)
    System().start_writeback(fd, 0, 4096)
    with pytest.raises(OSError, match="Invalid"):
        System().start_writeback(fd, -1, 1)


def test_renaming_without_replacing(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "ä").write_bytes(b"1")
    (tmp_path / "taken").write_bytes(b"2")
    with pytest.raises(FileExistsError):
        System().rename_noreplace("ä", "taken", src_dir_fd=folder, dst_dir_fd=folder)
    System().rename_noreplace("ä", "ö", src_dir_fd=folder, dst_dir_fd=folder)
    assert (tmp_path / "ö").read_bytes() == b"1"
    os.close(folder)


def test_permission_bits_by_name(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    folder = os.open(tmp_path, os.O_RDONLY)
    System().chmod("f", 0o640, dir_fd=folder)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    os.close(folder)


def test_what_a_c_library_lacks_is_unsupported(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert syscalls._function("no such function") is None
    for name in ("_fallocate", "_sync_file_range", "_renameat2", "_fstatfs", "_statx"):
        monkeypatch.setattr(syscalls, name, None)
    system = System()
    calls: list[Callable[[], None]] = [
        lambda: system.fallocate_keep_size(fd, 0, 1),
        lambda: system.start_writeback(fd, 0, 1),
        lambda: system.rename_noreplace("a", "b", src_dir_fd=fd, dst_dir_fd=fd),
    ]
    for call in calls:
        with pytest.raises(OSError) as error:  # noqa: PT011
            call()
        assert error.value.errno in syscalls.UNSUPPORTED
    assert system.filesystem(fd) == 0
    assert system.mount_id(fd) == 0


def test_a_kernel_that_does_not_tell_the_mount(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*arguments: Any) -> int:
        return 0

    monkeypatch.setattr(syscalls, "_statx", silent)
    assert System().mount_id(fd) == 0


def test_without_proc_nothing_is_trusted_and_files_are_private(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*arguments: Any, **options: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert System().boot_id() == bytes(16)
    assert System().umask() == 0o077


def test_a_full_disk_is_told_from_a_failing_one() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT):
        assert isinstance(disk_failure("f", OSError(code, "full")), NoSpace)
    assert isinstance(disk_failure("f", OSError(errno.EIO, "broken")), StorageError)
    assert disk_failure("f", OSError("no number")).message == "f: no number"


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        (errno.EDQUOT, NoSpace, "quota"),
        (errno.EFBIG, TooLarge, "so large a file"),
        (errno.EROFS, StorageUnusable, "read-only"),
        (errno.EMFILE, Busy, "too many files open"),
    ],
)
def test_what_is_wrong_with_a_disk_is_named_and_permanent_unless_it_passes(
    code: int, error: type[TdxError], says: str
) -> None:
    found = disk_failure("f", OSError(code, os.strerror(code)))
    assert type(found) is error
    assert says in found.message
    assert found.permanent == (error is not Busy)
