"""Putting a receiver together and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdx.config import ServeConfig
from tdx.control.discovery import announce
from tdx.control.loop import loop_factory
from tdx.control.receiver import Receiver
from tdx.control.server import Server
from tdx.control.sessions import Sessions
from tdx.control.signals import StopSignals
from tdx.control.throttle import Throttle
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
    metrics.storage_free_bytes.follow(lambda: float(store.free_bytes()))
    metrics.staging_bytes.follow(lambda: float(store.staged_bytes()))
    return Receiver(
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


def _raise_descriptor_limit() -> None:
    """Each connection is a descriptor, each upload in hand three: take what one may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a receiver tells, and asks, whoever runs it.

    ``ready`` is told the addresses once they are open, then that of the metrics if there
    are any; ``stopping`` when no more are taken. ``configure`` reads the configuration
    again (ConfigError where it cannot be used).
    """

    ready: Callable[[Sequence[Endpoint], Endpoint | None], None]
    stopping: Callable[[], None]
    configure: Callable[[], ServeConfig]


async def serve(config: ServeConfig, hooks: Hooks, pump: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, the second of which ends the process at once. SIGHUP reads
    the rules, the rate limit and the identity providers' settings again; what runs goes on as far as they
    allow.

    ConfigError where the folder or an address cannot be used.
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
    scraped = announcing = again = None
    server = Server(receiver)
    configuring = Configuring(receiver, hooks.configure)
    loop.add_signal_handler(signal.SIGHUP, configuring.ask)
    try:
        if config.metrics is not None:
            scraped = serve_metrics(receiver.metrics, *config.metrics)
        addresses = await server.start()
        hooks.ready(addresses, None if scraped is None else Endpoint(*scraped.address))
        if config.announce:
            announcing = asyncio.create_task(announce(receiver, addresses))
        again = asyncio.create_task(configuring.run())
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, server.folder_gone)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        hooks.stopping()
        if server.folder_gone.is_set():
            raise ConfigError(f"{config.folder} has been removed; make it again and restart the receiver")
        log.info("stopping: what is on its way can be resumed")
    finally:
        for task in (announcing, again):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        await server.stop()
        if scraped is not None:
            scraped.close()
        receiver.workers.close()
        store.close()


class Configuring:
    """Reads the configuration again whenever it is asked to, one time after the other, and beside the
    loop: a file may be on a disk that hangs."""

    def __init__(self, receiver: Receiver, configure: Callable[[], ServeConfig]) -> None:
        self._receiver = receiver
        self._configure = configure
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._receiver.workers.at_length(self._read)
            except ConfigError as error:
                log.error("the configuration stays as it was: %s", error.message)
            except Exception:  # whatever it was, the next one must be read
                log.exception("the configuration stays as it was")
            else:
                log.info("rules, rate limit and identity providers are as configured now")

    def _read(self) -> None:
        config = self._configure()
        identities = identities_of(config.identity, os.getuid())
        self._receiver.identities, self._receiver.policy = identities, Policy(config.rules)
        self._receiver.throttle.change(config.limit_rate)


def run(config: ServeConfig, hooks: Hooks, pump: str | None = None) -> None:
    """:func:`serve` on a loop of its own."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(config, hooks, pump))
