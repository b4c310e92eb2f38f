"""One HTTP/1.1 connection on a raw socket or over TLS, for both ends.

The loop reads heads and small bodies and writes answers; for the body of a file
the socket is lent to a worker thread (:meth:`Connection.lend`), which owns it
until it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from tdx.control.wire import TlsWire, Wire, broken
from tdx.control.workers import run_joined
from tdx.data import sockets
from tdx.data.port import Cancel
from tdx.data.records import kernel_encrypts
from tdx.errors import ConnectionLost, Stalled, TdxError, TooLarge
from tdx.identity.port import Endpoint, Link
from tdx.proto.chunked import ChunkedDecoder
from tdx.proto.head import Framing, head_end

READ_SIZE: Final = 65536
DRAIN_LIMIT: Final = 16 << 20
DRAIN_SECONDS: Final = 2.0
IFNAMSIZ: Final = 16
"""Room for the name of a network interface (netdevice(7))."""

T = TypeVar("T")


def endpoint_of(address: tuple[object, ...]) -> Endpoint:
    """The endpoint of a socket address; an IPv4-mapped IPv6 address becomes IPv4."""
    host, port = str(address[0]), int(str(address[1]))
    if host.startswith("::ffff:") and "." in host:
        host = host[len("::ffff:") :]
    return Endpoint(host.partition("%")[0], port)


def bound_to(sock: socket.socket) -> str:
    """The network interface that ``sock`` is bound to; empty where it is bound to none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IFNAMSIZ).rstrip(b"\0").decode()


def link_of(sock: socket.socket) -> Link:
    """Both ends of a connected socket, and the interface that it is bound to."""
    return Link(endpoint_of(sock.getsockname()), endpoint_of(sock.getpeername()), bound_to(sock) or None)


class Connection:
    """A connected, non-blocking socket with what has been read ahead of it.

    ``authority`` is how a sender names the other end in Host.
    """

    def __init__(self, wire: Wire, workers: Executor, authority: str = "") -> None:
        self.authority = authority
        self.answered = False
        """Whether the other end has been heard: in TLS only that shows that it lets this device in."""
        self.link = link_of(wire.sock)
        self._wire = wire
        self._workers = workers
        self._lent: Cancel | None = None
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._closed = False

    @property
    def sock(self) -> socket.socket:
        return self._wire.sock

    @property
    def tls(self) -> TlsWire | None:
        """The wire, where it is one in TLS."""
        return self._wire if isinstance(self._wire, TlsWire) else None

    @property
    def may_seal(self) -> bool:
        """Whether bytes can go beneath TLS: there is TLS, and not in the kernel, which would take them for
        content."""
        return self.tls is not None and not kernel_encrypts(self.tls.sock)

    # --- heads and small bodies, on the loop ---------------------------------

    async def read_head(self, timeout: float, idle_timeout: float | None = None) -> bytes | None:
        """The next head with its final empty line; None at a clean end of the connection.

        ``idle_timeout`` bounds the wait for the first byte, ``timeout`` the rest of the
        head, however slowly it trickles. Raises Stalled, HeadTooLarge, ProtocolError.
        """
        if not self._buffer and not await self._fill(idle_timeout or timeout):
            return None
        deadline = self._loop.time() + timeout
        scanned = 0
        while (end := head_end(self._buffer, scanned)) is None:
            scanned = len(self._buffer)
            if not await self._fill(deadline - self._loop.time()):
                raise ConnectionLost(f"{self.link.remote.host} closed the connection inside a message head")
        head = bytes(self._buffer[:end])
        del self._buffer[:end]
        return head

    async def begins(self, with_: bytes, timeout: float) -> bool:
        """Whether what comes next begins with these bytes, as far as it goes; not a byte more is waited for
        than tells. Raises Stalled, ConnectionLost."""
        deadline = self._loop.time() + timeout
        while len(self._buffer) < len(with_) and with_.startswith(self._buffer):
            if not await self._fill(deadline - self._loop.time()):
                break
        return with_.startswith(self._buffer[: len(with_)])

    async def read_body(self, framing: Framing, limit: int, timeout: float) -> bytes:
        """A whole small body; TooLarge beyond ``limit`` bytes, Stalled after ``timeout`` seconds."""
        deadline = self._loop.time() + timeout
        if framing.chunked:
            return await self._read_chunked(limit, deadline)
        if framing.length is not None and framing.length > limit:
            raise TooLarge(f"a body of {framing.length} bytes where at most {limit} are taken")
        wanted = limit + 1 if framing.length is None else framing.length
        while len(self._buffer) < wanted:
            if not await self._fill(deadline - self._loop.time()):
                if framing.length is None:
                    break
                raise ConnectionLost(f"{self.link.remote.host} closed the connection inside a body")
        if framing.length is None and len(self._buffer) > limit:
            raise TooLarge(f"a body of more than {limit} bytes")
        body = bytes(self._buffer[:wanted])
        del self._buffer[:wanted]
        return body

    async def _read_chunked(self, limit: int, deadline: float) -> bytes:
        decoder = ChunkedDecoder()
        body = bytearray()
        while True:
            for part in decoder.feed(self.take_ahead()):
                body += part
            if len(body) > limit:
                raise TooLarge(f"a body of more than {limit} bytes")
            if decoder.finished:
                self.give_back(decoder.leftover)
                return bytes(body)
            if not await self._fill(deadline - self._loop.time()):
                raise ConnectionLost(f"{self.link.remote.host} closed the connection inside a body")

    async def _fill(self, timeout: float) -> bool:
        """Read more into the buffer; False at the end of the stream."""
        try:
            async with asyncio.timeout(max(timeout, 0.0)):
                data = await self._wire.recv(READ_SIZE)
        except TimeoutError:
            raise Stalled(f"{self.link.remote.host} sent nothing in time") from None
        except OSError as error:
            raise broken(error, self.link.remote.host) from None
        self._buffer += data
        return bool(data)

    async def send(self, data: bytes, timeout: float) -> None:
        """Write all of ``data``; Stalled when the peer does not take it in time."""
        try:
            async with asyncio.timeout(timeout):
                await self._wire.sendall(data)
        except TimeoutError:
            raise Stalled(f"{self.link.remote.host} does not read") from None
        except OSError as error:
            raise broken(error, self.link.remote.host) from None

    # --- bodies of files, in worker threads ----------------------------------

    def take_ahead(self, limit: int | None = None) -> bytes:
        """Take up to ``limit`` bytes that were read beyond the last head."""
        ahead = bytes(self._buffer if limit is None else self._buffer[:limit])
        del self._buffer[: len(ahead)]
        return ahead

    def give_back(self, data: bytes) -> None:
        """Bytes a body's reader took beyond its end: the start of the next head."""
        self._buffer[:0] = data

    @property
    def has_ahead(self) -> bool:
        return bool(self._buffer)

    async def lend(self, work: Callable[[socket.socket], T], cancel: Cancel) -> T:
        """Run ``work`` in a worker thread that owns the socket meanwhile.

        When this task is cancelled the socket is shut down, so that a blocked read
        or write wakes, and the worker is joined before the cancellation goes on.
        """

        def wake() -> None:
            cancel.stop()
            sockets.shut(self.sock)

        sockets.to_worker(self.sock)
        self._lent = cancel
        try:
            return await run_joined(self._workers, lambda: work(self.sock), wake)
        finally:
            self._lent = None
            sockets.to_loop(self.sock)

    def revoke(self, reason: TdxError) -> None:
        """End the body that is moving now, if one is; an answer can still be written."""
        if self._lent is not None:
            self._lent.set(reason)

    def stop_reading(self) -> None:
        """Wake whoever reads, so that an answer can still be written."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    # --- the end -------------------------------------------------------------

    async def linger(self) -> None:
        """After an answer that came before the body's end: stop sending, read and drop a
        bounded amount so that the answer is not lost to a reset (RFC 9112 section 9.6)."""
        dropped = 0
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            async with asyncio.timeout(DRAIN_SECONDS):
                while dropped < DRAIN_LIMIT and (read := await self._wire.drain(READ_SIZE * 4)):
                    dropped += read
        except (OSError, TimeoutError):
            return

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.sock.close()
