"""One run of ``tdx push``: every item in turn, signals, the time limit, the worst exit code."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from tdx.control.progress import PushResult, Tally
from tdx.control.push import PushOptions
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions
from tdx.control.signals import StopSignals
from tdx.errors import Interrupted, TdxError, TimedOut, UnknownPeer, Unreachable
from tdx.model import Conflict, shown
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.exits import worst
from tdx_cli.main import INTERNAL
from tdx_cli.plan import Item, LeftOut
from tdx_cli.report import OUTCOMES, Ending, Failure, Report
from tdx_cli.text import seconds_of, warn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
KEPT: Final = "what arrived is kept: run again with --resume"
LOST: Final = "what was read of standard input is lost: push it again from its beginning"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags ask for. ``timeout`` in seconds for the whole run; ``quiet``: no notes, only
    errors; ``several``: sum up at the end."""

    peer: Peer
    sender: SenderOptions
    state: Path
    conflict: Conflict
    resume: bool
    streams: int | None
    digest: str | None
    pump: str | None
    timeout: float | None
    quiet: bool
    several: bool


class Run:
    """Pushes items one after the other and remembers how each ended."""

    def __init__(self, wishes: Wishes, report: Report) -> None:
        self._wishes = wishes
        self._report = report
        self._endings: list[Ending] = []
        self._pushing: asyncio.Task[PushResult] | None = None
        self._stopped: TdxError | None = None
        self._hopeless: TdxError | None = None
        self._remains = KEPT
        self._sender: Sender | None = None
        self._signals = StopSignals()

    async def push(self, items: Iterable[Item | LeftOut]) -> int:
        """Push everything; the exit code. After a stop, what has not begun is not begun."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        for number in SIGNALS:
            # Not the loop's own handlers: those leave moments in which a signal kills outright.
            signal.signal(number, functools.partial(self._on_signal, loop))
        limit = self._wishes.timeout
        timer = None if limit is None else loop.call_later(limit, self._on_timeout, limit)
        try:
            async with Sender(self._wishes.peer, self._wishes.sender) as sender:
                self._sender = sender
                for item in items:
                    # A stop that arrived since the last file has its turn.
                    await asyncio.sleep(0)
                    if self._stopped is not None:
                        break
                    if isinstance(item, LeftOut):
                        if not self._wishes.quiet:
                            warn(f"{shown(item.path)} {item.reason}; left out")
                    else:
                        await self._push_item(sender, item)
        finally:
            if timer is not None:
                timer.cancel()
            for number in SIGNALS:
                # Nothing is left to stop: the exit code tells what happened, not a late signal.
                signal.signal(number, signal.SIG_IGN)
        if self._wishes.several:
            self._report.summary(self._endings, loop.time() - started)
        codes = [ending.exit_code for ending in self._endings]
        if self._stopped is not None:
            codes.append(self._stopped.exit_code)
        return worst(codes)

    # --- stopping --------------------------------------------------------------

    def _on_signal(self, loop: asyncio.AbstractEventLoop, number: int, _frame: FrameType | None) -> None:
        # A second one ends the process here, not through the loop: that may be waiting for a thread
        # that waits for a disk.
        if not self._signals.is_first(number):
            return
        name = signal.Signals(number).name
        loop.call_soon_threadsafe(lambda: self._stop(Interrupted(f"stopped by {name}; {self._remains}")))

    def _on_timeout(self, limit: float) -> None:
        met = self._sender is not None and self._sender.met
        what = self._remains if met else f"{self._wishes.peer} had not been reached"
        self._stop(TimedOut(f"not done after {seconds_of(limit)}; {what}"))

    def _stop(self, reason: TdxError) -> None:
        self._stopped = self._stopped or reason
        if self._pushing is not None:
            self._pushing.cancel()

    # --- one item --------------------------------------------------------------

    async def _push_item(self, sender: Sender, item: Item) -> None:
        self._remains = LOST if item.is_stdin else KEPT
        self._report.started(item)
        ending, bug = await self._attempt(sender, item)
        self._endings.append(ending)
        self._report.ended(ending)
        if bug is not None:
            raise bug
        if ending.error is not None:
            message = ending.error.message
            about = f"{shown(item.name)}: " if self._wishes.several else ""
            warn(message if message.startswith(about) else about + message)

    async def _attempt(self, sender: Sender, item: Item) -> tuple[Ending, Exception | None]:
        """How pushing the item ended, and what nobody expected to be raised, if anything was."""
        began = time.monotonic()
        tally = Tally(total=item.size)
        error = item.error or self._hopeless
        bug: Exception | None = None
        try:
            if error is None:
                return _ending(item, await self._watched(sender, item, tally)), None
            failure = Failure.of(error)
        except TdxError as raised:
            if isinstance(raised, UnknownPeer | Unreachable):
                # The other files would meet the same, each after its own wait.
                self._hopeless = raised
            failure = Failure.of(self._stopped or raised)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            failure = Failure.of(self._stopped)
        except Exception as raised:
            bug = raised
            failure = Failure("internal", f"{type(raised).__name__}: {raised}", INTERNAL)
        seconds = time.monotonic() - began
        return Ending(
            "failed", item.name, tally.total, tally.sent, tally.resumed, seconds, error=failure
        ), bug

    async def _watched(self, sender: Sender, item: Item, tally: Tally) -> PushResult:
        """Push one item, reporting progress meanwhile."""
        began = time.monotonic()
        self._pushing = asyncio.create_task(self._pushed(sender, item, tally))
        try:
            while True:
                elapsed = time.monotonic() - began
                done, _ = await asyncio.wait([self._pushing], timeout=self._report.interval(elapsed))
                if done:
                    return self._pushing.result()
                elapsed = time.monotonic() - began
                self._report.progress(item, tally, elapsed, self._bottleneck(tally, elapsed))
        finally:
            if not self._pushing.done():
                self._pushing.cancel()
                await asyncio.wait([self._pushing])
            self._pushing = None

    async def _pushed(self, sender: Sender, item: Item, tally: Tally) -> PushResult:
        wishes = self._wishes
        options = PushOptions(
            state=wishes.state,
            name=item.name,
            conflict=wishes.conflict,
            resume=wishes.resume,
            streams=wishes.streams,
            digest=wishes.digest,
            pump=wishes.pump,
        )
        if item.is_stdin:
            return await sender.push_stream(0, options, tally)
        return await sender.push_file(Path(item.path), options, tally)

    def _bottleneck(self, tally: Tally, elapsed: float) -> str | None:
        rate = tally.sent / elapsed if elapsed > 0 else None
        return name_bottleneck(tally.ours, tally.theirs, rate=rate, limit=self._wishes.sender.limit_rate)


def _ending(item: Item, result: PushResult) -> Ending:
    return Ending(
        event=OUTCOMES[result.outcome.value],
        name=item.name,
        size=result.size,
        sent_bytes=result.sent_bytes,
        resumed_bytes=result.resumed_bytes,
        seconds=result.seconds,
        root=result.root,
        path=result.path,
    )
