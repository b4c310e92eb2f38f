"""Which rate holds at which time of the day, and how owners share one."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tdx.errors import UsageError
from tdx.model import Owner
from tdx.policy.pacing import BURST_SECONDS, parse_rate

DAY: Final = 86400.0
"""Seconds of a day by the clock on the wall, which has as many also on the two days of the year on which
it is changed."""

UNLIMITED_WORDS: Final = ("0", "off", "unlimited")

_ENTRY: Final = re.compile(r"(?:([0-9]{1,2}):([0-9]{2}) ?- ?([0-9]{1,2}):([0-9]{2}) +)?(\S.*)")
_HOW: Final = 'write it like 20M, or "08:00-18:00 20M, 200M" for a rate by day and another for the rest'

Ticket = TypeVar("Ticket")
"""Whatever the caller knows one request by."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of every day, in minutes since midnight, ``end`` not among them; over midnight where ``end`` is
    not after ``start``. ``rate`` in bytes per second, None: no limit."""

    start: int
    end: int
    rate: float | None

    def holds(self, second: float) -> bool:
        start, end = self.start * 60, self.end * 60
        return start <= second < end if start < end else second >= start or second < end


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """Windows that do not overlap, and the rate for the ``rest`` of the day."""

    windows: tuple[Window, ...] = ()
    rest: float | None = None

    def at(self, second: float) -> tuple[float | None, float | None]:
        """The rate that holds ``second`` seconds after midnight by the clock on the wall (in [0, DAY)), and
        for how many more seconds of that clock; None: for good."""
        rate = next((each.rate for each in self.windows if each.holds(second)), self.rest)
        edges = [edge * 60 for each in self.windows for edge in (each.start, each.end)]
        return rate, min(((edge - second) % DAY or DAY for edge in edges), default=None)

    @property
    def slowest(self) -> float | None:
        """The lowest rate of any time of the day; None where there is no limit at all."""
        rates = [each.rate for each in self.windows] + [self.rest]
        return min((rate for rate in rates if rate is not None), default=None)


UNLIMITED: Final = RateSchedule()


def parse_schedule(text: str | Sequence[str]) -> RateSchedule:
    """``20M``, ``08:00-18:00 20M, 200M``, or the entries as a list.

    An entry without times is for the rest of the day, and there is one such at most. ``0``, ``off`` and
    ``unlimited`` are no limit. UsageError for anything else, and for windows that overlap.
    """
    entries = (
        text.split(",") if isinstance(text, str) else [part for each in text for part in each.split(",")]
    )
    windows: list[Window] = []
    rests: list[float | None] = []
    for entry in map(str.strip, entries):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise UsageError(f"{entry!r} is not a rate; {_HOW}")
        *times, rate_text = found.groups()
        rate = None if rate_text.lower() in UNLIMITED_WORDS else parse_rate(rate_text)
        if times[0] is None:
            rests.append(rate)
        else:
            windows.append(_window(entry, [int(each) for each in times], rate))
    if len(rests) > 1:
        raise UsageError(f"two rates for the rest of the day; {_HOW}")
    _check_apart(windows)
    return RateSchedule(tuple(windows), rests[0] if rests else None)


def _window(entry: str, times: list[int], rate: float | None) -> Window:
    hour, minute, end_hour, end_minute = times
    start, end = hour * 60 + minute, end_hour * 60 + end_minute
    if hour > 23 or minute > 59 or end_minute > 59 or end > 24 * 60:
        raise UsageError(f"{entry!r}: no such time of day; {_HOW}")
    if start == end % (24 * 60):
        raise UsageError(f"{entry!r}: a whole day, or nothing of it; leave the times out for the whole day")
    return Window(start, end, rate)


def _check_apart(windows: Sequence[Window]) -> None:
    for number, each in enumerate(windows):
        for other in windows[:number]:
            if each.holds(other.start * 60) or other.holds(each.start * 60):
                raise UsageError(f"the times {_shown(other)} and {_shown(each)} overlap")


def _shown(window: Window) -> str:
    return "-".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in (window.start, window.end))


class SharedRate(Generic[Ticket]):
    """A rate that owners share in equal parts, however many requests each of them has; what one does not
    use is the others'. Not thread-safe.

    Bytes that have arrived ask for their time, and what has none yet waits. Time goes to the owner who has
    had least of it since it came (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996): each
    request begins, in virtual time, where the owner's last one ended, but not in the past; the one that
    begins first goes first. An owner's own requests go in the order in which they came. Times are monotonic
    seconds.
    """

    def __init__(self) -> None:
        self._rate: float | None = None
        self._tokens = 0.0
        self._at = 0.0
        self._virtual = 0.0
        self._ends: dict[Owner, float] = {}
        self._waiting: dict[Owner, deque[tuple[float, Ticket, int]]] = {}
        """No empty ones: beginnings, tickets and bytes."""

    def set_rate(self, rate: float | None, now: float) -> None:
        """``rate`` in bytes per second from ``now`` on; None: no limit."""
        if rate == self._rate:
            return
        self._pass(now)
        if self._rate is None and rate is not None:
            self._tokens = rate * BURST_SECONDS
        self._rate = rate

    def ask(self, owner: Owner, size: int, ticket: Ticket) -> None:
        """``size`` bytes of this owner are there."""
        start = max(self._virtual, self._ends.get(owner, 0.0))
        self._ends[owner] = start + size
        self._waiting.setdefault(owner, deque()).append((start, ticket, size))

    def granted(self, now: float) -> list[Ticket]:
        """Those whose time has come, in their order."""
        self._pass(now)
        found: list[Ticket] = []
        while self._waiting and (self._rate is None or self._tokens > -1):
            owner = self._first()
            queue = self._waiting[owner]
            self._virtual, ticket, size = queue.popleft()
            if not queue:
                del self._waiting[owner]
            self._tokens -= size
            found.append(ticket)
        if not self._waiting:
            # Nobody waits: what anybody has had so far is over and done with.
            self._ends = {owner: end for owner, end in self._ends.items() if end > self._virtual}
        return found

    def next(self) -> tuple[Ticket, float] | None:
        """Whose turn is next, and how many seconds after the last call with a time; None: nobody waits."""
        if not self._waiting:
            return None
        owed = 0.0 if self._rate is None else max(0.0, -self._tokens / self._rate)
        return self._waiting[self._first()][0][1], owed

    def withdraw(self, owner: Owner, ticket: Ticket) -> None:
        """A request waits no more, if it does."""
        queue = self._waiting.get(owner)
        if queue is None:
            return
        rest = deque(each for each in queue if each[1] != ticket)
        if rest:
            self._waiting[owner] = rest
        else:
            del self._waiting[owner]

    def _first(self) -> Owner:
        return min(self._waiting, key=lambda owner: self._waiting[owner][0][0])

    def _pass(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        if self._rate is None:
            self._tokens = 0.0
        else:
            self._tokens = min(self._rate * BURST_SECONDS, self._tokens + passed * self._rate)
