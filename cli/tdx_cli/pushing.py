"""One run to one peer: its files, the time limit, progress, what people are told, the worst exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tdx.control.items import Ended, Found, Item, LeftOut, PartEnded
from tdx.control.push import PushOptions
from tdx.control.push_many import ManyPushes
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions
from tdx.errors import Interrupted, TdxError, TimedOut
from tdx.model import Conflict, Stages, shown
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.exits import worst
from tdx_cli.main import INTERNAL
from tdx_cli.report import OUTCOMES, Ending, Failure, Overall, Report, Totals
from tdx_cli.stopping import limited, told_of_signals
from tdx_cli.text import seconds_of, warn

KEPT: Final = "what arrived is kept: run again with --resume"
LOST: Final = "what was read of standard input is lost: push it again from its beginning"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags ask for. ``timeout`` in seconds for the whole run; ``quiet``: no notes, only
    errors; ``several``: ask first what the peer has already, and sum up at the end. ``about`` begins every
    line on standard error; ``kept`` says what is done about a stop."""

    peer: Peer
    sender: SenderOptions
    state: Path
    conflict: Conflict
    resume: bool
    whole: bool
    streams: int | None
    digest: str | None
    pump: str | None
    timeout: float | None
    quiet: bool
    several: bool
    about: str = ""
    kept: str = KEPT


class Run:
    """Has items pushed and tells how each ended. :meth:`push` is all of a process; where there are several,
    :meth:`run`, :meth:`stop` and :meth:`finish` are for whoever has them under one handler of signals."""

    def __init__(self, wishes: Wishes, report: Report) -> None:
        self._wishes = wishes
        self._report = report
        self.totals = Totals()
        self._sent = 0
        self._began = 0.0
        self._sending_since: float | None = None
        """When the first began of which something was sent: asking and reading are under no rate limit."""
        self._cut_short: list[str] = []
        self._stopped: TdxError | None = None
        self._sender: Sender | None = None
        self._pushes: ManyPushes | None = None
        self._explained: Exception | None = None

    async def push(self, items: Iterable[Found]) -> int:
        """Push everything, until a signal or the time limit stops it; the exit code."""
        with told_of_signals(lambda name: self.stop(Interrupted(f"stopped by {name}; {self._remains()}"))):
            await self.run(items)
        self.say_cut_short()
        return self.finish()

    async def run(self, items: Iterable[Found]) -> None:
        """Push everything; after a stop, what has not begun is not begun. Raises only what nobody
        expected, or what the report raised."""
        self._began = asyncio.get_running_loop().time()
        with limited(self._wishes.timeout, self._on_timeout):
            async with Sender(self._wishes.peer, self._wishes.sender) as sender:
                self._sender = sender
                self._pushes = pushes = sender.many(self._options(), self, compare=self._wishes.several)
                # A stop that arrived meanwhile has its turn.
                await asyncio.sleep(0)
                if self._stopped is None:
                    await self._watched(pushes, items)

    def stop(self, reason: TdxError) -> None:
        """What is on its way ends with ``reason``, unless it has been stopped already."""
        self._stopped = self._stopped or reason
        if self._pushes is not None:
            self._pushes.stop(self._stopped)

    def finish(self) -> int:
        """Tell what all of it came to; the exit code."""
        if self._stopped is not None:
            self.totals.codes.add(self._stopped.exit_code)
        if self._wishes.several:
            self._report.summary(self.totals, asyncio.get_running_loop().time() - self._began)
        return worst(self.totals.codes)

    @property
    def stopped(self) -> TdxError | None:
        """What stopped it before its end."""
        return self._stopped

    @property
    def in_vain(self) -> TdxError | None:
        """What says that the peer could not be reached, at first or any more; None where it was."""
        return None if self._pushes is None else self._pushes.hopeless

    def _options(self) -> PushOptions:
        wishes = self._wishes
        return PushOptions(
            state=wishes.state,
            conflict=wishes.conflict,
            resume=wishes.resume,
            whole=wishes.whole,
            streams=wishes.streams,
            digest=wishes.digest,
            pump=wishes.pump,
        )

    # --- stopping --------------------------------------------------------------

    def _on_timeout(self, limit: float) -> None:
        met = self._sender is not None and self._sender.met
        what = self._remains() if met else f"{self._wishes.peer} had not been reached"
        self.stop(TimedOut(f"not done after {seconds_of(limit)}; {what}"))

    def _remains(self) -> str:
        running = () if self._pushes is None else self._pushes.running.values()
        return (
            LOST if any(item.is_stdin for each in running for item in each.items[:1]) else self._wishes.kept
        )

    def say_cut_short(self) -> None:
        """One line, however many files a stop has ended: also where it came before the first had begun."""
        if self._stopped is None:
            return
        several = self._wishes.several and len(self._cut_short) == 1
        warn(
            self._wishes.about + (f"{shown(self._cut_short[0])}: " if several else "") + self._stopped.message
        )

    # --- progress --------------------------------------------------------------

    async def _watched(self, pushes: ManyPushes, items: Iterable[Found]) -> None:
        """Push, reporting progress meanwhile."""
        loop = asyncio.get_running_loop()
        pushing = asyncio.create_task(pushes.run(items))
        try:
            while not pushing.done():
                await asyncio.wait([pushing], timeout=self._interval(pushes, loop.time()))
                if not pushing.done():
                    self._tell_progress(pushes, loop.time())
        finally:
            if not pushing.done():
                pushing.cancel()
                await asyncio.wait([pushing])
        pushing.result()

    def _interval(self, pushes: ManyPushes, now: float) -> float | None:
        begun = [self._began, *(each.began for each in pushes.running.values() if len(each.items) == 1)]
        wanted = [self._report.interval(now - each) for each in begun]
        return min((seconds for seconds in wanted if seconds is not None), default=None)

    def _tell_progress(self, pushes: ManyPushes, now: float) -> None:
        whole, running = pushes.whole, list(pushes.running.values())
        sent, done = self._sent, whole.ended_size
        ours, theirs = Stages(), Stages()
        for each in running:
            tally = each.tally
            sent += tally.sent
            if tally.sent:
                self._has_sent_since(each.began)
            done += min(tally.sent + tally.resumed + tally.reused, tally.total or 0)
            spent = tally.spent()
            ours.add(spent)
            theirs.add(tally.theirs)
            if len(each.items) == 1:
                elapsed = now - each.began
                held_up = self._bottleneck(spent, tally.theirs, tally.sent, elapsed)
                self._report.progress(each.items[0], tally, elapsed, held_up)
        elapsed = now - self._began
        so_far = Overall(
            ended=whole.ended,
            files=whole.files if whole.complete else None,
            done=done,
            size=whole.size if whole.complete else None,
            sent=sent,
            bottleneck=self._bottleneck(ours, theirs, sent, now - (self._sending_since or now)),
        )
        self._report.overall(so_far, elapsed)

    def _has_sent_since(self, when: float) -> None:
        self._sending_since = when if self._sending_since is None else min(self._sending_since, when)

    def _bottleneck(self, ours: Stages, theirs: Stages, sent: float, elapsed: float) -> str | None:
        rate = sent / elapsed if elapsed > 0 else None
        limit = None if self._sender is None else self._sender.pace.rate
        return name_bottleneck(ours, theirs, rate=rate, limit=limit)

    # --- what the pushes tell (tdx.control.items.Watch) ------------------------

    def left_out(self, what: LeftOut) -> None:
        if not self._wishes.quiet:
            warn(f"{self._wishes.about}{shown(what.path)} {what.reason}; left out")

    def started(self, item: Item) -> None:
        self._report.started(item)

    def flush(self) -> None:
        self._report.flush()

    def ended(self, endings: Sequence[Ended]) -> None:
        for each in endings:
            ending = _ending(each)
            sent = each.sent / each.share if each.share else 0
            ending.bottleneck = self._bottleneck(each.ours, each.theirs, sent, each.seconds)
            self.totals.add(ending)
            self._sent += each.sent
            if each.sent:
                self._has_sent_since(asyncio.get_running_loop().time() - each.seconds)
            self._report.ended(ending)
            if each.error is not None:
                self._explain(each.item.name, each.error)
        # At each, not at the end: what measures it may have to tell of it before that.
        now, totals = asyncio.get_running_loop().time(), self.totals
        elapsed = now - (self._sending_since or now)
        totals.bottleneck = self._bottleneck(totals.sender, totals.receiver, self._sent, elapsed)

    def parts_ended(self, endings: Sequence[PartEnded]) -> None:
        for each in endings:
            self.totals.add_part(each)
            self._report.part_ended(each)
            if each.error is not None:
                self._explain(each.part.name, each.error)

    def _explain(self, name: str, error: Exception) -> None:
        if not isinstance(error, TdxError):
            return  # it ends the run, and is told as what did
        if error is self._stopped:
            self._cut_short.append(name)
            return
        if error is self._explained:
            return  # a peer that cannot be reached, which has ended an earlier one, too
        self._explained = error
        about = f"{shown(name)}: " if self._wishes.several else ""
        warn(
            self._wishes.about + (error.message if error.message.startswith(about) else about + error.message)
        )


def _ending(ended: Ended) -> Ending:
    ending = _outcome(ended)
    ending.sender, ending.receiver = ended.ours.times(ended.share), ended.theirs.times(ended.share)
    ending.retries = ended.retries
    return ending


def _outcome(ended: Ended) -> Ending:
    result = ended.result
    if result is not None:
        return Ending(
            OUTCOMES[result.outcome.value],
            ended.item.name,
            result.size,
            ended.sent,
            ended.resumed,
            ended.seconds,
            result.root,
            result.path,
            together=ended.together,
            reused_bytes=ended.reused,
        )
    error = ended.error
    if isinstance(error, TdxError):
        failure = Failure.of(error)
    else:
        failure = Failure("internal", f"{type(error).__name__}: {error}", INTERNAL)
    return Ending(
        "failed",
        ended.item.name,
        ended.size,
        ended.sent,
        ended.resumed,
        ended.seconds,
        error=failure,
        reused_bytes=ended.reused,
    )
