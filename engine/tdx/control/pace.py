"""One rate limit shared by every stream of a push, as the time of the day has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tdx.policy.bandwidth import DAY, UNLIMITED, RateSchedule
from tdx.policy.pacing import TokenBucket, piece_of

LOOK_SECONDS: Final = 30.0
"""The clock on the wall is looked at no less often: it may be set, and goes on while a machine sleeps."""

SLOWEST_STREAM: Final = 4096.0
"""Bytes per second below which a limit is not divided among more streams."""


def monotonic() -> float:
    """Seconds that only grow."""
    return time.monotonic()


def time_of_day() -> float:
    """Seconds since midnight by the local clock on the wall."""
    now = time.localtime()
    return min(now.tm_hour * 3600.0 + now.tm_min * 60.0 + now.tm_sec, DAY - 1)


class Clockwork:
    """Which rate of a schedule holds now. The clock on the wall is looked at when it may have become another,
    and from time to time. Not thread-safe."""

    def __init__(
        self,
        schedule: RateSchedule,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time_of_day,
    ) -> None:
        self.schedule = schedule
        self.clock = clock
        self._wall = wall
        self._rate: float | None = None
        self._until = 0.0
        self._looked = False

    def rate(self) -> float | None:
        """Bytes per second; None: no limit."""
        if not self.schedule.windows:
            return self.schedule.rest
        now = self.clock()
        if not self._looked or now >= self._until:
            self._rate, left = self.schedule.at(self._wall())
            self._looked, self._until = True, now + min(LOOK_SECONDS, left or LOOK_SECONDS)
        return self._rate


class Pace:
    """A token bucket with a lock and a clock; called from pumps' threads."""

    def __init__(
        self,
        limit: RateSchedule | float | None,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time_of_day,
    ) -> None:
        """``limit`` in bytes per second, for all day or by a schedule; None: no limit."""
        schedule = limit if isinstance(limit, RateSchedule) else RateSchedule(rest=limit)
        self._clockwork = Clockwork(schedule, clock, wall)
        self._limited = schedule != UNLIMITED and schedule.slowest is not None
        self._rate: float | None = None
        self._bucket: TokenBucket | None = None
        self._lock = threading.Lock()

    @property
    def limited(self) -> bool:
        """Whether there is a limit, at any time of the day."""
        return self._limited

    @property
    def rate(self) -> float | None:
        """The limit that holds now, in bytes per second; None: there is none."""
        if not self._limited:
            return None
        with self._lock:
            return self._clockwork.rate()

    @property
    def most_streams(self) -> int | None:
        """Into how many streams the limit may be divided; None: any number. A stream that is slower still
        would look like one that has stalled."""
        slowest = self._clockwork.schedule.slowest
        return None if slowest is None else max(1, int(slowest / SLOWEST_STREAM))

    def most(self, n: int) -> int:
        """How many of the next ``n`` bytes to ask about at once."""
        return piece_of(self.rate, n)

    def wait_for(self, n: int) -> float:
        """Seconds to wait before the next ``n`` bytes may go."""
        if not self._limited:
            return 0.0
        with self._lock:
            rate, now = self._clockwork.rate(), self._clockwork.clock()
            if rate is None:
                self._bucket = None
            elif self._bucket is None:
                self._bucket = TokenBucket(rate)
            elif rate != self._rate:
                self._bucket.change(rate, now)
            self._rate = rate
            return 0.0 if self._bucket is None else self._bucket.reserve(n, now)
