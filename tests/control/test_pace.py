"""The sender's limit: by the clock on the wall, over all streams."""

from __future__ import annotations

import time

import pytest

from tdx.control.pace import LOOK_SECONDS, Pace, time_of_day
from tdx.policy.bandwidth import DAY, RateSchedule, Window

NOON = 12 * 3600.0
SCHEDULE = RateSchedule((Window(720, 780, 1000.0),), 100.0)
"""1000 bytes a second from 12:00 to 13:00, 100 otherwise."""


class Clock:
    """A monotonic clock and one on the wall, which may be set."""

    def __init__(self, wall: float) -> None:
        self.now = 0.0
        self.wall = wall

    def __call__(self) -> float:
        return self.now

    def of_day(self) -> float:
        return (self.wall + self.now) % DAY

    def send(self, pace: Pace, seconds: float) -> int:
        """Bytes that one stream sends in this time."""
        sent, end = 0, self.now + seconds
        while self.now < end:
            n = pace.most(1 << 20)
            self.now += pace.wait_for(n)
            sent += n
        return sent


def test_a_transfer_that_runs_over_an_edge_changes_its_rate() -> None:
    clock = Clock(NOON - 10)
    pace = Pace(SCHEDULE, clock, clock.of_day)
    assert (pace.limited, pace.rate) == (True, 100.0)
    assert clock.send(pace, 10) == pytest.approx(1000, rel=0.05)
    assert pace.rate == 1000.0
    assert clock.send(pace, 10) == pytest.approx(10_000, rel=0.05)


def test_a_rate_may_end_and_begin_again() -> None:
    clock = Clock(NOON - 1)
    pace = Pace(RateSchedule((Window(720, 721, None),), 100.0), clock, clock.of_day)
    clock.send(pace, 1)
    assert pace.rate is None
    assert (pace.most(1 << 20), pace.wait_for(1 << 20)) == (1 << 20, 0.0)
    clock.now += 60
    assert clock.send(pace, 10) == pytest.approx(1000, rel=0.05)


def test_a_clock_that_is_set_is_noticed_before_long() -> None:
    clock = Clock(NOON - 3600)
    pace = Pace(SCHEDULE, clock, clock.of_day)
    assert pace.rate == 100.0
    clock.wall += 3600  # as in the night on which summer begins
    clock.now += LOOK_SECONDS
    assert pace.rate == 1000.0


def test_without_a_limit_nothing_waits() -> None:
    for limit in (None, RateSchedule((Window(0, 60, None),), None)):
        pace = Pace(limit)
        assert (pace.limited, pace.rate, pace.most_streams) == (False, None, None)
        assert (pace.most(1 << 30), pace.wait_for(1 << 30)) == (1 << 30, 0.0)


def test_a_low_limit_is_not_divided_among_many_streams() -> None:
    assert Pace(1024.0).most_streams == 1
    assert Pace(1e6).most_streams == 244
    assert Pace(SCHEDULE).most_streams == 1


def test_the_time_of_day_is_that_of_the_clock_on_the_wall() -> None:
    before = time.localtime()
    second = time_of_day()
    assert 0 <= second < DAY
    assert abs(second - (before.tm_hour * 3600 + before.tm_min * 60 + before.tm_sec)) % DAY <= 2
