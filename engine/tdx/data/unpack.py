"""The entries of a bundle, taken off a request's body: few large reads, and views of what they brought."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tdx.errors import ProtocolError, TooLarge
from tdx.proto.bundle import (
    LENGTH_SIZE,
    MAX_CONTENT,
    MAX_ENTRIES,
    MAX_HEAD,
    Entry,
    parse_head,
    parse_length,
)

SMALLEST: Final = LENGTH_SIZE + MAX_HEAD
"""Bytes of the smallest buffer that will do."""


class Entries:
    """Reads one bundle, in one thread, by the ``readinto`` of its body (:class:`tdx.data.port.Body`).
    ``buffer`` is its own while it reads."""

    def __init__(
        self,
        readinto: Callable[[memoryview], int],
        buffer: memoryview,
        received: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``received(n)`` is told of each ``n`` bytes of content as they are handed out, or passed over."""
        self._readinto = readinto
        self._received = received
        self._buffer = buffer
        self._start = 0
        self._end = 0
        self._left = 0
        self._count = 0
        self._total = 0

    def next(self) -> Entry | None:
        """The next entry, whatever of the last one's content was not read; None at the end of the bundle.
        TooLarge for more than a bundle may have, ProtocolError, and what the body raises."""
        if self._left:
            for _ in self._parts():
                pass
        if self._end - self._start < LENGTH_SIZE:
            self._need(LENGTH_SIZE)
        length = parse_length(self._buffer, self._start)
        self._start += LENGTH_SIZE
        if not length:
            self._finish()
            return None
        if self._end - self._start < length:
            self._need(length)
        entry = parse_head(self._buffer[self._start : self._start + length])
        self._start += length
        self._count += 1
        self._total += entry.size
        if self._count > MAX_ENTRIES:
            raise TooLarge(f"a bundle of more than {MAX_ENTRIES} files")
        if self._total > MAX_CONTENT:
            raise TooLarge(f"a bundle with more than {MAX_CONTENT} bytes of content")
        self._left = entry.size
        return entry

    def content(self) -> Iterable[memoryview]:
        """The content of the entry that :meth:`next` returned last, in parts that are good until the
        next one is asked for. What the body raises, and ProtocolError where it ends."""
        start, size = self._start, self._left
        if not 0 < size <= self._end - start:
            return self._parts()
        self._start, self._left = start + size, 0
        self._received(size)
        return (self._buffer[start : start + size],)

    def _parts(self) -> Iterator[memoryview]:
        while self._left:
            if self._start == self._end:
                self._fill(self._left)
            part = self._buffer[self._start : min(self._end, self._start + self._left)]
            self._start += len(part)
            self._left -= len(part)
            self._received(len(part))
            yield part

    def _need(self, size: int) -> None:
        """Have ``size`` bytes in the buffer, in one piece."""
        while self._end - self._start < size:
            self._fill(size)

    def _fill(self, size: int) -> None:
        if self._start + size > len(self._buffer) or self._start == self._end:
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        n = self._readinto(self._buffer[self._end :])
        if not n:
            raise ProtocolError("the bundle ends without its end mark")
        self._end += n

    def _finish(self) -> None:
        if self._start < self._end or self._readinto(self._buffer):
            raise ProtocolError("the bundle goes on after its end mark")
