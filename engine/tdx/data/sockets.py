"""Raw sockets on their way between the loop and a worker thread."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable

from tdx.data.port import TICK
from tdx.errors import Stalled

_GONE = (errno.ENOTCONN, errno.EBADF)


def to_worker(sock: socket.socket, tick: float = TICK) -> None:
    """Make ``sock`` ready for a worker: really blocking, each syscall at most ``tick`` seconds.

    Python's own settimeout would leave the descriptor non-blocking underneath, and
    then os.sendfile and os.splice fail at once where they should wait. A TLS socket has that very
    timeout (:mod:`tdx.data.records`), and goes through neither.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(tick)
    else:
        sock.setblocking(True)
    _set_timeouts(sock, tick)


def beneath_tls(sock: socket.socket) -> None:
    """Let a worker read or write bare bytes of the TCP connection under a TLS socket of its own, as
    :func:`to_worker` has prepared a plain one. Until :func:`to_loop` nothing may go through TLS.

    OpenSSL has read no further than the last record that it was asked for, and written all that it was given.
    """
    sock.setblocking(True)


def to_loop(sock: socket.socket) -> None:
    """Make ``sock`` non-blocking again, for the loop."""
    _set_timeouts(sock, 0.0)
    sock.setblocking(False)


def _set_timeouts(sock: socket.socket, seconds: float) -> None:
    whole = int(seconds)
    value = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def unpaced(sock: socket.socket) -> None:
    """Let nothing but the receiver's window hold back what ``sock``, which is not yet connected, will send
    to this very machine (docs/decisions/008-one-large-push.md).

    A congestion control that paces (BBR) sets a timer for every few packets, for a link that is none.
    Reno does not, and is in every kernel. Elsewhere the choice stays the system's.
    """
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def shut(sock: socket.socket) -> None:
    """Shut both directions: wakes whoever is blocked on ``sock``, which close() would not.

    Safe from any thread, and on a socket that is no longer connected. An SSLSocket is shut
    below its TLS layer, whose own shutdown would let a reader see ciphertext.
    """
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def readable(sock: socket.socket) -> bool:
    """Whether a read would return at once: bytes, the end of the stream, or an error. Over TLS also where
    something has come that is not the peer's payload, an alert for one."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def has_answer(sock: socket.socket) -> bool:
    """Whether at least one byte can be read now (neither the end of the stream nor an error); over TLS
    also where it may turn out to be an alert, which only a read can tell."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    with contextlib.suppress(OSError):
        return bool(socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


def tell(sock: socket.socket, message: bytes) -> None:
    """Write a few bytes that are not worth waiting for, from the worker that owns ``sock``; what cannot be
    written now is not begun. What breaks is for the next read to find out."""
    with contextlib.suppress(OSError):
        if isinstance(sock, ssl.SSLSocket):
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLOUT)
            if poller.poll(0):
                sock.write(message)  # pyright: ignore[reportDeprecated]
        else:
            sent = socket.socket.send(sock, message, socket.MSG_DONTWAIT)
            if sent < len(message):
                socket.socket.sendall(sock, message[sent:])


class Patience:
    """Decides when the other end of a connection has stalled.

    No byte for ``stall_timeout`` seconds, or fewer than ``min_rate`` bytes a second over a
    window of that length. Only time spent waiting for the other end counts: a slow disk on
    this side never looks like a stalled peer.
    """

    __slots__ = ("_clock", "_idle", "_mark", "_min_rate", "_moved", "_spent", "_timeout")

    def __init__(
        self, stall_timeout: float, min_rate: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout = stall_timeout
        self._min_rate = min_rate
        self._clock = clock
        self._mark = clock()
        self._idle = 0.0
        self._spent = 0.0
        self._moved = 0

    @property
    def idle(self) -> float:
        """Seconds spent waiting since the last byte, known to a TICK."""
        return self._idle

    def begin(self) -> None:
        """The wait for the other end starts now."""
        self._mark = self._clock()

    def moved(self, n: int) -> None:
        """``n`` bytes moved since the last call. Raises Stalled when that is too slow."""
        self._pass()
        self._idle = 0.0
        self._moved += n
        self._judge_rate()

    def waited(self) -> None:
        """Nothing moved since the last call. Raises Stalled when that has lasted too long."""
        self._idle += self._pass()
        if self._idle >= self._timeout:
            raise Stalled(f"no byte moved for {self._timeout:g} s")
        self._judge_rate()

    def _pass(self) -> float:
        now = self._clock()
        passed = now - self._mark
        self._mark = now
        self._spent += passed
        return passed

    def _judge_rate(self) -> None:
        if self._spent < self._timeout:
            return
        spent, moved = self._spent, self._moved
        self._spent, self._moved = 0.0, 0
        if moved < self._min_rate * spent:
            raise Stalled(f"{moved} bytes in {spent:.0f} s; at least {self._min_rate} a second are asked for")
