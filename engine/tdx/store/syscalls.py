"""Every call of the store to the operating system, in one object that tests can make fail.

The methods are thin: same arguments, results and errors as the calls they are named
after. What Python lacks is called through the C library; where that lacks it too, or
the filesystem refuses it, the method says so with an OSError and the caller does without.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import time
from functools import cache
from typing import Any, Final

TMPFS: Final = 0x01021994
RAMFS: Final = 0x858458F6
BTRFS: Final = 0x9123683E
ZFS: Final = 0x2FC12FC1
BCACHEFS: Final = 0xCA451A4E
OVERLAY: Final = 0x794C7630

IN_MEMORY: Final = frozenset({TMPFS, RAMFS})
"""Filesystems without a disk: nothing to write back."""

NO_PREALLOCATION: Final = IN_MEMORY | {BTRFS, ZFS, BCACHEFS, OVERLAY}
"""Where reserved blocks cost time and reserve nothing: in memory, copy-on-write, or unknown underneath."""

EXT: Final = 0xEF53
XFS: Final = 0x58465342
F2FS: Final = 0xF2F52010

SYNCED_AS_A_WHOLE: Final = IN_MEMORY | {EXT, XFS, F2FS, BTRFS}
"""Where syncfs is known to leave what was written as durable as an fsync of each file does, and to tell of
what could not be written. Others may not pass it on to what lies below them (FUSE, overlayfs)."""

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})

_TELLING_SYNCFS: Final = (5, 8)
"""The kernel from which on syncfs reports failed writes."""

_FLOCK: Final = "hhqqi4x"
"""struct flock: type, whence, start, length, pid."""

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_SYNC_FILE_RANGE_WRITE: Final = 2
_RENAME_NOREPLACE: Final = 1
_AT_EMPTY_PATH: Final = 0x1000
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_FICLONERANGE: Final = 0x4020940D
_CLONE_RANGE: Final = struct.Struct("=qQQQ")
_STATX_SIZE: Final = 256
_STATX_MNT_ID_OFFSET: Final = 144

_libc = ctypes.CDLL(None, use_errno=True)


def _function(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name, None)
    if function is not None:
        function.argtypes = argtypes
        function.restype = ctypes.c_int
    return function


_fallocate = _function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_sync_file_range = _function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_renameat2 = _function(
    "renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint
)
_syncfs = _function("syncfs", ctypes.c_int)
_fstatfs = _function("fstatfs", ctypes.c_int, ctypes.c_void_p)
_statx = _function("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def _call(function: Any, *arguments: Any) -> None:
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class System:
    """The real calls. Tests derive from it."""

    # --- clocks and identities ------------------------------------------------

    def monotonic(self) -> float:
        return time.monotonic()

    def boot_id(self) -> bytes:
        """16 bytes that change with every boot; zeros where the system has none."""
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                return bytes.fromhex(file.read().strip().replace("-", ""))
        except (OSError, ValueError):
            return bytes(16)

    def mount_id(self, fd: int) -> int:
        """The mount that ``fd`` lies on, never used again where the kernel can promise that
        (6.8 and later); 0 where it cannot be told."""
        buffer = ctypes.create_string_buffer(_STATX_SIZE)
        try:
            _call(_statx, fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, buffer)
        except OSError:
            return 0
        mask = int.from_bytes(buffer.raw[:4], "little")
        if not mask & (_STATX_MNT_ID | _STATX_MNT_ID_UNIQUE):
            return 0
        return int.from_bytes(buffer.raw[_STATX_MNT_ID_OFFSET : _STATX_MNT_ID_OFFSET + 8], "little")

    def filesystem(self, fd: int) -> int:
        """The filesystem's magic number; 0 where it cannot be told."""
        buffer = ctypes.create_string_buffer(256)
        try:
            _call(_fstatfs, fd, buffer)
        except OSError:
            return 0
        return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF

    def umask(self) -> int:
        """The process's mask, read without changing it even for a moment."""
        try:
            with open("/proc/self/status", encoding="ascii", errors="replace") as file:
                return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
        except (OSError, StopIteration):
            return 0o077

    def geteuid(self) -> int:
        return os.geteuid()

    # --- names ------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def flock(self, fd: int, operation: int) -> None:
        fcntl.flock(fd, operation)

    def lock_byte(self, fd: int, offset: int) -> None:
        """Lock one byte of a file, there or not, for this open file description, until it is closed or the
        byte unlocked (fcntl(2), F_OFD_SETLK). BlockingIOError where another one has it."""
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
        except PermissionError as error:  # POSIX allows for EACCES
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def unlock_byte(self, fd: int, offset: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0))

    def mkdir(self, path: str, mode: int, *, dir_fd: int) -> None:
        os.mkdir(path, mode, dir_fd=dir_fd)

    def rmdir(self, path: str, *, dir_fd: int) -> None:
        os.rmdir(path, dir_fd=dir_fd)

    def unlink(self, path: str, *, dir_fd: int) -> None:
        os.unlink(path, dir_fd=dir_fd)

    def link(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)

    def symlink(self, target: str, path: str, *, dir_fd: int) -> None:
        os.symlink(target, path, dir_fd=dir_fd)

    def readlink(self, path: str, *, dir_fd: int) -> str:
        return os.readlink(path, dir_fd=dir_fd)

    def rename(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def rename_noreplace(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """renameat2(RENAME_NOREPLACE): FileExistsError where ``target`` is taken."""
        _call(_renameat2, src_dir_fd, os.fsencode(source), dst_dir_fd, os.fsencode(target), _RENAME_NOREPLACE)

    def listdir(self, fd: int) -> list[str]:
        """By a description of its own: threads that list by the same one miss entries, and btrfs lists
        nothing that was made since it was opened or last rewound. Nothing is in a folder that is removed."""
        try:
            own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(own)
        finally:
            os.close(own)

    def stat(self, path: str, *, dir_fd: int) -> os.stat_result:
        """Never follows a link."""
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def fstatvfs(self, fd: int) -> os.statvfs_result:
        return os.fstatvfs(fd)

    # --- bytes ------------------------------------------------------------------

    def read(self, fd: int, count: int) -> bytes:
        return os.read(fd, count)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def preadv(self, fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def clone_range(self, source: int, target: int, offset: int, length: int) -> None:
        """Have ``target`` share the blocks of ``source`` there (ioctl_ficlonerange(2))."""
        fcntl.ioctl(target, _FICLONERANGE, _CLONE_RANGE.pack(source, offset, length, offset))

    def copy_file_range(self, source: int, target: int, count: int, offset: int) -> int:
        """Copy up to ``count`` bytes at ``offset`` to the same place; 0 at the end of ``source``."""
        return os.copy_file_range(source, target, count, offset, offset)

    def next_data(self, fd: int, offset: int) -> int | None:
        """Where data begin at ``offset`` or after it; None where none do. Moves the descriptor's offset, as
        :meth:`next_hole` does. OSError where the filesystem does not tell."""
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def next_hole(self, fd: int, offset: int) -> int:
        """Where a hole begins at ``offset`` or after it; the end of the file counts as one."""
        return os.lseek(fd, offset, os.SEEK_HOLE)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def fallocate_keep_size(self, fd: int, offset: int, length: int) -> None:
        _call(_fallocate, fd, _KEEP_SIZE, offset, length)

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        """fallocate(PUNCH_HOLE): these bytes become zeros that take no room."""
        _call(_fallocate, fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def fchmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def chmod(self, path: str, mode: int, *, dir_fd: int) -> None:
        os.chmod(path, mode, dir_fd=dir_fd)

    def utime(self, fd: int, mtime_ns: int) -> None:
        os.utime(fd, ns=(mtime_ns, mtime_ns))

    def utime_of_link(self, path: str, mtime_ns: int, *, dir_fd: int) -> None:
        os.utime(path, ns=(mtime_ns, mtime_ns), dir_fd=dir_fd, follow_symlinks=False)

    # --- durability ---------------------------------------------------------------

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """sync_file_range(WRITE): starts the writing and waits for none of it, for a wait
        would take the error away from the fdatasync that must report it."""
        _call(_sync_file_range, fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def syncfs(self, fd: int) -> None:
        """Make everything on the filesystem of ``fd`` durable. Fails for anything on it that could not be
        written since ``fd`` was opened; with ENOSYS where the kernel would not tell."""
        if not _syncfs_tells():
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        _call(_syncfs, fd)


@cache
def _syncfs_tells() -> bool:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return release is not None and (int(release[1]), int(release[2])) >= _TELLING_SYNCFS
