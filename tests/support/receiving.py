"""A real receiver for tests: real sockets, real files, in a thread of this process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from support.processes import wait_until
from support.received import files_below
from support.wire import Answer, Wire
from tdx.config import ServeConfig
from tdx.control.loop import loop_factory
from tdx.control.progress import PushResult, Tally
from tdx.control.push import PushOptions
from tdx.control.receiver import Receiver
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions
from tdx.control.serve import assemble
from tdx.control.server import Server
from tdx.identity.port import Provider
from tdx.identity.registry import Identities
from tdx.metrics import Labels, Metrics
from tdx.policy.admission import Limits
from tdx.store.local import LocalStore
from tdx.store.port import Store
from tdx.store.syscalls import System

T = TypeVar("T")


def local_store(system: System | None = None, *, reserve: int = 0) -> Callable[[Path, Path], Store]:
    """What makes the store of a receiver, the same ``system`` at every start."""
    return lambda folder, state: LocalStore(folder, state, reserve=reserve, system=system)


@dataclass
class RunningReceiver:
    """A receiver on an ephemeral port of loopback; may be stopped and started again."""

    folder: Path
    state: Path
    limits: Limits = field(default_factory=Limits)
    make_store: Callable[[Path, Path], Store] = field(default_factory=local_store)
    pump: str | None = None
    names: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()
    providers: Sequence[Provider] | None = None
    port: int = 0
    receiver: Receiver | None = None
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _stop: asyncio.Event | None = None
    _failure: BaseException | None = None

    def start(self) -> None:
        up = threading.Event()
        self._failure = None

        def body() -> None:
            try:
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    runner.run(self._serve(up))
            except BaseException as error:
                self._failure = error
            finally:
                up.set()

        self._thread = threading.Thread(target=body, name="receiver under test")
        self._thread.start()
        assert up.wait(30)
        if self._failure is not None:
            raise self._failure

    async def _serve(self, up: threading.Event) -> None:
        config = ServeConfig(
            folder=self.folder,
            state=self.state,
            listen=(("127.0.0.1", self.port),),
            limits=self.limits,
            names=self.names,
            allowed_origins=self.allowed_origins,
        )
        store = self.make_store(self.folder, self.state)
        self.receiver = assemble(config, store, self.pump)
        if self.providers is not None:
            self.receiver.identities = Identities(self.providers)
        self.prepare()
        server = Server(self.receiver)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.port = (await server.start())[0].port
            up.set()
            await self._stop.wait()
        finally:
            await server.stop()
            self.receiver.workers.close()
            store.close()

    def prepare(self) -> None:
        """What is to be done to the receiver before it starts."""

    def stop(self) -> None:
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._thread = None
        if self._failure is not None:
            raise self._failure

    def restart(self) -> None:
        """Stop and start again on the same port."""
        self.stop()
        self.start()

    @property
    def running(self) -> Receiver:
        assert self.receiver is not None
        return self.receiver

    @property
    def metrics(self) -> Metrics:
        return self.running.metrics

    def uploads_ended(self, protocol: str, result: str) -> float:
        return self.metrics.uploads.value((protocol, result))

    def refusals(self) -> dict[Labels, float]:
        samples = self.metrics.refused.family().samples
        return {sample.labels: sample.value for sample in samples if sample.value}

    @property
    def peer(self) -> Peer:
        return Peer("127.0.0.1", self.port)

    def connect(self, source: str = "127.0.0.1") -> Wire:
        return Wire(self.port, source)

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, object] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as wire:
            return wire.request(method, target, body, headers)

    def has_bodies(self, n: int) -> None:
        """Wait until ``n`` bodies are being received."""

        def bodies() -> int:
            return sum(len(session.writers) for session in list(self.running.sessions._open.values()))

        wait_until(lambda: bodies() == n, f"{n} bodies are being received")

    def has_received(self, n: int) -> None:
        """Wait until ``n`` bytes of file content in all have come off the sockets. What does not
        fill a buffer of 1 MiB counts when its body ends."""

        def received() -> float:
            return sum(self.metrics.received_bytes.value((protocol,)) for protocol in ("tdx", "http"))

        wait_until(lambda: received() >= n, f"{n} bytes have arrived")

    def is_quiet(self) -> None:
        """Wait until no connection is open any more."""
        wait_until(lambda: self.metrics.connections_active.value() == 0, "every connection has ended")

    @staticmethod
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def visible(self) -> dict[str, bytes]:
        """Everything under DIR but the store's own folder: relative path → content."""
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files_below(self.folder)}

    def staged(self) -> list[Path]:
        uploads = self.folder / ".tdx" / "uploads"
        return sorted(uploads.iterdir()) if uploads.exists() else []


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[RunningReceiver]:
    inbox, state = folder / "inbox", folder / "state"
    inbox.mkdir(exist_ok=True)
    receiver = RunningReceiver(inbox, state, **settings)  # type: ignore[arg-type]
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def push(
    peer: Peer,
    path: Path,
    state: Path,
    *,
    sender: SenderOptions | None = None,
    tally: Tally | None = None,
    metrics: Metrics | None = None,
    **options: object,
) -> PushResult:
    """One push of a file, start to end, on a loop of its own."""

    async def go() -> PushResult:
        async with Sender(peer, sender or SenderOptions(stall_timeout=10.0), metrics) as pushing:
            return await pushing.push_file(path, PushOptions(state=state, **options), tally or Tally())  # type: ignore[arg-type]

    return asyncio.run(go())


def push_stream(
    peer: Peer,
    descriptor: int,
    state: Path,
    *,
    sender: SenderOptions | None = None,
    tally: Tally | None = None,
    **options: object,
) -> PushResult:
    """One push of what can be read from ``descriptor``."""

    async def go() -> PushResult:
        async with Sender(peer, sender or SenderOptions(stall_timeout=10.0)) as pushing:
            wishes = PushOptions(state=state, **options)  # type: ignore[arg-type]
            return await pushing.push_stream(descriptor, wishes, tally or Tally())

    return asyncio.run(go())


@contextmanager
def in_background(work: Callable[[], T]) -> Iterator[Future[T]]:
    """``work`` in a thread; its outcome, waited for at the end of the block."""
    with ThreadPoolExecutor(1, thread_name_prefix="in background") as pool:
        yield pool.submit(work)
