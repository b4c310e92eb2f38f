"""One run of a batch: its items at their peers, one handler of signals for all, the sum at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tdx.config.batch import Batch, BatchItem
from tdx.control.lanes import Lanes
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.errors import Interrupted, StorageError, TdxError, TimedOut
from tdx.identity.settings import IdentitySettings
from tdx.policy.bandwidth import RateSchedule
from tdx.policy.exits import worst
from tdx_cli.batch_plan import find, items_of
from tdx_cli.batch_report import HEADING, STYLES, Live, Part, draws, say_table, summary_of
from tdx_cli.main import unexpected
from tdx_cli.pushing import Run, Wishes
from tdx_cli.report import Failure, JsonReport, Report, Several
from tdx_cli.stopping import limited, told_of_signals
from tdx_cli.text import STDOUT, say_json, seconds_of, warn

AWAY: Final = 60.0
"""Seconds for which a peer that could not be reached is not tried again by other items."""

KEPT: Final = "what arrived is kept: run the batch again"


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the whole run. ``limit_rate`` is that of items that have none of their own. Times in
    seconds; ``wait`` is how long it waits before it begins."""

    state: Path
    identity: IdentitySettings = field(default_factory=IdentitySettings)
    limit_rate: RateSchedule | None = None
    wait: float = 0.0
    timeout: float | None = None
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """An item, and what becomes of it at each of its peers, by their names."""

    item: BatchItem
    peers: dict[str, Peer]
    parts: dict[str, Part]

    @classmethod
    def of(cls, item: BatchItem, peers: Sequence[Peer]) -> Job:
        named = {str(peer): peer for peer in peers}
        return cls(item, named, {name: Part(item.name, name) for name in named})


class BatchRun:
    """Runs jobs. What one of them meets is no matter for the others, but for a peer that cannot be reached:
    that is not waited for by each of them."""

    def __init__(self, batch: Batch, jobs: Sequence[Job], settings: Settings) -> None:
        self._batch = batch
        self._jobs = jobs
        self._settings = settings
        self._lanes = Lanes(batch.parallel, self._push)
        self._running: set[Run] = set()
        self._away: dict[str, tuple[TdxError, float]] = {}
        """Why a peer could not be reached, and until when that is believed."""
        self._stopped: TdxError | None = None
        self._stopping = asyncio.Event()
        self._failure: Exception | None = None
        self._live = Live() if not settings.quiet and draws(sys.stderr) else None
        self._began = 0.0

    async def run(self) -> int:
        """Push everything, until a signal or the time limit stops it, and tell what came of it; the exit
        code. Raises where that cannot be told."""
        loop = asyncio.get_running_loop()
        with told_of_signals(lambda name: self._stop(Interrupted(f"stopped by {name}; {KEPT}"))):
            await self._wait()
            self._began = loop.time()
            if self._stopped is None:
                with limited(self._settings.timeout, self._on_timeout):
                    await self._lanes.work([(job, job.parts) for job in self._jobs])
        if self._live is not None:
            self._live.clear()
        if self._failure is not None:
            raise self._failure
        return self._finish(loop.time() - self._began)

    def _finish(self, seconds: float) -> int:
        parts = [part for job in self._jobs for part in job.parts.values()]
        if self._stopped is not None:
            warn(f"{self._batch.name}: {self._stopped.message}")
            for part in parts:
                if not part.began:
                    part.error = Failure.of(self._stopped)
        code = worst(part.exit_code for part in parts)
        if self._settings.as_json:
            say_json(summary_of(self._batch.name, parts, seconds, code))
        elif not self._settings.quiet:
            rows = [part.row() for part in parts]
            say_table(HEADING, rows, [STYLES.get(part.outcome, "green") for part in parts])
        return code

    # --- stopping --------------------------------------------------------------

    async def _wait(self) -> None:
        """Let the fleet's other machines have their moments."""
        seconds = self._settings.wait
        if not seconds:
            return
        if self._settings.as_json:
            say_json({"event": "waiting", "batch": self._batch.name, "seconds": round(seconds, 6)})
        elif not self._settings.quiet:
            warn(f"{self._batch.name}: begins in {seconds_of(seconds)}; --now would begin at once")
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _on_timeout(self, limit: float) -> None:
        self._stop(TimedOut(f"not done after {seconds_of(limit)}; {KEPT}"))

    def _stop(self, reason: TdxError) -> None:
        self._stopped = self._stopped or reason
        self._stopping.set()
        self._lanes.stop()
        for run in self._running:
            run.stop(self._stopped)

    # --- one item at one peer --------------------------------------------------

    async def _push(self, job: Job, peer: str) -> bool:
        part = job.parts[peer]
        loop = asyncio.get_running_loop()
        began = loop.time()
        part.began = True
        about = f"{part.item} at {peer}: " if len(job.parts) > 1 else f"{part.item}: "
        try:
            await self._push_found(job, peer, part, about)
        except TdxError as error:
            part.error = Failure.of(error)
            warn(about + error.message)
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.filename == STDOUT:
                # What becomes of this one cannot be told, nor what becomes of the others.
                self._failure = self._failure or error
                self._stop(Interrupted(f"{error.strerror or error}"))
            else:
                part.error = Failure.of(StorageError(f"{error.strerror or error}"))
                warn(about + part.error.message)
        except Exception as error:
            part.error = Failure("internal", f"{type(error).__name__}: {error}", unexpected(error))
        part.seconds, part.ended = loop.time() - began, time.time()
        return not part.exit_code

    async def _push_found(self, job: Job, peer: str, part: Part, about: str) -> None:
        loop = asyncio.get_running_loop()
        error, until = self._away.get(peer, (None, 0.0))
        if error is not None and loop.time() < until:
            raise type(error)(f"{error.message} (not tried again)")
        found = await asyncio.to_thread(find, job.item)
        run = Run(self._wishes(job, peer, about), self._report(part))
        part.totals = run.totals
        self._running.add(run)
        try:
            if self._stopped is not None:
                run.stop(self._stopped)
            await run.run(items_of(job.item, found))
        finally:
            self._running.discard(run)
        if run.stopped is not None:
            part.stopped = True
            part.error = Failure.of(run.stopped)
            if run.stopped is not self._stopped:
                run.say_cut_short()
        elif run.in_vain is not None:
            self._away[peer] = run.in_vain, loop.time() + AWAY

    def _wishes(self, job: Job, peer: str, about: str) -> Wishes:
        item, settings = job.item, self._settings
        return Wishes(
            peer=job.peers[peer],
            sender=SenderOptions(
                limit_rate=settings.limit_rate if item.limit_rate is None else item.limit_rate,
                retries=item.retries,
                stall_timeout=item.stall_timeout,
                identity=settings.identity,
                state=settings.state,
            ),
            state=settings.state,
            conflict=item.conflict,
            resume=item.resume,
            whole=item.whole,
            streams=item.streams,
            digest=item.digest,
            pump=None,
            timeout=item.timeout,
            quiet=settings.quiet,
            several=True,
            about=about,
            kept=KEPT,
        )

    def _report(self, part: Part) -> Report:
        lines = JsonReport(part.peer, part.item) if self._settings.as_json else Report()
        if self._live is None:
            return lines
        return Several([self._live.part(asyncio.get_running_loop().time() - self._began), lines])
