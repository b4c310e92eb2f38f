"""Putting a receiver together and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdx.config import ServeConfig
from tdx.control.discovery import announce
from tdx.control.figures import Figure
from tdx.control.local_api import listen_locally
from tdx.control.loop import loop_factory
from tdx.control.on_receive import Programs
from tdx.control.receiver import Receiver
from tdx.control.server import Server
from tdx.control.sessions import Sessions
from tdx.control.signals import StopSignals
from tdx.control.throttle import Throttle
from tdx.control.watchdog import Watchdog
from tdx.control.workers import Workers
from tdx.errors import ConfigError
from tdx.export.prometheus import serve_metrics
from tdx.identity.port import Endpoint
from tdx.identity.providers import identities_of
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.policy.admission import Admission
from tdx.policy.rules import Policy
from tdx.store.local import LocalStore
from tdx.store.port import Store
from tdx.version import VERSION

log = logging.getLogger(__name__)


def assemble(config: ServeConfig, store: Store, pump: str | None = None) -> Receiver:
    """A receiver over ``store``, with its metrics hooked up."""
    metrics = Metrics(VERSION)
    workers = Workers(bodies=config.limits.max_connections)
    sessions = Sessions(store, workers, metrics, pump)
    metrics.uploads_active.follow(lambda: float(len(sessions)))
    metrics.transfers_active.follow(lambda: float(receiver.active()))
    metrics.transfers_stalled.follow(lambda: float(receiver.stalled()))
    metrics.storage_reserve_bytes.set(config.reserve)
    # A scrape that waited for a disk that hangs would keep disk_waiting, too, from being told.
    metrics.storage_free_bytes.follow(Figure(store.free_bytes))
    metrics.staging_bytes.follow(Figure(store.staged_bytes))
    receiver = Receiver(
        config=config,
        store=store,
        sessions=sessions,
        workers=workers,
        identities=identities_of(config.identity, os.getuid()),
        devices=TlsIdentities(config.state),
        admission=Admission(config.limits),
        metrics=metrics,
        policy=Policy(config.rules),
        throttle=Throttle(config.limit_rate),
    )
    return receiver


def _raise_descriptor_limit() -> None:
    """Each connection is a descriptor, each upload in hand three: take what one may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a receiver tells, and asks, whoever runs it.

    ``ready`` is told the addresses once they are open, then that of the metrics if there
    are any; ``stopping`` when no more are taken. ``configure`` reads the configuration
    again (ConfigError where it cannot be used), between ``reloading`` and ``reloaded``. ``status`` is told
    in a line what is going on; ``alive`` is called while that is so, at least every ``patience`` seconds
    (:mod:`tdx.control.watchdog`).
    """

    ready: Callable[[Sequence[Endpoint], Endpoint | None], None]
    stopping: Callable[[], None]
    configure: Callable[[], ServeConfig]
    reloading: Callable[[], None] = _nothing
    reloaded: Callable[[], None] = _nothing
    alive: Callable[[], None] = _nothing
    status: Callable[[str], None] = _nothing
    patience: float | None = None


async def serve(
    config: ServeConfig, hooks: Hooks, pump: str | None = None, inherited: Sequence[socket.socket] = ()
) -> None:
    """Serve until SIGTERM or SIGINT, the second of which ends the process at once. SIGHUP reads
    the rules, the rate limit and the identity providers' settings again; what runs goes on as far as they
    allow. ``inherited`` are listening sockets to use instead of opening any.

    ConfigError where the folder, an address or a program cannot be used.
    """
    stop, signals = asyncio.Event(), StopSignals()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        # Whatever is under way survives a kill: who asks twice need not wait for a slow disk.
        if signals.is_first(number):
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to tell it to
    _raise_descriptor_limit()
    store = LocalStore(config.folder, config.state, reserve=config.reserve)
    receiver = assemble(config, store, pump)
    scraped = announcing = again = watching = local = None
    server = Server(receiver, inherited)
    configuring = Configuring(receiver, hooks)
    watchdog = Watchdog(receiver, hooks.alive, hooks.status, hooks.patience)
    loop.add_signal_handler(signal.SIGHUP, configuring.ask)
    try:
        if config.on_receive:
            receiver.programs = Programs(config, receiver.metrics, os.environ)
        if config.metrics is not None:
            scraped = serve_metrics(receiver.metrics, *config.metrics)
        addresses = await server.start()
        measured = None if scraped is None else Endpoint(*scraped.address)
        local = await listen_locally(receiver, lambda: server.addresses, measured)
        hooks.ready(addresses, measured)
        if config.announce:
            announcing = asyncio.create_task(announce(receiver, addresses))
        again = asyncio.create_task(configuring.run())
        watching = asyncio.create_task(watchdog.run())
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, server.folder_gone)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        hooks.stopping()
        if server.folder_gone.is_set():
            raise ConfigError(f"{config.folder} has been removed; make it again and restart the receiver")
        log.info("stopping: what is on its way can be resumed")
    finally:
        for task in (announcing, again, watching):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await server.stop()
        if local is not None:
            await local.close()
        if receiver.programs is not None:
            await receiver.workers.at_length(receiver.programs.close)
        if scraped is not None:
            scraped.close()
        receiver.workers.close()
        store.close()


class Configuring:
    """Reads the configuration again whenever it is asked to, one time after the other, and beside the
    loop: a file may be on a disk that hangs."""

    def __init__(self, receiver: Receiver, hooks: Hooks) -> None:
        self._receiver = receiver
        self._hooks = hooks
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._hooks.reloading()
            try:
                await self._receiver.workers.at_length(self._read)
            except ConfigError as error:
                log.error("the configuration stays as it was: %s", error.message)
            except Exception:  # whatever it was, the next one must be read
                log.exception("the configuration stays as it was")
            else:
                log.info("rules, rate limit and identity providers are as configured now")
            finally:
                self._hooks.reloaded()

    def _read(self) -> None:
        config = self._hooks.configure()
        identities = identities_of(config.identity, os.getuid())
        self._receiver.identities, self._receiver.policy = identities, Policy(config.rules)
        self._receiver.throttle.change(config.limit_rate)


def run(
    config: ServeConfig, hooks: Hooks, pump: str | None = None, inherited: Sequence[socket.socket] = ()
) -> None:
    """:func:`serve` on a loop of its own."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(config, hooks, pump, inherited))
