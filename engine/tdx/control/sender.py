"""The sending side of one process: one peer, its connections, and pushes to it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tdx.config import state_directory
from tdx.control.client import Client
from tdx.control.dial import Dialer
from tdx.control.pace import Pace
from tdx.control.progress import PushResult, Tally
from tdx.control.push import FilePush, PushOptions
from tdx.control.push_stream import StreamPush
from tdx.control.resolve import Peer
from tdx.control.sending import MOST_STREAMS
from tdx.control.workers import Workers
from tdx.data.source import Source, settled
from tdx.errors import Superseded, TdxError
from tdx.identity.providers import identities_of
from tdx.identity.settings import IdentitySettings
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.model import Outcome
from tdx.policy.bandwidth import RateSchedule
from tdx.policy.retry import RetryPolicy
from tdx.version import VERSION

if TYPE_CHECKING:
    from tdx.control.items import Watch
    from tdx.control.push_many import ManyPushes
    from tdx.control.resolve import Find


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """What holds for every push to the peer. ``limit_rate`` is in bytes per second over all
    streams, all day or by a schedule, ``stall_timeout`` in seconds, ``retries`` how many failures in
    a row without progress are borne. ``identity`` says how peers are known; ``state`` is where this device's
    key and the trusted devices are kept, the usual place where it is None."""

    limit_rate: RateSchedule | float | None = None
    retries: int = RetryPolicy().retries
    stall_timeout: float = 60.0
    identity: IdentitySettings = IdentitySettings()  # noqa: RUF009  frozen
    state: Path | None = None


class Sender:
    """Pushes to one peer. Used inside ``async with``, which closes connections and threads.

    Every push is counted in ``metrics``.
    """

    def __init__(self, peer: Peer, options: SenderOptions, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics(VERSION)
        self.workers = Workers(bodies=MOST_STREAMS)
        devices = TlsIdentities(options.state or state_directory(os.environ))
        identities = identities_of(options.identity, os.getuid())
        find: Find | None = None
        if options.identity.discover:
            from tdx.control.discovery import find_device as find
        dialer = Dialer(peer, identities, devices, self.workers, find=find)
        policy = RetryPolicy(retries=options.retries)
        self.client = Client(dialer, self.workers, self.metrics, policy, options.stall_timeout)
        self.pace = Pace(options.limit_rate)

    @property
    def met(self) -> bool:
        """Whether the peer has been reached."""
        return self.client.met

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.workers.close()

    async def push_file(self, path: Path, options: PushOptions, tally: Tally) -> PushResult:
        """Push one regular file. Raises what ended the push; a partial is kept."""
        with await self.workers.on_disk(Source.open, path) as source:
            began = time.time()
            result = await self._counted(FilePush(self.client, source, options, self.pace, tally), tally)
            if options.roots is not None and result.root is not None and settled(source.status, began):
                options.roots.remember(source.status, result.root)
            return result

    def many(self, options: PushOptions, watch: Watch, *, compare: bool = False) -> ManyPushes:
        """Pushes of many files, several at a time; ``watch`` is told of each. ``options`` hold for
        all of them and name none. ``compare``: the peer is asked first what it has already, and makes
        folders and links."""
        if compare:
            from tdx.control.push_trees import TreePushes

            return TreePushes(self, options, watch)
        from tdx.control.push_many import ManyPushes

        return ManyPushes(self, options, watch)

    async def push_stream(self, descriptor: int, options: PushOptions, tally: Tally) -> PushResult:
        """Push what can be read from ``descriptor`` until its end."""
        push = StreamPush(self.client, descriptor, options.name, options.conflict, self.pace, tally)
        return await self._counted(push, tally)

    def count_known(self, outcomes: Iterable[PushResult | TdxError]) -> None:
        """Count files of which nothing was sent as pushes."""
        self.count_bundle(outcomes, Tally())

    def count_bundle(self, outcomes: Iterable[PushResult | TdxError], tally: Tally) -> None:
        """Count the files of one bundle as pushes."""
        ended = Counter("failed" if isinstance(each, TdxError) else each.outcome.value for each in outcomes)
        for result, count in ended.items():
            self.metrics.uploads.add(count, ("tdx", result))
        self.metrics.sent_bytes.add(tally.sent)
        self.metrics.add_stages(tally.spent())

    async def _counted(self, push: FilePush | StreamPush, tally: Tally) -> PushResult:
        metrics, started = self.metrics, asyncio.get_running_loop().time()
        sent, ended = tally.sent, "failed"
        try:
            result = await push.run()
            ended = result.outcome.value
            if result.outcome is Outcome.PUBLISHED and result.seconds > 0:
                metrics.transfer_throughput.observe((tally.sent - sent) / result.seconds)
            return result
        except Superseded:
            ended = "superseded"
            raise
        except asyncio.CancelledError:
            ended = "cancelled"
            raise
        finally:
            metrics.uploads.add(1, ("tdx", ended))
            metrics.transfer_duration.observe(asyncio.get_running_loop().time() - started)
            metrics.sent_bytes.add(tally.sent - sent)
            metrics.add_stages(tally.spent())
