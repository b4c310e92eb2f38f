"""What to send next on which stream, and how many streams are worth having."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tdx.integrity import MIB, extents_of
from tdx.model import Span
from tdx.ranges import RangeSet

RUN_LIMIT: Final = 512 * MIB
_FIRST_RUN: Final = 8 * MIB
_SLOWEST_SHARE: Final = 0.25


@dataclass(slots=True)
class _Run:
    span: Span
    started: float


class StreamScheduler:
    """Hands out the missing extents of one file to streams, as contiguous runs.

    No extent is with two streams at once, and every missing one is handed out
    exactly once unless its run fails. An extent of which only a part is missing is
    handed out whole. Streams are numbers that the caller makes up; each carries
    one run at a time. ``length`` None: unknown, and then ``missing`` is taken to end
    where an extent does. ``streams`` is how many share what is left; it may change, and
    ``run_seconds`` keeps runs about that short, so that streams that come later find
    something left to take: the first is of 8 MiB, the next as the measured rate allows.
    """

    def __init__(
        self,
        missing: RangeSet,
        extent_size: int,
        length: int | None,
        streams: int,
        *,
        run_limit: int = RUN_LIMIT,
        run_seconds: float | None = None,
    ) -> None:
        self.streams = streams
        self._extent_size = extent_size
        self._length = length
        self._run_limit = run_limit
        self._run_seconds = run_seconds
        self._waiting = RangeSet()  # of extent indices, not of bytes
        self._running: dict[int, _Run] = {}
        self._rates: dict[int, float] = {}
        for span in missing:
            self._waiting.add(_indices(span, extent_size))

    def idle(self) -> bool:
        """Whether everything has been handed out and acknowledged."""
        return not self._waiting and not self._running

    def next_run(self, stream: int, now: float) -> Span | None:
        """The bytes that ``stream`` is to send next; None where nothing is waiting (a
        run of another stream may still fail and come back)."""
        if stream in self._running:
            raise ValueError(f"stream {stream} has a run already")
        gap = next(iter(self._waiting), None)
        if gap is None:
            return None
        taken = Span(gap.start, min(gap.end, gap.start + self._run_extents(stream)))
        self._waiting.remove(taken)
        self._running[stream] = _Run(self._bytes_of(taken), now)
        return self._running[stream].span

    def acknowledged(self, stream: int, now: float) -> None:
        """The receiver vouches for the whole run of ``stream``."""
        run = self._running.pop(stream)
        if now > run.started:
            self._rates[stream] = len(run.span) / (now - run.started)

    def failed(self, stream: int, now: float, held: RangeSet | None = None) -> None:
        """Put the run of ``stream`` back, except extents of which ``held`` (byte ranges
        that the receiver vouches for) has every byte. No run is no error."""
        run = self._running.pop(stream, None)
        if run is None:
            return
        kept = 0
        for index in extents_of(run.span, self._extent_size):
            extent = Span(index, index + 1)
            if held is not None and held.covers(self._bytes_of(extent)):
                kept += len(self._bytes_of(extent))
            else:
                self._waiting.add(extent)
        if kept and now > run.started:
            self._rates[stream] = kept / (now - run.started)

    def _run_extents(self, stream: int) -> int:
        """Long enough to keep a pipe full, short enough that the streams end together: half
        of an equal share of what is waiting, less for a stream slower than the others."""
        limit = self._run_limit
        mean = sum(self._rates.values()) / len(self._rates) if self._rates else 0.0
        rate = self._rates.get(stream, mean)
        if self._run_seconds is not None:
            limit = min(limit, max(_FIRST_RUN, int(rate * self._run_seconds)))
        if self.streams > 1:
            share = min(1.0, max(_SLOWEST_SHARE, rate / mean)) if mean else 1.0
            limit = min(limit, int(self._waiting_bytes() * share) // (2 * self.streams))
        return max(1, limit // self._extent_size)

    def _waiting_bytes(self) -> int:
        return sum(len(self._bytes_of(gap)) for gap in self._waiting)

    def _bytes_of(self, extents: Span) -> Span:
        start, end = extents.start * self._extent_size, extents.end * self._extent_size
        return Span(start, end if self._length is None else min(end, self._length))


def _indices(span: Span, extent_size: int) -> Span:
    extents = extents_of(span, extent_size)
    return Span(extents.start, extents.stop)


class StreamCount:
    """How many streams the link is worth, found by trying.

    Rates are measured over windows of about a second. Twice the streams are kept if
    they raise the rate by 8 %; otherwise the number goes back and rests for 30 s.
    """

    WINDOW: Final = 1.0
    WORTH: Final = 1.08
    REST: Final = 30.0

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 1
        self._window: tuple[float, int] | None = None
        self._settling = False
        self._fewer: tuple[int, float] | None = None  # count and rate before the step on trial
        self._rest_until = float("-inf")

    def observe(self, bytes_total: int, now: float) -> int:
        """The number of streams wanted, given the bytes sent in all until ``now``
        (monotonic seconds). Call it several times a second."""
        if self._window is None:
            self._window = (now, bytes_total)
            return self._count
        started, before = self._window
        if now - started < self.WINDOW:
            return self._count
        rate = (bytes_total - before) / (now - started)
        self._window = (now, bytes_total)
        if self._settling:
            # The first window after a change still has slow starts in it.
            self._settling = False
        elif self._fewer is not None and rate < self._fewer[1] * self.WORTH:
            self._change(self._fewer[0])
            self._fewer = None
            self._rest_until = now + self.REST
        else:
            self._fewer = None
            if rate > 0 and self._count < self._limit and now >= self._rest_until:
                self._fewer = (self._count, rate)
                self._change(min(self._limit, 2 * self._count))
        return self._count

    def _change(self, count: int) -> None:
        self._count = count
        self._settling = True
