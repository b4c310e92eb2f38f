"""An earlier version of a file: what a new one is made from, as far as the two are alike.

It may be written to, cut or removed at any time. Nothing that is taken from it counts before it has been read
where it was put, so none of that does harm.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from tdx.errors import disk_failure
from tdx.integrity import MIB
from tdx.model import Span
from tdx.store.datafile import write_full
from tdx.store.paths import Tree
from tdx.store.reading import data_in, new_buffer, read_full
from tdx.store.syscalls import NO_SPACE, System

COPY_MOST: Final = 8 * MIB
"""Bytes of one copy_file_range: between two, whoever wants it ended is heard."""


class LocalBase:
    """See :class:`tdx.store.port.Base`. ``clones`` and ``copies``: its filesystem has not refused yet to
    share its blocks with another file, or to copy them within the kernel."""

    def __init__(self, system: System, fd: int) -> None:
        """OSError. ``fd``: the file, which is closed with this."""
        self._system = system
        self.fd = fd
        self.size = system.fstat(fd).st_size
        self.clones = True
        self.copies = True

    @classmethod
    def open(cls, system: System, tree: Tree, name: str) -> LocalBase | None:
        """None where there is no such file, or an empty one. BadName, StorageError."""
        fd = tree.open_file(name)
        if fd is None:
            return None
        try:
            base = cls(system, fd)
        except OSError as error:
            system.close(fd)
            raise disk_failure(f"{name}: cannot be looked at", error) from error
        if base.size:
            return base
        base.close()
        return None

    def read_at(self, view: memoryview, offset: int) -> int:
        try:
            return read_full(self._system, self.fd, view, offset)
        except OSError:
            return 0

    def close(self) -> None:
        self._system.close(self.fd)

    def data_in(self, span: Span) -> Iterator[Span]:
        """What of ``span`` is no hole: all of it where the filesystem cannot tell."""
        at = span.start
        try:
            for data in data_in(self._system, self.fd, span):
                yield data
                at = data.end
        except OSError:
            yield Span(at, span.end)


def copy_from(
    base: LocalBase, system: System, fd: int, span: Span, name: str, go_on: Callable[[], None]
) -> None:
    """Make the bytes ``span`` of the file ``fd``, called ``name``, those of ``base``, as far as it goes and
    can be read: by sharing its blocks, or else by copying what is no hole. NoSpace, StorageError, and
    what ``go_on()`` raises, which is asked now and then."""
    end = min(span.end, base.size)
    if span.start >= end:
        return
    span = Span(span.start, end)
    if not _clone(base, system, fd, span, name):
        for part in base.data_in(span):
            copied = _copy(base, system, fd, part, name, go_on)
            _copy_by_hand(base, system, fd, copied, part.end, name, go_on)
        _reach(system, fd, end, name)


def _clone(base: LocalBase, system: System, fd: int, span: Span, name: str) -> bool:
    if not base.clones:
        return False
    try:
        system.clone_range(base.fd, fd, span.start, len(span))
    except OSError as error:
        _raise_if_full(error, name)
        # An end inside a block may be refused where the other file goes on: that one span is copied.
        base.clones = error.errno == errno.EINVAL and span.end == base.size
        return False
    return True


def _copy(base: LocalBase, system: System, fd: int, span: Span, name: str, go_on: Callable[[], None]) -> int:
    """Copy within the kernel; how far that came."""
    at = span.start
    while base.copies and at < span.end:
        go_on()
        try:
            done = system.copy_file_range(base.fd, fd, min(COPY_MOST, span.end - at), at)
        except InterruptedError:
            continue
        except OSError as error:
            _raise_if_full(error, name)
            base.copies = False
            break
        if not done:
            break
        at += done
    return at


def _copy_by_hand(
    base: LocalBase, system: System, fd: int, at: int, end: int, name: str, go_on: Callable[[], None]
) -> None:
    if at == end:
        return
    buffer = new_buffer()
    while at < end:
        go_on()
        done = base.read_at(buffer[: min(len(buffer), end - at)], at)
        if not done:
            return
        write_full(system, fd, buffer[:done], at, name)
        at += done


def _reach(system: System, fd: int, end: int, name: str) -> None:
    """A hole at the end of what was copied is part of the file, too."""
    try:
        # Others may be writing beyond: a file is never cut here, and no byte of theirs written over.
        if system.fstat(fd).st_size < end:
            system.pwrite(fd, b"\0", end - 1)
    except OSError as error:
        raise disk_failure(f"{name}: cannot be written", error) from error


def _raise_if_full(error: OSError, name: str) -> None:
    if error.errno in NO_SPACE:
        raise disk_failure(f"{name}: cannot be written", error) from error
