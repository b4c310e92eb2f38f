"""The sending pumps: each window of the source is read and hashed once, then sent."""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final, NoReturn

from tdx.data.buffers import BUFFERS
from tdx.data.port import BUFFER, TICK, Cancel, EarlyAnswer, SendHooks, SendPump
from tdx.data.records import RecordWriter, kernel_encrypts, reason_of
from tdx.data.sockets import Patience, has_answer, readable
from tdx.errors import ConnectionLost, SourceChanged, SourceError, UsageError
from tdx.integrity import new_hasher
from tdx.model import Span
from tdx.proto.head import PROCESSING

SEND_PUMPS: Final = ("auto", "sendfile", "buffered")
"""Names for the sender (``tdx push --pump``)."""

SMOOTH: Final = 0.1
"""Seconds between the pieces of a paced window, at most."""

WINDOW: Final = BUFFER // 2
"""Bytes read, hashed and sent in turn: small enough to be in the core's own cache all the while, and for a
cancel, which is looked at between calls (at most 8 MiB), to be noticed at once."""

MIN_CALL: Final = 64 << 10
"""Bytes of a send on a link so slow that even they take longer than a TICK."""

RECORD_HEADER: Final = 5
"""Bytes before a TLS record, the last two of them its length (RFC 8446 section 5.2)."""

RECORD_EXTRA: Final = 17
"""Bytes of a record beyond its content: the type of that, and the tag of every usual cipher."""

UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSOCK})
"""What a kernel or a filesystem without sendfile says."""

Emit = Callable[[int, int], int]
"""``emit(done, size)`` hands up to ``size`` bytes after the first ``done`` of a window to the
kernel, waiting for a TICK at most; how many it took."""

EmitOf = Callable[[memoryview], Emit]
"""The Emit of a window that is in memory."""


class _Outlet:
    """The socket's side of sending: pacing, stalls, cancels, answers that come early."""

    def __init__(self, sock: socket.socket, hooks: SendHooks, cancel: Cancel, stall_timeout: float) -> None:
        self._stages = hooks.stages
        self._sock = sock
        self._hooks = hooks
        self._cancel = cancel
        self._patience = Patience(stall_timeout)
        self._most = WINDOW

    def send(self, size: int, emit: Emit) -> None:
        """Send a window of ``size`` bytes."""
        done = 0
        while done < size:
            start = done
            part = self._hooks.most(size - start)
            delay = self._hooks.pace(part)
            pieces = max(1, math.ceil(delay / SMOOTH))
            for piece in range(1, pieces + 1):
                if delay > 0:
                    self._cancel.sleep(delay / pieces)
                done = self._send_to(start + part * piece // pieces, done, emit)
            self._stages.limit += delay

    def _send_to(self, end: int, done: int, emit: Emit) -> int:
        self._patience.begin()
        while done < end:
            self._cancel.check()
            if readable(self._sock):
                self._hear()
            started = perf_counter()
            try:
                n = emit(done, min(end - done, self._most))
            except BlockingIOError:
                n = 0
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    raise
                self._raise_lost(error)
            took = perf_counter() - started
            self._stages.send += took
            self._fit_call_to_link(took)
            if n:
                done += n
                self._patience.moved(n)
                self._hooks.sent(n)
            else:
                self._patience.waited()
        return done

    def _hear(self) -> None:
        """Something has come, or the end. Where the receiver says that it goes on, since its rate limit is
        what holds this up, it has not stalled."""
        heard = b""
        if isinstance(self._sock, ssl.SSLSocket):
            # Read here would be lost to whoever reads the answer: only what can be nothing else is.
            header = _peek(self._sock, RECORD_HEADER)
            if 0 < len(header) < RECORD_HEADER:
                return  # the rest is on its way
            if header and int.from_bytes(header[-2:]) == len(PROCESSING) + RECORD_EXTRA:
                heard = self._read_record()
        else:
            heard = _peek(self._sock, len(PROCESSING))
            if heard and heard != PROCESSING and PROCESSING.startswith(heard):
                return
            if heard == PROCESSING:
                socket.socket.recv(self._sock, len(PROCESSING))
        if heard != PROCESSING:
            self._raise_lost(None)
        self._patience.moved(0)

    def _read_record(self) -> bytes:
        assert isinstance(self._sock, ssl.SSLSocket)
        try:
            heard = self._sock.read(len(PROCESSING))  # pyright: ignore[reportDeprecated]
        except (TimeoutError, ssl.SSLWantReadError):
            return PROCESSING  # it has begun to come
        except OSError as error:
            self._raise_lost(error)
        if heard and heard != PROCESSING:
            raise EarlyAnswer(heard)
        return heard

    def _fit_call_to_link(self, took: float) -> None:
        # A slow link must not keep one call busy for many ticks: progress, early answers and
        # the stall clock are looked at between calls only.
        if took > TICK:
            self._most = max(MIN_CALL, self._most // 2)
        elif took < TICK / 8:
            self._most = min(WINDOW, self._most * 2)

    def _raise_lost(self, error: OSError | None) -> NoReturn:
        """The socket turned readable, or a send failed with ``error``."""
        self._cancel.check()
        if has_answer(self._sock):
            raise EarlyAnswer from error
        reason = "it was closed" if error is None else reason_of(error)
        raise ConnectionLost(f"the connection broke while sending: {reason}") from error


def _peek(sock: socket.socket, size: int) -> bytes:
    """What can be read now, at most ``size`` bytes; nothing at the end of the stream, or after an error."""
    try:
        return socket.socket.recv(sock, size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


class _FileSender:
    """One run of extents of one file."""

    def __init__(
        self, outlet: _Outlet, sock: socket.socket, descriptor: int, hooks: SendHooks, from_memory: EmitOf
    ) -> None:
        self._stages = hooks.stages
        self._outlet = outlet
        self._sock = sock
        self._descriptor = descriptor
        self._hooks = hooks
        self._from_memory = from_memory

    def run(self, extents: Sequence[Span], *, zero_copy: bool) -> None:
        buffer = BUFFERS.take()
        try:
            for extent in extents:
                hasher = new_hasher()
                for start in range(extent.start, extent.end, WINDOW):
                    view = buffer[: min(WINDOW, extent.end - start)]
                    started = perf_counter()
                    self._read(view, start)
                    read = perf_counter()
                    hasher.update(view)
                    self._stages.read += read - started
                    self._stages.hash += perf_counter() - read
                    zero_copy = self._send_window(view, start, zero_copy=zero_copy)
                self._hooks.hashed(extent, hasher.digest())
        finally:
            BUFFERS.give(buffer)

    def _read(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(f"cannot read the source: {error.strerror}") from error
            if not n:
                raise _shorter(offset + done)
            done += n

    def _send_window(self, view: memoryview, start: int, *, zero_copy: bool) -> bool:
        """Send what was just read and hashed; whether zero copy still works."""
        sent = 0
        out, source = self._sock.fileno(), self._descriptor

        def from_file(done: int, size: int) -> int:
            nonlocal sent
            n = os.sendfile(out, source, start + done, size)
            if not n:
                raise _shorter(start + done)
            sent = done + n
            return n

        if zero_copy:
            try:
                self._outlet.send(len(view), from_file)
                return True
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        rest = view[sent:]
        self._outlet.send(len(rest), self._from_memory(rest))
        return False


def _from_memory(sock: socket.socket, length: int, seal: bytes | None) -> EmitOf:
    """How windows of a body of ``length`` bytes go out, sealed under the key ``seal`` if there is one."""
    if seal is not None:
        from tdx.data.seal import SealWriter

        return SealWriter(sock, seal, length).emit_of
    if isinstance(sock, ssl.SSLSocket):
        writer = RecordWriter(sock)
        return lambda view: lambda done, size: writer.send(view, done, size)
    return lambda view: lambda done, size: sock.send(view[done : done + size])


def _shorter(size: int) -> SourceChanged:
    return SourceChanged(f"the source ends at {size} now: it was cut while being sent")


class SendfileSend:
    """Hashes each window from a buffer and sends the same range, still hot, from the page cache.

    Where the kernel or the filesystem refuses, the rest is sent from the buffers. So is everything
    over TLS, unless the kernel encrypts.
    """

    @property
    def name(self) -> str:
        return "sendfile"

    def send(
        self,
        sock: socket.socket,
        descriptor: int,
        extents: Sequence[Span],
        hooks: SendHooks,
        cancel: Cancel,
        stall_timeout: float,
        seal: bytes | None = None,
    ) -> None:
        """See :class:`tdx.data.port.SendPump`."""
        _send_file(sock, descriptor, extents, hooks, cancel, stall_timeout, seal, zero_copy=True)


class BufferedSend:
    """Sends each window from the buffer that it was hashed in: what is sent is what was hashed,
    whatever happens to the file meanwhile."""

    @property
    def name(self) -> str:
        return "buffered"

    def send(
        self,
        sock: socket.socket,
        descriptor: int,
        extents: Sequence[Span],
        hooks: SendHooks,
        cancel: Cancel,
        stall_timeout: float,
        seal: bytes | None = None,
    ) -> None:
        """See :class:`tdx.data.port.SendPump`."""
        _send_file(sock, descriptor, extents, hooks, cancel, stall_timeout, seal, zero_copy=False)


def choose_send(wish: str | None, descriptor: int) -> SendPump:
    """The pump to send ``descriptor`` with; None and "auto" leave the choice to measurement
    (docs/decisions/001-pumps.md). UsageError for a name that does not exist or cannot work here."""
    if wish == "buffered":
        return BufferedSend()
    regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    works = hasattr(os, "sendfile") and regular
    if wish == "sendfile" and not works:
        lack = "the source is not a regular file" if not regular else "this system has no sendfile"
        raise UsageError(f"--pump sendfile cannot work: {lack}")
    if wish not in (None, *SEND_PUMPS):
        raise UsageError(f"no sending pump is called {wish!r}; choose one of {', '.join(SEND_PUMPS)}")
    return SendfileSend() if works else BufferedSend()


def _send_file(
    sock: socket.socket,
    descriptor: int,
    extents: Sequence[Span],
    hooks: SendHooks,
    cancel: Cancel,
    stall_timeout: float,
    seal: bytes | None,
    *,
    zero_copy: bool,
) -> None:
    zero_copy = zero_copy and seal is None
    if isinstance(sock, ssl.SSLSocket) and zero_copy:
        zero_copy = kernel_encrypts(sock)
        # ssl left the descriptor without blocking, and os.sendfile would fail at once where it should wait.
        os.set_blocking(sock.fileno(), zero_copy)
    from_memory = _from_memory(sock, sum(map(len, extents)), seal)
    outlet = _Outlet(sock, hooks, cancel, stall_timeout)
    sender = _FileSender(outlet, sock, descriptor, hooks, from_memory)
    sender.run(extents, zero_copy=zero_copy)


def send_buffer(
    sock: socket.socket,
    view: memoryview,
    hooks: SendHooks,
    cancel: Cancel,
    stall_timeout: float,
    seal: bytes | None = None,
) -> None:
    """Send bytes that are already in memory (standard input) and whose digest the caller knows;
    ``hooks.hashed`` is not called. Errors as for :class:`tdx.data.port.SendPump`."""
    outlet = _Outlet(sock, hooks, cancel, stall_timeout)
    from_memory = _from_memory(sock, len(view), seal)
    for start in range(0, len(view), WINDOW):
        window = view[start : start + WINDOW]
        outlet.send(len(window), from_memory(window))
