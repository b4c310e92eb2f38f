"""The data plane's ports: sources, sinks and the pumps between them.

A pump runs in a worker thread that owns a raw, blocking socket
(SO_RCVTIMEO and SO_SNDTIMEO set to :data:`TICK`, never Python's settimeout), or
a TLS socket (:mod:`tdx.data.records`), prepared by :func:`tdx.data.sockets.to_worker`. It
moves bytes in large syscalls, looks at its :class:`Cancel` between them, and
never closes the socket: only the owner does.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from tdx.errors import Interrupted, TdxError
from tdx.integrity import Hasher
from tdx.model import Span, Stages

TICK: Final = 0.5
"""Seconds a blocking syscall may sleep before the pump looks at its cancel flag and stall clock."""

BUFFER: Final = 1 << 20
"""Bytes of one buffer, and most that one syscall moves: well below the 8 MiB after which a cancel
would be noticed late."""


class Cancel:
    """A one-way flag with a reason, set from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reason: TdxError | None = None
        self._wake: Callable[[], None] | None = None

    def set(self, reason: TdxError) -> None:
        """Only the first reason counts."""
        if self._reason is None:
            self._reason = reason
        self._event.set()
        if (wake := self._wake) is not None:
            wake()

    def stop(self) -> None:
        """Set it because nobody waits for the work any more."""
        self.set(Interrupted("stopped"))

    @property
    def reason(self) -> TdxError | None:
        return self._reason if self._event.is_set() else None

    def check(self) -> None:
        """Raise the reason, if set."""
        if self._event.is_set() and self._reason is not None:
            raise self._reason

    def sleep(self, seconds: float) -> None:
        """Sleep that a cancel cuts short (and then raises)."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Generator[None]:
        """Have a cancel call ``wake``, from its own thread, while the block lasts; raises the reason of one
        that has come already. For one thread at a time."""
        self._wake = wake
        try:
            self.check()
            yield
        finally:
            self._wake = None


class Brake(Protocol):
    """Holds one body back so that a rate limit is kept. Called by the thread that reads it."""

    def piece(self, n: int) -> int:
        """How many of the next ``n`` bytes to take off the socket at a time; at least one."""
        ...

    def took(self, n: int, check: Callable[[], None]) -> float:
        """``n`` bytes were taken: wait until their time has come; the seconds that took. ``check`` is called
        at least once a TICK meanwhile and may raise."""
        ...


class Sink(Protocol):
    """Where received bytes go; ``tdx.store.port.Upload`` is one, structurally."""

    def write_at(self, data: memoryview, offset: int) -> None: ...

    def read_at(self, view: memoryview, offset: int) -> int: ...


@runtime_checkable
class DescriptorSink(Sink, Protocol):
    """A sink that offers a file descriptor, for zero-copy pumps."""

    @property
    def descriptor(self) -> int: ...

    def wrote(self, offset: int, length: int) -> None: ...


@dataclass(slots=True)
class Slot:
    """What a receiving pump does with the next ``len(span)`` bytes of a body.

    ``keep`` False: the extent is already held; read and drop. ``hasher`` carries
    the state over the bytes of this extent before ``span.start``, when an append goes
    on in the middle of one; the pump feeds it further.
    """

    span: Span
    keep: bool = True
    hasher: Hasher | None = None


class Body(Protocol):
    """The body of one request, as a blocking reader (identity or chunked coding)."""

    @property
    def length(self) -> int | None:
        """Content-Length, or None for a chunked body."""
        ...

    def readinto(self, view: memoryview) -> int:
        """Fill ``view`` completely unless the body ends or breaks off first; the bytes read.

        Fewer than ``len(view)`` mean that nothing more will come: the next call returns 0
        at the end of the body, and otherwise raises why it broke off: ConnectionLost when
        the peer went away before the end, Stalled, ProtocolError (bad chunk). So no
        byte that arrived is lost to the failure after it. A cancel's reason is raised at
        once."""
        ...

    def interrupt(self, reason: BaseException) -> None:
        """From another thread: make the read that is going on, and any later one, raise
        ``reason`` within one TICK."""
        ...


@runtime_checkable
class RawBody(Body, Protocol):
    """An identity body whose remaining bytes come straight from a socket (for splice)."""

    @property
    def socket(self) -> socket.socket: ...

    def take_prefix(self) -> bytes:
        """Bytes of the body that arrived with the head; empty the second time."""
        ...

    def consumed(self, n: int) -> None:
        """Tell the body that ``n`` bytes were taken from the socket directly. 0: the wait
        for the next ones begins now, the time since the last call was spent elsewhere."""
        ...

    def waiting(self) -> None:
        """Call when a read timed out for one TICK: raises Stalled, or the cancel's reason."""
        ...

    def remaining(self) -> int: ...

    def piece(self, n: int) -> int:
        """How many of the next ``n`` bytes to take at a time."""
        ...


@dataclass(slots=True)
class ReceiveHooks:
    """Callbacks of a receiving pump; any thread of the pump may call them.

    ``received(n)``: n bytes came off the socket. ``completed(span, digest)``: every
    byte of this slot is written; the digest covers the extent from its start (the
    slot's carried state included). ``broke_off(span, digest)``: the body ended or failed
    inside a slot after ``span`` (a beginning of it) had been written. ``discarded(n)``:
    bytes dropped. ``turn()`` is entered to write and to hash what has arrived, never while the
    other end is waited for. The first two and the last may raise; that ends the pump. ``stages`` grows while
    the pump runs, and is right however it ends.
    """

    received: Callable[[int], None]
    completed: Callable[[Span, bytes], None]
    broke_off: Callable[[Span, bytes], None]
    discarded: Callable[[int], None]
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    stages: Stages = field(default_factory=Stages)


class ReceivePump(Protocol):
    @property
    def name(self) -> str: ...

    def receive(
        self, body: Body, sink: Sink, slots: Iterator[Slot], hooks: ReceiveHooks, cancel: Cancel
    ) -> None:
        """Move one body into the sink, slot by slot, until the body ends or the slots do.

        Returns with every ``completed`` delivered and no thread of its own left, also
        when it raises. Checks the cancel before each write and each callback, so that
        once a cancelled pump has been joined nothing is written any more. A body that
        ends inside a slot is reported with ``broke_off`` and is not an error here.
        """
        ...


@dataclass(slots=True)
class SendHooks:
    """Callbacks of a sending pump, called in its own thread.

    ``sent(n)``: n bytes were handed to the kernel. ``hashed(span, digest)``: digest of
    a whole extent, from the bytes that were sent. ``pace(n)``: seconds over which the next
    n bytes are to be spread, asked once for them; ``most(n)``: for how many of the next n to ask at a time.
    ``stages`` grows while the pump runs, and is right however it ends.
    """

    sent: Callable[[int], None]
    hashed: Callable[[Span, bytes], None]
    pace: Callable[[int], float] = field(default=lambda _: 0.0)
    most: Callable[[int], int] = field(default=lambda n: n)
    stages: Stages = field(default_factory=Stages)


class EarlyAnswer(Exception):
    """The receiver answered before the body had been sent: stop and read the answer. ``begun`` is what has
    been read of it already."""

    def __init__(self, begun: bytes = b"") -> None:
        super().__init__()
        self.begun = begun


class SendPump(Protocol):
    @property
    def name(self) -> str: ...

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
        """Send these contiguous extents of the file, in order, hashing each; ``seal``: beneath TLS, sealed
        under this key (:mod:`tdx.data.seal`).

        Raises :class:`EarlyAnswer` when the socket turns readable between sends,
        SourceChanged when the file ends early, ConnectionLost, Stalled, or the
        cancel's reason.
        """
        ...
