"""The two ends of a patch: runs of bytes out of a file, and into one (the format is tdx.proto.patch's)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

from tdx.data.buffers import BUFFERS
from tdx.data.port import Body, Cancel, ReceiveHooks, SendHooks, Sink
from tdx.data.send import send_buffer
from tdx.errors import ProtocolError, SourceChanged, SourceError
from tdx.model import Span, Stages
from tdx.proto.patch import (
    COUNT,
    LISTED_SIZE,
    MAX_LISTED,
    MAX_RUN,
    RUN,
    Listed,
    encode_list,
    encode_run,
    parse_list,
)

Kept = Callable[[Sequence[Listed]], Callable[[Span], bool]]
"""Told the extents of a patch; what it returns says of each run whether it is to be written: its bytes lie in
one of those extents, or ProtocolError."""

_ROOM: Final = RUN.size + MAX_RUN


def send_patch(
    sock: socket.socket,
    descriptor: int,
    extents: Sequence[Listed],
    runs: Sequence[Span],
    sent: Callable[[int], None],
    pace: Callable[[int], float],
    cancel: Cancel,
    stall_timeout: float,
    stages: Stages,
) -> None:
    """Send a patch: ``runs`` of the file ``descriptor``, ascending, each at most ``MAX_RUN`` long.
    ``sent(n)`` is told the bytes of content that went out. Errors and ``stages`` as
    :class:`tdx.data.port.SendPump`."""
    content = 0
    hooks = SendHooks(sent=_ignore, hashed=_ignore_digest, pace=pace, stages=stages)
    buffer = BUFFERS.take()

    def flush(end: int) -> None:
        nonlocal content
        send_buffer(sock, buffer[:end], hooks, cancel, stall_timeout)
        sent(content)
        content = 0

    try:
        head = COUNT.pack(len(extents)) + encode_list(extents)
        at = len(head)
        buffer[:at] = head
        for run in runs:
            if at + RUN.size + len(run) > len(buffer):
                flush(at)
                at = 0
            start = at + RUN.size
            buffer[at:start] = encode_run(run)
            at = start + len(run)
            began = perf_counter()
            _read(descriptor, buffer[start:at], run.start)
            stages.read += perf_counter() - began
            content += len(run)
        flush(at)
    finally:
        BUFFERS.give(buffer)


def _read(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        try:
            n = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise SourceError(f"cannot read the source: {error.strerror}") from error
        if not n:
            raise SourceChanged(f"the source ends at {offset + done} now: it was cut while being sent")
        done += n


class PatchReceive:
    """Receives one patch into a file of ``length`` bytes, in the caller's thread."""

    def __init__(self, body: Body, sink: Sink, length: int, extent_size: int, hooks: ReceiveHooks) -> None:
        """Of the hooks, ``received``, ``discarded`` and ``turn`` are used; the first two are told content."""
        self.stages = hooks.stages
        self._body = body
        self._sink = sink
        self._length = length
        self._extent_size = extent_size
        self._hooks = hooks
        self._buffer = memoryview(b"")
        self._start: int = 0
        self._end: int = 0
        self._reached: int = 0

    def receive(self, kept: Kept, cancel: Cancel) -> list[Listed]:
        """Write every run that is to be ``kept``; the extents that the patch is for. ProtocolError for what
        is no patch, and what the body and the sink raise."""
        self._buffer = BUFFERS.take()
        try:
            self._need(COUNT.size)
            count: int = COUNT.unpack_from(self._buffer, self._start)[0]
            if not 0 < count <= MAX_LISTED:
                raise ProtocolError(f"a patch is for 1 to {MAX_LISTED} extents")
            self._start += COUNT.size
            size = count * LISTED_SIZE
            self._need(size)
            view = self._buffer[self._start : self._start + size]
            extents = parse_list(view, self._length, self._extent_size)
            self._start += size
            keep = kept(extents)
            while self._more():
                self._take_run(keep, cancel)
            return extents
        finally:
            BUFFERS.give(self._buffer)

    def _take_run(self, keep: Callable[[Span], bool], cancel: Cancel) -> None:
        self._need(RUN.size)
        offset: int
        size: int
        offset, size = RUN.unpack_from(self._buffer, self._start)
        if not 0 < size <= MAX_RUN or offset + size > self._length or offset < self._reached:
            raise ProtocolError("a run of a patch is empty, too long, beyond the file, or goes backwards")
        span = Span(offset, offset + size)
        wanted = keep(span)
        self._start += RUN.size
        self._need(size)
        self._reached = span.end
        self._hooks.received(size)
        cancel.check()
        if wanted:
            with self._hooks.turn():
                began = perf_counter()
                self._sink.write_at(self._buffer[self._start : self._start + size], offset)
                self.stages.write += perf_counter() - began
        else:
            self._hooks.discarded(size)
        self._start += size

    def _more(self) -> bool:
        return self._start < self._end or self._fill()

    def _need(self, size: int) -> None:
        """Have ``size`` bytes in the buffer, in one piece."""
        while self._end - self._start < size:
            if not self._fill():
                raise ProtocolError("a patch ends inside a run, or inside its list of extents")

    def _fill(self) -> bool:
        """Whether more has come. What is left moves to the front first, where there is no room for a run."""
        if self._start == self._end or len(self._buffer) - self._start < _ROOM:
            rest = self._end - self._start
            self._buffer[:rest] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, rest
        began = perf_counter()
        n = self._body.readinto(self._buffer[self._end :])
        self.stages.receive += perf_counter() - began
        self._end += n
        return n > 0


def _ignore(_: int) -> None:
    """What frames the runs is no content."""


def _ignore_digest(_span: Span, _digest: bytes) -> None:
    """Taken before."""
