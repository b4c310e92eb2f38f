"""Request bodies as blocking readers: identity (Content-Length) and chunked coding, plain or over TLS."""

from __future__ import annotations

import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

from tdx.data.port import Brake, Cancel
from tdx.data.records import RecordReader, reason_of
from tdx.data.sockets import Patience
from tdx.errors import ConnectionLost, TdxError

_CHUNKED_READ: Final = 256 << 10


class ChunkDecoder(Protocol):
    """The decoder of the chunked coding (RFC 9112 section 7.1), without I/O."""

    def feed(self, data: bytes | memoryview, /) -> list[memoryview]:
        """The payload found in ``data``, as views into it. ProtocolError for anything
        that is not the coding."""
        ...

    @property
    def finished(self) -> bool: ...

    @property
    def leftover(self) -> bytes:
        """What was fed beyond the end of the body."""
        ...


class Receive(Protocol):
    """How bytes are taken off a socket, see :meth:`tdx.data.records.RecordReader.receive`."""

    def __call__(self, view: memoryview, *, whole: bool) -> int: ...


def _receiver(sock: socket.socket) -> Receive:
    return RecordReader(sock).receive if isinstance(sock, ssl.SSLSocket) else bare_receiver(sock)


def bare_receiver(sock: socket.socket) -> Receive:
    """Takes the bytes of the TCP connection as they are, also from beneath TLS."""

    def receive(view: memoryview, *, whole: bool) -> int:
        # Without MSG_WAITALL every segment that arrives would cost a call, and the GIL with it.
        return socket.socket.recv_into(sock, view, len(view), socket.MSG_WAITALL if whole else 0)

    return receive


class SocketBody(ABC):
    """What all bodies share: receiving, waiting, stalling, cancelling."""

    def __init__(
        self,
        sock: socket.socket,
        cancel: Cancel,
        stall_timeout: float,
        min_rate: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sock = sock
        self._receive = _receiver(sock)
        self._cancel = cancel
        self._patience = Patience(stall_timeout, min_rate, clock)
        self.brake: Brake | None = None
        """What holds this body back."""
        self.held = 0.0
        """Seconds for which it did."""
        self._interrupted: BaseException | None = None
        self._failure: TdxError | None = None

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether every byte of the body has been read."""

    @abstractmethod
    def _read_some(self, view: memoryview) -> int:
        """Read 1 to ``len(view)`` payload bytes; 0 after a TICK without any."""

    @property
    def silent_for(self) -> float:
        """Seconds that the other end has been waited for since its last byte. From any thread."""
        return self._patience.idle

    def readinto(self, view: memoryview) -> int:
        """See :class:`tdx.data.port.Body`."""
        self._check()
        if self._failure is not None:
            raise self._failure
        got = 0
        size = len(view)
        self._patience.begin()
        try:
            while got < size and not self.ended:
                n = self._read_some(view[got : got + self.piece(size - got)])
                got += n
                self._check()
                self._passed(n)
                self._hold(n)
        except TdxError as error:
            self._check()
            self._failure = error
            if not got:
                raise
        return got

    def piece(self, n: int) -> int:
        """See :class:`tdx.data.port.RawBody`."""
        return n if self.brake is None else self.brake.piece(n)

    def _hold(self, n: int) -> None:
        """``n`` bytes have been taken. What waits here is not the other end's doing."""
        if n and self.brake is not None:
            self.held += self.brake.took(n, self._check)
            self._patience.begin()

    def interrupt(self, reason: BaseException) -> None:
        self._interrupted = reason

    def _passed(self, n: int) -> None:
        """A read has brought ``n`` bytes, or has waited for a TICK."""
        if n:
            self._patience.moved(n)
        else:
            self._patience.waited()

    def _check(self) -> None:
        self._cancel.check()
        if self._interrupted is not None:
            raise self._interrupted

    def _recv(self, view: memoryview, *, whole: bool) -> int:
        """Bytes received, 0 after a TICK without any; the end of the stream is ConnectionLost.

        So is a record that does not verify, or an alert: bits flip on their way, and who means harm could as
        well cut the connection. Giving up for good would protect nothing; another connection may work.
        """
        try:
            n = self._receive(view, whole=whole)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._check()
            raise ConnectionLost(
                f"the connection broke in the middle of a body: {reason_of(error)}"
            ) from error
        if not n:
            self._check()
            raise ConnectionLost("the connection ended in the middle of a body")
        return n


class SizedBody(SocketBody):
    """A body with ``length`` bytes of content."""

    def __init__(
        self,
        sock: socket.socket,
        length: int,
        cancel: Cancel,
        stall_timeout: float,
        min_rate: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(sock, cancel, stall_timeout, min_rate, clock)
        self._length = length
        self._left: int = length

    @property
    def length(self) -> int | None:
        return self._length

    @property
    def ended(self) -> bool:
        return self._left == 0


class LengthBody(SizedBody):
    """A body of ``length`` bytes (Content-Length), beginning with ``prefix``.

    ``prefix`` is what arrived with the head; what of it lies beyond the body is
    :attr:`leftover`. ``sock`` must have been prepared (:func:`tdx.data.sockets.to_worker`) before the first
    read, and nothing beyond the body is taken from it. ``stall_timeout`` is in seconds, ``min_rate`` in
    bytes a second (:class:`tdx.data.sockets.Patience`).
    """

    def __init__(
        self,
        sock: socket.socket,
        prefix: bytes,
        length: int,
        cancel: Cancel,
        stall_timeout: float,
        min_rate: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(sock, length, cancel, stall_timeout, min_rate, clock)
        self._prefix = prefix[:length]
        self._leftover = prefix[length:]

    @property
    def leftover(self) -> bytes:
        """Bytes of ``prefix`` that belong to the next request."""
        return self._leftover

    def _read_some(self, view: memoryview) -> int:
        if self._prefix:
            n = min(len(view), len(self._prefix))
            view[:n] = self._prefix[:n]
            self._prefix = self._prefix[n:]
        else:
            n = self._recv(view[: min(len(view), self._left)], whole=True)
        self._left -= n
        return n


class IdentityBody(LengthBody):
    """A body of known length on a plain socket, whose bytes may be spliced
    (:class:`tdx.data.port.RawBody`)."""

    @property
    def socket(self) -> socket.socket:
        return self._sock

    def remaining(self) -> int:
        return self._left

    def take_prefix(self) -> bytes:
        prefix, self._prefix = self._prefix, b""
        self._left -= len(prefix)
        return prefix

    def consumed(self, n: int) -> None:
        if n:
            self._left -= n
            self._patience.moved(n)
            self._hold(n)
        else:
            self._patience.begin()

    def waiting(self) -> None:
        self._check()
        self._patience.waited()


class ChunkedBody(SocketBody):
    """A body in chunked coding, beginning with ``prefix``, on a plain or a TLS socket; the other arguments
    as for :class:`LengthBody`. ``decoder`` has been fed nothing yet."""

    def __init__(
        self,
        sock: socket.socket,
        prefix: bytes,
        cancel: Cancel,
        stall_timeout: float,
        decoder: ChunkDecoder,
        min_rate: int = 0,
    ) -> None:
        super().__init__(sock, cancel, stall_timeout, min_rate)
        self._decoder = decoder
        self._prefix = prefix
        self._raw = memoryview(bytearray(_CHUNKED_READ))
        self._pending: list[memoryview] = []

    @property
    def length(self) -> int | None:
        return None

    @property
    def leftover(self) -> bytes:
        """Bytes read beyond the body, for the next request; empty until it has ended."""
        return self._decoder.leftover if self._decoder.finished else b""

    @property
    def ended(self) -> bool:
        return self._decoder.finished and not self._pending

    def _read_some(self, view: memoryview) -> int:
        if not self._pending:
            self._feed()
        got = 0
        while self._pending and got < len(view):
            part = self._pending[0]
            n = min(len(view) - got, len(part))
            view[got : got + n] = part[:n]
            got += n
            if n == len(part):
                del self._pending[0]
            else:
                self._pending[0] = part[n:]
        return got

    def _feed(self) -> None:
        if self._prefix:
            data: bytes | memoryview = self._prefix
            self._prefix = b""
        else:
            data = self._raw[: self._recv(self._raw, whole=False)]
            if not data:
                return
        self._pending = self._decoder.feed(data)
