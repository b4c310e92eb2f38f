"""Small files that only their owner may change: how they are written, and when they are believed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Final

from tdx.errors import ConfigError, StorageError

NOBODY_ELSE_READS: Final = 0o077
NOBODY_ELSE_WRITES: Final = 0o022

_NEW: Final = ".new"


def make_folder(folder: Path) -> None:
    """Make ``folder`` (0700) and its parents, durably; ConfigError where it cannot be made, is
    somebody else's, or others may write in it."""
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            _sync_folder(made.parent)
        _check(folder, folder.stat(), NOBODY_ELSE_WRITES)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Alone among the processes that lock ``folder``, which must be there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path, forbidden: int) -> tuple[bytes, os.stat_result] | None:
    """What ``path`` holds, and its status when it was opened; None where nothing is there.

    ConfigError where it is no regular file, is somebody else's, has a permission bit of
    ``forbidden``, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is no regular file")
        _check(path, status, forbidden)
        try:
            return file.read(), status
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path``, whole and durable or not at all. The caller has :func:`locked`
    the folder. StorageError where the disk fails.

    Its modification time is later than that of the file it replaces, however coarse the clock is.
    """
    new = path.with_name(path.name + _NEW)
    try:
        new.unlink(missing_ok=True)  # left by a process that was killed
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _make_later(descriptor, path)
            os.fsync(descriptor)
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _make_later(descriptor: int, than: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        before, now = than.lstat().st_mtime_ns, os.fstat(descriptor).st_mtime_ns
        if now <= before:
            os.utime(descriptor, ns=(before + 1, before + 1))


def _check(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid != os.geteuid():
        raise ConfigError(f"{path}: belongs to another user (uid {status.st_uid}), so it proves nothing")
    if status.st_mode & forbidden:
        what = "read" if forbidden == NOBODY_ELSE_READS else "change"
        raise ConfigError(f"{path}: others may {what} it; chmod go= {path}, if nobody else has used it")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
