"""The room on the disk of a store: what may still be promised, and what is set aside."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Protocol

from tdx.errors import NoSpace, disk_failure
from tdx.integrity import MIN_EXTENT
from tdx.model import UploadSpec
from tdx.store.journal import data_ranges
from tdx.store.rules import check_space
from tdx.store.syscalls import NO_SPACE, System


class Taker(Protocol):
    """Something that was promised space and is filling it."""

    def still_needed(self) -> int: ...


class Space:
    """Several threads at once."""

    def __init__(self, system: System, fd: int, reserve: int) -> None:
        """``fd``: a directory of the filesystem, ``reserve`` the bytes of it that are never filled."""
        self._system = system
        self._fd = fd
        self._reserve = reserve
        self._lock = threading.Lock()
        self._takers: set[Taker] = set()
        self._promised = 0

    def unreserved(self) -> int:
        """What is free beyond the reserve, whoever it is promised to. OSError."""
        disk = self._system.fstatvfs(self._fd)
        return disk.f_bavail * disk.f_frsize - self._reserve

    def free(self) -> int:
        """What may still be promised. StorageError."""
        with self._lock:
            return max(0, self._free())

    def _free(self) -> int:
        try:
            needed = sum(taker.still_needed() for taker in self._takers)
            return self.unreserved() - needed - self._promised
        except OSError as error:
            raise disk_failure("free space cannot be told", error) from error

    @contextlib.contextmanager
    def promise(self, spec: UploadSpec) -> Generator[None]:
        """Space for an upload in the making, so that two at once are not promised the same. NoSpace."""
        with self._lock:
            promised = check_space(spec, self._free())
            self._promised += promised
        try:
            yield
        finally:
            with self._lock:
                self._promised -= promised

    def admit(self, taker: Taker) -> None:
        """It needs what it says, or at least a byte: NoSpace where that is not free."""
        with self._lock:
            need, free = max(1, taker.still_needed()), max(0, self._free())
            if need > free:
                raise NoSpace(f"{need} bytes are needed, and {free} may be used", needed=need, free=free)
            self._takers.add(taker)

    def add(self, taker: Taker) -> None:
        """What it needs has been promised."""
        with self._lock:
            self._takers.add(taker)

    def remove(self, taker: Taker) -> None:
        with self._lock:
            self._takers.discard(taker)

    def preallocate(self, fd: int, spec: UploadSpec) -> None:
        """Set aside the blocks that the file ``fd`` will fill; NoSpace where there are none. A filesystem
        that refuses is written without."""
        ranges = data_ranges(spec.length or 0, spec.extent_size, spec.holes)
        if ranges.total() < MIN_EXTENT:
            return
        for span in ranges:
            try:
                self._allocate(fd, span.start, len(span))
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise disk_failure(spec.name, error) from error
                return

    def _allocate(self, fd: int, offset: int, length: int) -> None:
        while True:
            try:
                return self._system.fallocate_keep_size(fd, offset, length)
            except InterruptedError:
                continue
