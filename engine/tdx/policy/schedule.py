"""What to send next on which stream, and how many streams are worth having."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tdx.integrity import MIB, cut, extents_of
from tdx.model import Span
from tdx.ranges import RangeSet

RUN_LIMIT: Final = 4096 * MIB
"""Each run ends with an answer, and on one stream nothing is on its way meanwhile."""
FIRST_RUN: Final = 8 * MIB
FIRST_CAUTIOUS: Final = MIB // 2
_SLOWEST_SHARE: Final = 0.25


@dataclass(slots=True)
class _Run:
    span: Span
    started: float


class StreamScheduler:
    """Hands out the missing extents of one file to streams, as contiguous runs.

    No byte is with two streams at once, and every missing one is handed out
    exactly once unless its run fails. An extent of which only a piece is missing is
    handed out whole. Streams are numbers that the caller makes up; each carries
    one run at a time. ``length`` None: unknown, and then ``missing`` is taken to end
    where an extent does. ``streams`` is how many share what is left; it may change, and
    ``run_seconds`` keeps runs about that short, so that streams that come later find
    something left to take: the first is of 8 MiB, the next as the measured rate allows.
    ``cautious``: the first is of 512 KiB, and each at most twice as long as the last one of its stream, which
    may be quick at first and then slow.

    A run is of whole extents, or, where ``part`` divides the extents and a fair share is less
    than one, a part of one extent that begins on a multiple of ``part``: on a link where each
    stream is slow, the last extents would keep a few of them busy for long. ``least_seconds`` is
    about the shortest time that such a part is worth a request for.
    """

    def __init__(
        self,
        missing: RangeSet,
        extent_size: int,
        length: int | None,
        streams: int,
        *,
        part: int | None = None,
        run_limit: int = RUN_LIMIT,
        run_seconds: float | None = None,
        least_seconds: float = 0.0,
        cautious: bool = False,
    ) -> None:
        self.streams = streams
        self._extent_size = extent_size
        self._unit = part or extent_size
        self._length = length
        self._run_limit = run_limit
        self._run_seconds = run_seconds
        self._least_seconds = least_seconds
        self._cautious = cautious
        self._waiting = RangeSet()  # of units, not of bytes
        self._running: dict[int, _Run] = {}
        self._rates: dict[int, float] = {}
        self._asked: dict[int, int] = {}  # how long each stream's last run might have been
        for span in missing:
            for_all = extents_of(span, extent_size)
            self._put_back(Span(for_all.start * extent_size, for_all.stop * extent_size))

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
        taken = self._cut(gap, self._run_units(stream))
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
        for piece in cut(run.span, self._extent_size):
            if held is not None and held.covers(piece):
                kept += len(piece)
            else:
                self._put_back(piece)
        if kept and now > run.started:
            self._rates[stream] = kept / (now - run.started)

    def _put_back(self, span: Span) -> None:
        units = extents_of(span, self._unit)
        end = units.stop if self._length is None else min(units.stop, -(-self._length // self._unit))
        if units.start < end:
            self._waiting.add(Span(units.start, end))

    def _cut(self, gap: Span, units: int) -> Span:
        """Up to ``units`` from the beginning of ``gap``: of whole extents, if they are enough for one."""
        each = self._extent_size // self._unit
        boundary = (gap.start // each + 1) * each
        if gap.start % each or units < each or gap.end < boundary:
            return Span(gap.start, min(gap.end, boundary, gap.start + units))
        end = min(gap.end, gap.start + units // each * each)
        if self._length is not None and end * self._unit >= self._length:
            return Span(gap.start, end)  # the last extent of a file may be a short one
        return Span(gap.start, end // each * each)

    def _run_units(self, stream: int) -> int:
        """Long enough to keep a pipe full, short enough that the streams end together: half
        of an equal share of what is waiting, less for a stream slower than the others."""
        limit = self._run_limit
        mean = sum(self._rates.values()) / len(self._rates) if self._rates else 0.0
        rate = self._rates.get(stream, mean)
        if self._run_seconds is not None:
            first = FIRST_CAUTIOUS if self._cautious else FIRST_RUN
            limit = min(limit, max(first, int(rate * self._run_seconds)))
        if self._cautious:
            limit = self._asked[stream] = min(limit, 2 * self._asked.get(stream, FIRST_CAUTIOUS // 2))
        if self.streams > 1:
            share = min(1.0, max(_SLOWEST_SHARE, rate / mean)) if mean else 1.0
            limit = min(limit, int(self._waiting_bytes() * share) // (2 * self.streams))
        return max(1, limit // self._unit, int(rate * self._least_seconds) // self._unit)

    def _waiting_bytes(self) -> int:
        return sum(len(self._bytes_of(gap)) for gap in self._waiting)

    def _bytes_of(self, units: Span) -> Span:
        start, end = units.start * self._unit, units.end * self._unit
        return Span(start, end if self._length is None else min(end, self._length))


class StreamCount:
    """How many streams the link is worth, found by trying.

    Rates are measured over windows of about a second. Once the rate has stopped growing by itself, twice the
    streams are tried, and kept if they raise it by 8 %; otherwise the number goes back and rests for 30 s.

    ``several``: for a peer that is far, where a first look takes long and each stream is quick at first
    and slow once it has lost a packet, so that what more of them gain is seen too late. It begins with
    several, waits for no rate to settle, never goes back, and rests no longer than the rate holds.
    """

    WINDOW: Final = 1.0
    WORTH: Final = 1.08
    FALLEN: Final = 0.9
    REST: Final = 30.0
    SEVERAL: Final = 8

    def __init__(self, limit: int, *, several: bool = False) -> None:
        self._limit = limit
        self._several = several
        self._count = min(self.SEVERAL if several else 1, limit)
        self._window: tuple[float, int] | None = None
        # The first window after a change still has slow starts in it.
        self._settling = several
        self._before = 0.0  # the rate of the last window
        self._fewer: tuple[int, float] | None = None  # count and rate before the step on trial
        self._rest_until = float("-inf")
        self._tired = 0.0  # the rate under which the link is tried again before that

    @property
    def wanted(self) -> int:
        return self._count

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
        growing = not self._several and rate > self._before * self.WORTH
        self._before = rate
        if self._settling:
            self._settling = False
        elif self._fewer is not None and rate < self._fewer[1] * self.WORTH:
            if self._several:
                self._tired = max(rate, self._fewer[1]) * self.FALLEN
            else:
                self._change(self._fewer[0])
            self._fewer = None
            self._rest_until = now + self.REST
        else:
            self._fewer = None
            rested = now >= self._rest_until or rate < self._tired
            if rate > 0 and self._count < self._limit and rested and not growing:
                self._fewer = (self._count, rate)
                self._change(min(self._limit, 2 * self._count))
        return self._count

    def _change(self, count: int) -> None:
        self._count = count
        self._settling = True
