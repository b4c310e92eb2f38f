"""What a receiver is doing right now, as one document (docs/schema/status.json)."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from weakref import WeakKeyDictionary

from tdx.config import format_address
from tdx.control.live import Live
from tdx.control.receiver import Arriving, Receiver
from tdx.control.session import Session
from tdx.errors import TdxError
from tdx.identity.port import Endpoint
from tdx.metrics import PROTOCOLS
from tdx.model import Stages, UploadId
from tdx.store.port import Store
from tdx.version import VERSION

Listening = Callable[[], Iterable[Endpoint]]

INTERVAL: Final = 1.0
"""Seconds between two looks at how much has come."""

WINDOW: Final = 5.0
"""Seconds over which a rate is measured."""

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


class Speed:
    """How fast a count has grown lately, and since when it has not."""

    def __init__(self, now: float) -> None:
        self.grew_at = now
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, count: int, now: float) -> None:
        if self._seen and count < self._seen[-1][1]:  # a newer run
            self._seen.clear()
        if count > (self._seen[-1][1] if self._seen else 0):
            self.grew_at = now
        if self._seen and now - self._seen[-1][0] < INTERVAL / 4:
            return
        self._seen.append((now, count))
        # One observation older than the window stays, so that the window is covered.
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()

    def rate(self, since: float) -> float:
        """Per second; over the time ``since`` then where it has been looked at for less than a while."""
        if not self._seen:
            return 0.0
        (before, start), (after, end) = self._seen[0], self._seen[-1]
        if after - before < INTERVAL:
            return end / (after - since) if after > since else 0.0
        return (end - start) / (after - before)


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
        self._speeds: WeakKeyDictionary[Session, Speed] = WeakKeyDictionary()

    async def run(self) -> None:
        """See from time to time how much has come. Until cancelled."""
        while True:
            for session in self._receiver.sessions:
                self._speed(session, session.live().received)
            await asyncio.sleep(INTERVAL)

    def close(self) -> None:
        """Blocks until the disk has answered, if it was asked."""
        self._disk.close()

    async def document(self) -> dict[str, object]:
        """Within about :data:`DISK_SECONDS`: where the disk does not answer, what it knows is null."""
        disk, receiver = await self._disk.ask(), self._receiver
        config, metrics = receiver.config, receiver.metrics
        transfers = [self._transfer(session) for session in receiver.sessions]
        moving = {each["upload"] for each in transfers if each["phase"] != "waiting"}
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
            "transfers": transfers,
            "bundles": [self._bundle(arrival) for arrival in list(receiver.arrivals)],
            "waiting": None if disk is None else len(disk.partials - moving),
        }

    def _speed(self, session: Session, count: int) -> Speed:
        now = self._loop.time()
        speed = self._speeds.get(session)
        if speed is None:
            speed = self._speeds[session] = Speed(now if count else session.started)
        speed.observe(count, now)
        return speed

    def _transfer(self, session: Session) -> dict[str, object]:
        now, live = self._loop.time(), session.live()
        phase = _phase(session, live)
        speed = self._speed(session, live.received)
        rate = speed.rate(live.began) if phase == "receiving" else 0.0
        # What came twice counts once, what is on its way to an extent that is not whole counts already.
        done = max(live.held, live.resumed + live.received)
        left = None if live.size is None else max(0, live.size - done)
        idle = now - speed.grew_at
        return {
            "upload": session.id,
            "name": live.name,
            "peer": session.peer,
            "owner": live.owner,
            "protocol": live.protocol,
            "phase": phase,
            "size": live.size,
            "held_bytes": live.held,
            "resumed_bytes": live.resumed,
            "received_bytes": live.received,
            "bytes_per_second": round(rate),
            "seconds": _rounded(now - live.began),
            # Bytes are counted when there are some: the sockets know better, of bodies on their way.
            "idle_seconds": _rounded(min(idle, live.silent_for) if live.streams else idle),
            "streams": live.streams,
            "stages": {"receiver": _spent(live.stages), "sender": _spent(live.sender_stages)},
            "bottleneck": live.bottleneck,
            "eta_seconds": _rounded(left / rate) if left is not None and rate >= 1 else None,
        }

    def _bundle(self, arrival: Arriving) -> dict[str, object]:
        live = arrival.live()
        return {
            "peer": arrival.caller.node,
            "owner": live.owner,
            "phase": "publishing" if live.committing else "receiving",
            "size": arrival.expected,
            "files": arrival.files,
            "received_bytes": live.received,
            "seconds": _rounded(self._loop.time() - live.began),
            "idle_seconds": _rounded(live.silent_for),
            "stages": {"receiver": _spent(live.stages), "sender": _spent(live.sender_stages)},
            "bottleneck": live.bottleneck,
        }


def _phase(session: Session, live: Live) -> str:
    if live.streams:
        return "receiving"
    if live.committing:
        return "publishing" if session.publishing.locked() else "comparing"
    return "comparing" if session.busy else "waiting"


def _spent(stages: Stages | None) -> dict[str, float]:
    """The stages that took time."""
    return (
        {} if stages is None else {stage: _rounded(took) for stage, took in stages.as_dict().items() if took}
    )


def _written(endpoint: Endpoint) -> str:
    return format_address((endpoint.host, endpoint.port))


def _rounded(seconds: float) -> float:
    # The loop's clock and others may differ by some milliseconds.
    return round(max(0.0, seconds), 3)
