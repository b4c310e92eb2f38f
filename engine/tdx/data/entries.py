"""The sending pump of bundles: small files are read, hashed and framed into one buffer, and sent from there.

Straight-line code for one thread: what is spent on a file here is what a push of many small files costs
the sender (docs/decisions/007-small-files.md).
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import Final

from tdx.data.buffers import BUFFERS
from tdx.data.port import Cancel, SendHooks
from tdx.data.send import send_buffer
from tdx.data.source import settled
from tdx.errors import ProtocolError, SourceChanged
from tdx.integrity import digest_of
from tdx.model import Span, Stages, shown
from tdx.proto.bundle import END, MAX_CONTENT, Entry, encode_head

_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SIZE_LINE: Final = b"%08x\r\n"
_SIZE_LINE_BYTES: Final = 10
_CRLF: Final = b"\r\n"
_LAST: Final = b"0\r\n\r\n"
_ROOM: Final = len(_CRLF) + len(END) + len(_LAST)


@dataclass(slots=True, eq=False)
class SmallFile:
    """One file on its way in a bundle. ``key`` is its own random id.

    ``size`` and ``digest`` are of the content as it was sent first; ``digest`` is empty until then.
    ``aside``: it is not in the bundle, because it is not what a bundle takes, cannot be read, or was
    written to while it was read. ``error``: it was sent once and is no longer what it was.
    ``status`` is what stat told of what was sent, and ``settled``, that any change since shows in it.
    """

    path: str
    name: str
    key: str
    size: int = 0
    digest: bytes = b""
    sent: int = 0
    aside: bool = False
    error: SourceChanged | None = None
    status: os.stat_result | None = None
    settled: bool = False


class EntriesSend:
    """Sends one bundle, in chunked coding (RFC 9112 section 7.1).

    ``pace(n)`` and ``piece(n)`` as :class:`tdx.data.port.SendHooks` has them, the latter called ``most``
    there; ``sent(n)`` gets bytes of content.
    """

    def __init__(
        self,
        most: int,
        sent: Callable[[int], None],
        pace: Callable[[int], float],
        piece: Callable[[int], int] = lambda n: n,
    ) -> None:
        """``most``: bytes of the largest file, of which one and its head fit in a buffer."""
        self._most = most
        self._sent = sent
        self._hooks = SendHooks(sent=_ignore, hashed=_ignore_digest, pace=pace, most=piece)

    def send(
        self,
        sock: socket.socket,
        files: Sequence[SmallFile],
        cancel: Cancel,
        stall_timeout: float,
        stages: Stages,
    ) -> None:
        """Send what can be read of ``files``; errors and ``stages`` as for :class:`tdx.data.port.SendPump`,
        errors of the files apart, which :class:`SmallFile` tells."""
        began, now = perf_counter(), time()
        out = _Framing(sock, replace(self._hooks, stages=stages), self._sent, cancel, stall_timeout)
        scratch = BUFFERS.take()
        content = 0
        try:
            for file in files:
                head = _read(file, scratch, min(self._most, MAX_CONTENT - content))
                if head is None:
                    _put_aside(file)
                else:
                    out.add(file, head, scratch)
                    file.settled = file.status is not None and settled(file.status, now)
                    content += file.size
            out.finish()
        finally:
            BUFFERS.give(scratch)
            out.close()
            stages.read = perf_counter() - began - stages.send - stages.limit


class _Framing:
    """Entries in a buffer, which goes out as a chunk each time it is full."""

    def __init__(
        self,
        sock: socket.socket,
        hooks: SendHooks,
        sent: Callable[[int], None],
        cancel: Cancel,
        stall_timeout: float,
    ) -> None:
        self._sock = sock
        self._hooks = hooks
        self._sent = sent
        self._cancel = cancel
        self._stall_timeout = stall_timeout
        self._buffer = BUFFERS.take()
        self._at = _SIZE_LINE_BYTES
        self._most = len(self._buffer) - _ROOM
        self._framed: list[SmallFile] = []

    def add(self, file: SmallFile, head: bytes, content: memoryview) -> None:
        """An entry: its head, and the first ``file.size`` bytes of ``content``."""
        at, size = self._at, file.size
        start = at + len(head)
        if start + size > self._most:
            self._flush(_CRLF)
            at, start = _SIZE_LINE_BYTES, _SIZE_LINE_BYTES + len(head)
        self._buffer[at:start] = head
        self._at = start + size
        self._buffer[start : self._at] = content[:size]
        self._framed.append(file)

    def finish(self) -> None:
        end = self._at + len(END)
        self._buffer[self._at : end] = END
        self._at = end
        self._flush(_CRLF + _LAST)

    def close(self) -> None:
        BUFFERS.give(self._buffer)

    def _flush(self, tail: bytes) -> None:
        buffer, at = self._buffer, self._at
        buffer[:_SIZE_LINE_BYTES] = _SIZE_LINE % (at - _SIZE_LINE_BYTES)
        end = at + len(tail)
        buffer[at:end] = tail
        send_buffer(self._sock, buffer[:end], self._hooks, self._cancel, self._stall_timeout)
        total = 0
        for file in self._framed:
            file.sent += file.size
            total += file.size
        self._sent(total)
        self._framed.clear()
        self._at = _SIZE_LINE_BYTES


def _read(file: SmallFile, view: memoryview, most: int) -> bytes | None:
    """Read the file into ``view`` and return its head, or None where it is to stay out of the bundle."""
    try:
        descriptor = os.open(file.path, _FLAGS)
        try:
            before = os.fstat(descriptor)
            size = before.st_size
            if not stat.S_ISREG(before.st_mode) or size > most:
                return None
            # One byte more than there should be, so that growth shows, and what has no size of its own.
            got = os.readv(descriptor, [view[: size + 1]])
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    if (
        got != size
        or after.st_size != size
        or after.st_mtime_ns != before.st_mtime_ns
        or after.st_ctime_ns != before.st_ctime_ns
    ):
        return None
    digest = digest_of(view[:size])
    if file.digest and file.digest != digest:
        return None
    entry = Entry(file.name, size, digest, file.key, before.st_mtime_ns, before.st_mode & 0o777)
    try:
        head = encode_head(entry)
    except ProtocolError:
        return None
    file.size, file.digest, file.status = size, digest, before
    return head


def _put_aside(file: SmallFile) -> None:
    file.aside = True
    if file.digest:
        # Under its key the receiver may have published what was there before.
        file.error = SourceChanged(
            f"{shown(file.path)}: changed or went away while being sent; push it again when it is complete"
        )


def _ignore(_: int) -> None:
    """What is framed is not content: that is counted apart."""


def _ignore_digest(_span: Span, _digest: bytes) -> None:
    """Taken before."""
