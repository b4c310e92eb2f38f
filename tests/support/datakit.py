"""Sockets, sinks and recorders for the tests of the data plane."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tdx.data.body import IdentityBody
from tdx.data.port import Cancel, ReceiveHooks, SendHooks, Slot
from tdx.data.sockets import to_worker
from tdx.integrity import cut, digest_of
from tdx.model import Span

QUICK = 0.02
"""The tick of the tests' sockets, in seconds."""

STALL = 30.0
"""A stall timeout that no test reaches unless it means to."""

PUMP_THREADS = ("tdx-write", "tdx-hash")


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
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return
        if close:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    return Background(work)


def collector(sock: socket.socket) -> Background:
    """Read from a thread until the stream ends; join() returns the bytes."""

    def work() -> bytes:
        found = bytearray()
        while True:
            try:
                part = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            if not part:
                return bytes(found)
            found += part

    return Background(work)


def pump_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in PUMP_THREADS]
