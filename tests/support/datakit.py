"""Sockets, sinks and recorders for the tests of the data plane."""

from __future__ import annotations

import datetime as dt
import functools
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tdx.data.body import IdentityBody, LengthBody
from tdx.data.port import Cancel, ReceiveHooks, SendHooks, Slot
from tdx.data.sockets import to_worker
from tdx.data.tls import TlsBody
from tdx.integrity import cut, digest_of
from tdx.model import Span

QUICK = 0.02
"""The tick of the tests' sockets, in seconds."""

STALL = 30.0
"""A stall timeout that no test reaches unless it means to."""


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every position matters."""
    block = bytes((i * 131 + (i >> 8) * 17 + seed) & 0xFF for i in range(65521))
    return (block * (size // len(block) + 1))[:size]


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a loopback TCP connection, both ready for a worker."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        to_worker(near, QUICK)
        to_worker(far, QUICK)
        yield near, far


@contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        to_worker(near, QUICK)
        to_worker(far, QUICK)
        yield near, far


@functools.cache
def contexts(*, mutual: bool = False) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context for TLS 1.3, with a throwaway certificate; ``mutual``: the
    server asks for one that the client has not got."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tdx-test")])
    today = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    own = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=pem.decode())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.num_tickets = 0
    if mutual:
        server.verify_mode = ssl.CERT_REQUIRED
    with tempfile.NamedTemporaryFile() as file:
        file.write(own + pem)
        file.flush()
        server.load_cert_chain(file.name)
    for context in (client, server):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return client, server


def _shake_hands(near: socket.socket, far: socket.socket) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    client, server = contexts()
    near.settimeout(30)
    far.settimeout(30)
    outer = server.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
    answering = Background(outer.do_handshake)
    inner = client.wrap_socket(near)
    answering.join()
    to_worker(inner, QUICK)
    to_worker(outer, QUICK)
    return inner, outer


@contextmanager
def tls_tcp_pair() -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """As :func:`tcp_pair`, with TLS on it."""
    with tcp_pair() as pair:
        near, far = _shake_hands(*pair)
        with near, far:
            yield near, far


@contextmanager
def tls_unix_pair() -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    with unix_pair() as pair:
        near, far = _shake_hands(*pair)
        with near, far:
            yield near, far


@dataclass(frozen=True)
class Over:
    """What a connection is made of: plain sockets, or TLS on them."""

    tcp: Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]]
    unix: Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]]


OVER = {"plain": Over(tcp_pair, unix_pair), "tls": Over(tls_tcp_pair, tls_unix_pair)}


def end_stream(sock: socket.socket) -> None:
    """Nothing more comes from here. An SSLSocket's own shutdown would take its TLS away as well."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)


class MemorySink:
    """A sink without a descriptor; notes every write."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.writes: list[Span] = []

    def write_at(self, data: memoryview, offset: int) -> None:
        end = offset + len(data)
        if len(self.data) < end:
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data
        self.writes.append(Span(offset, end))

    def read_at(self, view: memoryview, offset: int) -> int:
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        return len(part)

    def content(self) -> bytes:
        return bytes(self.data)


class FileSink:
    """A sink with a descriptor; notes every write, by either way."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        self.writes: list[Span] = []
        self.spliced = 0

    def write_at(self, data: memoryview, offset: int) -> None:
        assert os.pwrite(self.descriptor, data, offset) == len(data)
        self.writes.append(Span(offset, offset + len(data)))

    def read_at(self, view: memoryview, offset: int) -> int:
        return os.preadv(self.descriptor, [view], offset)

    def wrote(self, offset: int, length: int) -> None:
        self.writes.append(Span(offset, offset + length))
        self.spliced += length

    def content(self) -> bytes:
        return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass
class Received:
    """What a receiving pump reported."""

    received: int = 0
    discarded: int = 0
    completed: list[tuple[Span, bytes]] = field(default_factory=list)
    broke_off: list[tuple[Span, bytes]] = field(default_factory=list)

    def hooks(self) -> ReceiveHooks:
        def received(n: int) -> None:
            self.received += n

        def discarded(n: int) -> None:
            self.discarded += n

        return ReceiveHooks(
            received=received,
            completed=lambda span, digest: self.completed.append((span, digest)),
            broke_off=lambda span, digest: self.broke_off.append((span, digest)),
            discarded=discarded,
        )


@dataclass
class Sent:
    """What a sending pump reported."""

    sent: int = 0
    hashed: list[tuple[Span, bytes]] = field(default_factory=list)

    def hooks(self, pace: Callable[[int], float] = lambda _: 0.0) -> SendHooks:
        def sent(n: int) -> None:
            self.sent += n

        return SendHooks(
            sent=sent,
            hashed=lambda span, digest: self.hashed.append((span, digest)),
            pace=pace,
        )


def slots_of(span: Span, extent: int) -> Iterator[Slot]:
    return (Slot(part) for part in cut(span, extent))


def digests_of(data: bytes, extent: int, start: int = 0) -> list[tuple[Span, bytes]]:
    """The spans and digests a pump reports for ``data``, which belongs at ``start``."""
    if not data:
        return []
    return [
        (part, digest_of(data[part.start - start : part.end - start]))
        for part in cut(Span(start, start + len(data)), extent)
    ]


def identity_body(
    sock: socket.socket, length: int, cancel: Cancel | None = None, prefix: bytes = b"", stall: float = STALL
) -> IdentityBody:
    return IdentityBody(sock, prefix, length, cancel or Cancel(), stall)


def body_on(
    sock: socket.socket, length: int, cancel: Cancel | None = None, prefix: bytes = b"", stall: float = STALL
) -> LengthBody:
    """The body as the control plane makes it for this kind of socket."""
    kind = TlsBody if isinstance(sock, ssl.SSLSocket) else IdentityBody
    return kind(sock, prefix, length, cancel or Cancel(), stall)


class Background:
    """Runs a function in a thread; :meth:`join` returns what it returned or raises what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-background")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def join(self) -> object:
        self._thread.join(60)
        assert not self._thread.is_alive(), "the background work hangs"
        if self._error is not None:
            raise self._error
        return self._result


def feeder(sock: socket.socket, data: bytes, *, close: bool = True) -> Background:
    """Send ``data`` from a thread, then end the stream."""

    def work() -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            try:
                done += sock.send(view[done:])
            except (BlockingIOError, TimeoutError):
                continue
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                return
        if close:
            end_stream(sock)

    return Background(work)


def collector(sock: socket.socket) -> Background:
    """Read from a thread until the stream ends; join() returns the bytes."""

    def work() -> bytes:
        found = bytearray()
        while True:
            try:
                part = sock.recv(1 << 20)
            except (BlockingIOError, TimeoutError):
                continue
            if not part:
                return bytes(found)
            found += part

    return Background(work)
