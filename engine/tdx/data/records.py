"""TLS on a worker's socket: what lies between Python's ssl and the bodies and pumps.

A TLS socket of a worker (:func:`tdx.data.sockets.to_worker`) has Python's own timeout of a TICK. The
descriptor underneath does not block, and ssl waits for it with one deadline for the whole call: were it to
block, a peer that sends a byte now and then could keep one SSL_read busy for as long as it liked.

SSLSocket's read and write are called rather than recv and send, which on a socket that was stripped of
its TLS layer meanwhile would hand out ciphertext, and send a file in the clear.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from tdx.data.port import TICK

RECORD: Final = 16 << 10
"""Most bytes of one TLS record (RFC 8446 section 5.1)."""

PROVEN: Final = 16 << 20
"""Bytes that must have gone out without a call that lasted a TICK before one takes more than a record:
more than the kernels' buffers hold, so that it is the link that has shown to be fast enough."""

_SOL_TLS: Final = 282
_TLS_TX: Final = 1


def kernel_encrypts(sock: ssl.SSLSocket) -> bool:
    """Whether the kernel encrypts what is written to the descriptor, so that os.sendfile may be used
    (kernel TLS, which the context has to ask for before the handshake)."""
    try:
        sock.getsockopt(_SOL_TLS, _TLS_TX, 4)
    except OSError:
        return False
    return True


def reason_of(error: OSError) -> str:
    """What broke a connection, in a few words."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "it was closed"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "tls error").replace("_", " ").lower()
    return error.strerror or str(error)


class RecordReader:
    """Takes the payload out of TLS records."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        # Its declared type knows bytearrays only.
        self._read = cast("Callable[[int, memoryview], int]", sock.read)  # pyright: ignore[reportDeprecated]
        self._error: OSError | None = None

    def receive(self, view: memoryview, *, whole: bool) -> int:
        """Read 1 to ``len(view)`` bytes; 0 at the end of the stream, with or without close_notify.

        ``whole``: as many as come in about a TICK, not only those of one record. BlockingIOError
        after a TICK without any; another OSError where the connection broke, after every byte before.
        """
        if self._error is not None:
            raise self._error
        got, size, until = 0, len(view), monotonic() + TICK
        try:
            while True:
                n = self._read(size - got, view[got:])
                got += n
                if not n or not whole or got == size or monotonic() >= until:
                    return got
        except OSError as error:
            if not _is_tick(error):
                self._error = error
            if not got:
                raise _translated(error) from error
        return got


class RecordWriter:
    """Puts bytes into TLS records.

    OpenSSL must be given bytes that it could not send at once again (SSL_write(3)), all of them, so
    they are few until the link is known: whatever else waits for that call to end, the stall clock does too.
    """

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._write = sock.write  # pyright: ignore[reportDeprecated]
        self._owed = 0
        self._smooth = 0

    def send(self, view: memoryview, at: int, size: int) -> int:
        """Send ``size`` bytes of ``view`` from ``at``; how many went out in about a TICK.

        The next call must go on where this one ended, in a view that has at least the bytes of this
        call. It may ask for fewer: then as many go out as have to. BlockingIOError after a
        TICK in which nothing did; another OSError where the connection broke.
        """
        sent, until = 0, monotonic() + TICK
        while sent < size:
            piece = self._owed or (size - sent if self._smooth >= PROVEN else min(RECORD, size - sent))
            begin = at + sent
            try:
                n = self._write(view[begin : begin + piece])
            except OSError as error:
                if not _is_tick(error):
                    raise
                self._owed, self._smooth = piece, 0
                if not sent:
                    raise BlockingIOError from error
                break
            self._owed = 0
            self._smooth += n
            sent += n
            if monotonic() >= until:
                self._smooth = 0
                break
        return sent


def _is_tick(error: OSError) -> bool:
    # The kernel's own ETIMEDOUT, a connection that broke, is a TimeoutError as well, with a number.
    return isinstance(error, TimeoutError) and error.errno is None


def _translated(error: OSError) -> OSError:
    return BlockingIOError() if _is_tick(error) else error
