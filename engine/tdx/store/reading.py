"""Reading a file through its descriptor, and hashing what was read."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import Final

from tdx.integrity import MIB, new_hasher
from tdx.model import Span
from tdx.store.syscalls import System

BUFFER: Final = MIB
"""Large enough that a read and its hashing both let other threads run meanwhile."""


def new_buffer() -> memoryview:
    return memoryview(bytearray(BUFFER))


def read_full(system: System, fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset``; the bytes read, fewer only at the end of the file. OSError."""
    done = 0
    while done < len(view):
        try:
            count = system.preadv(fd, view[done:], offset + done)
        except InterruptedError:
            continue
        if count == 0:
            break
        done += count
    return done


def data_in(system: System, fd: int, span: Span) -> Generator[Span]:
    """The stretches of ``span`` that are no holes, ascending. OSError, also after some of them, where the
    filesystem does not tell, or contradicts itself."""
    at = span.start
    while at < span.end:
        start = system.next_data(fd, at)
        if start is None or start >= span.end:
            return
        at = system.next_hole(fd, start)
        if at <= start:
            raise OSError(errno.EIO, "data and a hole begin at the same place")
        yield Span(start, min(at, span.end))


def digest_of_span(system: System, fd: int, span: Span, buffer: memoryview) -> bytes | None:
    """The digest of these bytes; None where the file does not have them all. OSError."""
    hasher = new_hasher()
    at = span.start
    while at < span.end:
        part = buffer[: min(len(buffer), span.end - at)]
        if read_full(system, fd, part, at) < len(part):
            return None
        hasher.update(part)
        at += len(part)
    return hasher.digest()


def extent_digests(
    system: System, fd: int, extent_size: int, go_on: Callable[[], None] = lambda: None
) -> list[bytes]:
    """The digests of all extents of the file, in order. OSError, and what ``go_on()`` raises, which is asked
    after each read."""
    buffer = new_buffer()[: min(BUFFER, extent_size)]
    digests: list[bytes] = []
    hasher = new_hasher()
    at = 0
    while count := read_full(system, fd, buffer[: min(len(buffer), extent_size - at % extent_size)], at):
        go_on()
        hasher.update(buffer[:count])
        at += count
        if at % extent_size == 0:
            digests.append(hasher.digest())
            hasher = new_hasher()
    if at % extent_size:
        digests.append(hasher.digest())
    return digests
