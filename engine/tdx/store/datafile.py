"""The file that an upload's bytes are gathered in, before it becomes the published one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tdx.errors import NoSpace, StorageError, disk_failure
from tdx.integrity import MIB
from tdx.model import Span
from tdx.store.folders import Folder
from tdx.store.reading import digest_of_span, read_full
from tdx.store.sparse import punch_zeros
from tdx.store.syscalls import System

WRITEBACK_WINDOW: Final = 8 * MIB
"""Writing to disk is started each time a writer has filled one of these."""

WRITE_MOST: Final = MIB // 2
"""Bytes of one write. For a longer one ext4 may look for memory in pieces as long as that, which has taken
three times as long as the rest of the write (docs/decisions/015-writes.md)."""

SPACE_BYTES: Final = 16 * MIB
"""Free space is looked at each time an upload of unknown length has grown by this much."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What holds for all uploads of a store. ``writeback``: whether there is a disk that is better
    written to early; ``umask`` of the process; ``unreserved`` tells the bytes that are free
    beyond the reserve, cheaply (OSError)."""

    writeback: bool
    umask: int
    unreserved: Callable[[], int]


class Growth:
    """Watches free space while something grows that nobody can tell the size of. Several threads at once.
    ``name`` is for messages."""

    def __init__(self, name: str, disk: Disk) -> None:
        self._name = name
        self._disk = disk
        self._lock = threading.Lock()
        self._grown = 0

    def check(self, size: int) -> None:
        """NoSpace once growth, ``size`` more bytes, has come to the reserve; StorageError."""
        with self._lock:
            self._grown += size
            if self._grown < SPACE_BYTES:
                return
            self._grown = 0
        try:
            free = self._disk.unreserved()
        except OSError as error:
            raise disk_failure("free space cannot be told", error) from error
        if free <= 0:
            with self._lock:
                # The next bytes ask again.
                self._grown = SPACE_BYTES
            raise NoSpace(f"{self._name}: the disk is full up to its reserve", free=0)


def write_full(system: System, fd: int, data: memoryview, offset: int, name: str) -> None:
    """Write all of ``data``, to what messages call ``name``. NoSpace, StorageError."""
    try:
        while data:
            try:
                done = system.pwrite(fd, data[:WRITE_MOST], offset)
            except InterruptedError:
                continue
            if done == 0:
                raise StorageError(f"{name}: the disk takes no more bytes")
            offset += done
            data = data[done:]
    except OSError as error:
        raise disk_failure(f"{name}: cannot be written", error) from error


class DataFile:
    """The open ``data`` of a claimed folder. Calls from several threads may overlap; the caller sees to
    it that none comes after the folder is closed. ``name`` is for messages."""

    def __init__(self, system: System, folder: Folder, name: str, disk: Disk) -> None:
        self._system = system
        self._folder = folder
        self._name = name
        self._disk = disk
        self._growth = Growth(name, disk)

    def taken(self) -> int:
        """Bytes of the disk that it takes. OSError."""
        return self._system.fstat(self._folder.data).st_blocks * 512

    def size(self) -> int:
        """StorageError."""
        try:
            return self._system.fstat(self._folder.data).st_size
        except OSError as error:
            raise disk_failure(f"{self._name}: cannot be looked at", error) from error

    def write(self, data: memoryview, offset: int) -> None:
        """NoSpace, StorageError."""
        write_full(self._system, self._folder.data, data, offset, self._name)
        self.wrote(offset, len(data))

    def wrote(self, offset: int, length: int) -> None:
        """Start writing to disk what somebody has written, a window at a time."""
        first = offset // WRITEBACK_WINDOW
        end = (offset + length) // WRITEBACK_WINDOW
        if self._disk.writeback and end > first:
            # Only a hint: an error of the disk is for the next fdatasync to report.
            with contextlib.suppress(OSError):
                self._system.start_writeback(
                    self._folder.data, first * WRITEBACK_WINDOW, (end - first) * WRITEBACK_WINDOW
                )

    def check_room(self, size: int) -> None:
        """See :meth:`Growth.check`."""
        self._growth.check(size)

    def read(self, view: memoryview, offset: int) -> int:
        """Fill ``view``; the bytes read, fewer only at the end. StorageError."""
        try:
            return read_full(self._system, self._folder.data, view, offset)
        except OSError as error:
            raise disk_failure(f"{self._name}: cannot be read", error) from error

    def digest_of(self, span: Span, buffer: memoryview) -> bytes | None:
        """None where the disk does not give these bytes: sending them again may mend it."""
        try:
            return digest_of_span(self._system, self._folder.data, span, buffer)
        except OSError:
            return None

    def punch_zeros(self) -> None:
        """Let blocks of zeros take no room, where the filesystem can. It changes the mtime."""
        punch_zeros(self._system, self._folder.data)

    def give_attributes(self, size: int, mode: int | None, mtime_ns: int | None) -> None:
        """What the published file is to have: its exact length (StorageError), and as far as the
        filesystem can, permission bits and mtime."""
        bits = 0o666 & ~self._disk.umask if mode is None else mode & 0o777
        try:
            if self._system.fstat(self._folder.data).st_size != size:
                self._system.ftruncate(self._folder.data, size)
        except OSError as error:
            raise disk_failure(f"{self._name}: cannot be given its length", error) from error
        # Not every filesystem has permission bits, or room for every date.
        with contextlib.suppress(OSError):
            self._system.fchmod(self._folder.data, bits)
        if mtime_ns is not None:
            with contextlib.suppress(OSError, OverflowError):
                self._system.utime(self._folder.data, mtime_ns)

    def sync(self) -> None:
        """Make the bytes durable. OSError."""
        self._system.fdatasync(self._folder.data)

    def sync_all(self) -> None:
        """Make the bytes and the attributes durable. OSError."""
        self._system.fsync(self._folder.data)
