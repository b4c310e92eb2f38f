"""What the loop does with a connected raw socket, in plain or in TLS.

TLS is driven by readiness on the raw socket: the loop's own goes through memory BIOs,
which kernel TLS cannot use and a worker thread could not take over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from tdx.errors import ConnectionLost, Forbidden, TdxError, TlsFailed

TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection: the content type of a handshake record (RFC 8446 section 5.1)."""

_RECORD: Final = 16384
_OUT_OF_DATE: Final = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_DAMAGED: Final = ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "SSLV3_ALERT_BAD_RECORD_MAC")

T = TypeVar("T")


class Wire(Protocol):
    """Reads and writes without blocking. OSError as the socket raises it."""

    @property
    def sock(self) -> socket.socket:
        """For a worker thread, which owns it while nothing here is awaited."""
        ...

    async def recv(self, size: int) -> bytes: ...

    async def sendall(self, data: bytes) -> None: ...

    async def drain(self, size: int) -> int:
        """Read and drop up to ``size`` bytes as they come off the network; how many, 0 at the end."""
        ...


class PlainWire:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @property
    def sock(self) -> socket.socket:
        return self._sock

    async def recv(self, size: int) -> bytes:
        return await self._loop.sock_recv(self._sock, size)

    async def sendall(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def drain(self, size: int) -> int:
        return len(await self._loop.sock_recv(self._sock, size))


class TlsWire:
    """Over a socket that a context has wrapped, with the handshake still to come."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    @property
    def sock(self) -> ssl.SSLSocket:
        return self._sock

    @property
    def certificate(self) -> bytes | None:
        """What the other end proved to hold the key of (DER), once the handshake is done."""
        return self._sock.getpeercert(binary_form=True)

    async def handshake(self) -> None:
        await self._drive(self._sock.do_handshake)

    async def recv(self, size: int) -> bytes:
        return await self._drive(lambda: self._sock.recv(size))

    async def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            # What OpenSSL has refused once it must be given again in the same length.
            record = view[:_RECORD]
            view = view[await self._drive(partial(self._sock.send, record)) :]

    async def drain(self, size: int) -> int:
        while True:
            try:
                return len(socket.socket.recv(self._sock, size))
            except BlockingIOError:
                await readable(self._sock)

    async def _drive(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await readable(self._sock)
            except ssl.SSLWantWriteError:
                await writable(self._sock)


def failure(error: OSError, remote: str) -> TdxError:
    """What a failed read, write or handshake with ``remote`` means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OUT_OF_DATE:
            return Forbidden(
                f"the clock of this machine says {time.strftime('%Y-%m-%d')}, and by it what {remote} shows "
                "is out of date; set the clock, or introduce the two anew with `tdx pair`"
            )
        return Forbidden(f"{remote} shows a key that was not paired with this device: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        return ConnectionLost(f"connection to {remote} lost: {error.strerror or error}")
    reason = str(error.reason or error)
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return Forbidden(f"{remote} shows no device key")
    if "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")):
        return Forbidden(f"{remote} does not know this device's key; introduce the two with `tdx pair`")
    return TlsFailed(f"TLS with {remote} failed: {reason.lower().replace('_', ' ')}")


def broken(error: OSError, remote: str) -> TdxError:
    """What a failed read or write means once the connection has been made: as :func:`failure`, but a
    record that was damaged on its way is worth another connection, whichever end noticed."""
    if isinstance(error, ssl.SSLError) and error.reason in _DAMAGED:
        return ConnectionLost(f"what was sent to or by {remote} was damaged on its way")
    return failure(error, remote)


async def first_byte(sock: socket.socket) -> int | None:
    """The next byte, which stays to be read; None at the end of the stream."""
    while True:
        try:
            return next(iter(sock.recv(1, socket.MSG_PEEK)), None)
        except BlockingIOError:
            await readable(sock)


async def readable(sock: socket.socket) -> None:
    """Wait until a read would not block."""
    loop, descriptor = asyncio.get_running_loop(), sock.fileno()
    ready = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(sock: socket.socket) -> None:
    """Wait until a write would not block."""
    loop, descriptor = asyncio.get_running_loop(), sock.fileno()
    ready = loop.create_future()
    loop.add_writer(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
