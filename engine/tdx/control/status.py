"""What a receiver is doing right now, as one document (docs/schema/status.json)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from tdx.config import format_address
from tdx.control.live import Live
from tdx.control.receiver import Receiver
from tdx.errors import TdxError
from tdx.identity.port import Endpoint
from tdx.metrics import PROTOCOLS
from tdx.model import UploadId
from tdx.policy.speed import Speed
from tdx.store.port import Store
from tdx.version import VERSION

Listening = Callable[[], Iterable[Endpoint]]

INTERVAL: Final = 1.0
"""Seconds between two looks at how much has come."""

DISK_SECONDS: Final = 1.0
"""How long an answer waits for the disk."""

FRESH_SECONDS: Final = 1.0
"""How long what the disk has said is good for."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What only the disk knows."""

    free_bytes: int
    staged_bytes: int
    partials: frozenset[UploadId]


class Disk:
    """Asks the disk, on one thread of its own: where that hangs, it alone does. Used by the loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tdx-status")
        self._asked: Future[OnDisk | None] | None = None
        self._asked_at = 0.0

    async def ask(self) -> OnDisk | None:
        """What it said at most :data:`FRESH_SECONDS` ago; None where it fails, or says nothing in time."""
        now = asyncio.get_running_loop().time()
        asked = self._asked
        if asked is None or (asked.done() and now - self._asked_at >= FRESH_SECONDS):
            asked = self._asked = self._thread.submit(self._look)
            self._asked_at = now
        # Who comes while one waits already waits no longer than that.
        left = max(0.0, self._asked_at + DISK_SECONDS - now)
        await asyncio.wait([asyncio.wrap_future(asked)], timeout=left)
        return asked.result() if asked.done() else None

    def close(self) -> None:
        """Wait until the disk is not looked at any more. Blocks."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _look(self) -> OnDisk | None:
        store = self._store
        try:
            partials = frozenset(partial.upload for partial in store.partials())
            return OnDisk(store.free_bytes(), store.staged_bytes(), partials)
        except TdxError:
            return None


class _Pace:
    """How fast the run of an upload that ``began`` then brings bytes, and when the newest ones came."""

    def __init__(self, began: float) -> None:
        self.began = self.grew_at = began
        self.speed = Speed()
        self._count = 0
        self.speed.observe(0, began)

    def observe(self, count: int, now: float) -> None:
        if count > self._count:
            self._count, self.grew_at = count, now
        self.speed.observe(count, now)


class Status:
    """Looks at one receiver. Used by the loop's thread."""

    def __init__(self, receiver: Receiver, listening: Listening, metrics: Endpoint | None) -> None:
        """``listening`` tells where it listens now; ``metrics`` where those are."""
        self._receiver = receiver
        self._listening = listening
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._disk = Disk(receiver.store)
        self._paces: dict[UploadId, _Pace] = {}

    async def run(self) -> None:
        """See from time to time how much has come. Until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(INTERVAL)

    def _look(self) -> list[Live]:
        """Every transfer as it stands now; how much each upload has brought is noted."""
        found, now, before = self._receiver.live(), self._loop.time(), self._paces
        self._paces = {}
        for live in found:
            if live.upload is not None:
                pace = before.get(live.upload)
                if pace is None or pace.began != live.began:  # a newer run
                    pace = _Pace(live.began)
                pace.observe(live.received, now)
                self._paces[live.upload] = pace
        return found

    def close(self) -> None:
        """Blocks until the disk has answered, if it was asked."""
        self._disk.close()

    async def document(self) -> dict[str, object]:
        """Within about :data:`DISK_SECONDS`: where the disk does not answer, what it knows is null."""
        disk, receiver = await self._disk.ask(), self._receiver
        config, metrics = receiver.config, receiver.metrics
        found = self._look()
        moving = {live.upload for live in found if live.active}
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "folder": str(config.folder.absolute()),
            "state": str(config.state.absolute()),
            "started": self._started,
            "seconds": _rounded(self._loop.time() - self._began),
            "listening": [_written(each) for each in self._listening()],
            "metrics": self._metrics and _written(self._metrics),
            "connections": int(metrics.connections_active.value()),
            "free_bytes": disk and disk.free_bytes,
            "staged_bytes": disk and disk.staged_bytes,
            "received_bytes": int(sum(metrics.received_bytes.value((each,)) for each in PROTOCOLS)),
            "disk_waiting_seconds": _rounded(metrics.disk_waiting.value()),
            "transfers": [self._transfer(live, live.upload) for live in found if live.upload is not None],
            "bundles": [self._bundle(live) for live in found if live.upload is None],
            "waiting": None if disk is None else len(disk.partials - moving),
        }

    def _transfer(self, live: Live, upload: UploadId) -> dict[str, object]:
        now, pace = self._loop.time(), self._paces[upload]
        rate = (pace.speed.rate or 0.0) if live.phase == "receiving" else 0.0
        # What came twice counts once, what is on its way to an extent that is not whole counts already.
        come = max(live.held, live.resumed + live.received)
        done = come if live.size is None else min(come, live.size)
        left = None if live.size is None else live.size - done
        idle = now - pace.grew_at
        return {
            "upload": upload,
            "name": live.name,
            "peer": live.peer,
            "owner": live.owner,
            "protocol": live.protocol,
            "phase": live.phase,
            "size": live.size,
            "held_bytes": live.held,
            "resumed_bytes": live.resumed,
            "received_bytes": live.received,
            "done_bytes": done,
            "bytes_per_second": round(rate),
            "seconds": _rounded(now - live.began),
            # Bytes are counted when there are some: the sockets know better, of bodies on their way.
            "idle_seconds": _rounded(min(idle, live.silent_for) if live.streams else idle),
            "streams": live.streams,
            "stages": _stages(live),
            "bottleneck": live.bottleneck,
            "eta_seconds": _rounded(left / rate) if left is not None and rate >= 1 else None,
        }

    def _bundle(self, live: Live) -> dict[str, object]:
        return {
            "peer": live.peer,
            "owner": live.owner,
            "phase": live.phase,
            "size": live.size,
            "files": live.files,
            "received_bytes": live.received,
            "seconds": _rounded(self._loop.time() - live.began),
            "idle_seconds": _rounded(live.silent_for),
            "stages": _stages(live),
            "bottleneck": live.bottleneck,
        }


def _stages(live: Live) -> dict[str, object]:
    sender = {} if live.sender_stages is None else live.sender_stages.took_time()
    return {"receiver": live.stages.took_time(), "sender": sender}


def _written(endpoint: Endpoint) -> str:
    return format_address((endpoint.host, endpoint.port))


def _rounded(seconds: float) -> float:
    # The loop's clock and others may differ by some milliseconds.
    return round(max(0.0, seconds), 3)
