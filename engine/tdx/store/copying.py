"""Copying a file to another filesystem under a hidden name, hashing what is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable
from typing import Final

from tdx.errors import SourceChanged, StorageError, disk_failure
from tdx.integrity import Root, new_hasher
from tdx.model import UploadId
from tdx.store.reading import new_buffer, read_full
from tdx.store.syscalls import System

PREFIX: Final = ".tdx-get-"
"""What names of unfinished copies begin with."""

_DIGITS: Final = 16
_NAME: Final = re.compile(re.escape(PREFIX) + f"[0-9a-f]{{{_DIGITS}}}")
_TRIES: Final = 100

_WRITE: Final = 512 << 10
"""Bytes of one write (docs/decisions/015-writes.md)."""

_WRITEBACK: Final = 8 << 20
"""Bytes after which their way to the disk begins, so that the sync at the end is short."""


class Copy:
    """A copy in the making, in the open directory ``folder``: a hidden file that is locked (flock) as long
    as this process lives, so that it is nobody else's. :meth:`close` removes it unless it has been
    ``named``."""

    def __init__(self, system: System, folder: int, upload: UploadId) -> None:
        """Of the file that ``upload`` brought. OSError."""
        self._system = system
        self._folder = folder
        self.named = False
        # Whoever moves this file after a run that was killed comes across the copy which that one left.
        self.name = PREFIX + upload[-_DIGITS:]
        for _ in range(_TRIES):
            try:
                self.fd = system.open(
                    self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder
                )
            except FileExistsError:
                with contextlib.suppress(OSError):
                    _remove(system, folder, self.name)
                self.name = PREFIX + secrets.token_hex(_DIGITS // 2)
                continue
            try:
                # Before it was locked it may have been taken for what a killed run left.
                system.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if system.fstat(self.fd).st_nlink:
                    return
            except BlockingIOError:
                pass
            except BaseException:
                self.close()
                raise
            self.close()
        raise StorageError("no name can be kept for a copy: somebody removes each")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if not self.named:
                self._system.unlink(self.name, dir_fd=self._folder)
        self._system.close(self.fd)

    def fill(self, source: int, size: int, extent_size: int, check: Callable[[], None]) -> Root:
        """Copy all ``size`` bytes of ``source``; the root of what was written. Holes stay holes. ``check`` is
        called every 512 KiB, and may raise. SourceChanged where there are fewer bytes; TdxError."""
        system, buffer, hasher = self._system, new_buffer()[:_WRITE], new_hasher()
        digests: list[bytes] = []
        data, at = self._next_data(source, 0, size), 0
        while at < size:
            check()
            part = buffer[: min(len(buffer), extent_size - at % extent_size, size - at)]
            try:
                got = read_full(system, source, part, at)
            except OSError as error:
                raise disk_failure("what was received cannot be read", error) from error
            if got < len(part):
                raise SourceChanged("it is shorter than what was received")
            if at + len(part) > data:
                self._write(part, at)
                data = self._next_data(source, at + len(part), size)
            hasher.update(part)
            at += len(part)
            if at % _WRITEBACK == 0:
                with contextlib.suppress(OSError):
                    system.start_writeback(self.fd, at - _WRITEBACK, _WRITEBACK)
            if at % extent_size == 0 or at == size:
                digests.append(hasher.digest())
                hasher = new_hasher()
        system.ftruncate(self.fd, size)
        return Root.over(digests, size, extent_size)

    def _next_data(self, source: int, at: int, size: int) -> int:
        try:
            found = self._system.next_data(source, at)
        except OSError:
            return at
        return size if found is None else found

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            done = self._system.pwrite(self.fd, data, offset)
            data, offset = data[done:], offset + done


def remove_leftovers(system: System, folder: int) -> None:
    """Remove what killed runs left in a directory: unfinished copies of ours that nobody has locked."""
    with contextlib.suppress(OSError):
        for name in system.listdir(folder):
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove(system, folder, name)


def _remove(system: System, folder: int, name: str) -> None:
    fd = system.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        system.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = system.fstat(fd)
        # Whoever has finished its copy meanwhile has given it another name.
        same = system.stat(name, dir_fd=folder).st_ino == found.st_ino
        if same and stat.S_ISREG(found.st_mode) and found.st_uid == system.geteuid():
            system.unlink(name, dir_fd=folder)
    finally:
        system.close(fd)
