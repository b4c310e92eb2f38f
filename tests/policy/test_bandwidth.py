"""Rates by the time of the day, against a table of every second; and how owners share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import UsageError
from tdx.model import Owner
from tdx.policy.bandwidth import DAY, UNLIMITED, RateSchedule, SharedRate, Window, parse_schedule

M = 1024.0**2


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("20M", RateSchedule(rest=20 * M)),
        ("off", UNLIMITED),
        ("0", UNLIMITED),
        ("Unlimited", UNLIMITED),
        ("08:00-18:00 20M", RateSchedule((Window(480, 1080, 20 * M),))),
        ("8:00 - 18:00  20M , 200M", RateSchedule((Window(480, 1080, 20 * M),), 200 * M)),
        ("22:00-06:00 off, 1M", RateSchedule((Window(1320, 360, None),), M)),
        ("18:00-24:00 1M,00:00-08:00 2M", RateSchedule((Window(1080, 1440, M), Window(0, 480, 2 * M)))),
        (["08:00-18:00 20M", "200M"], RateSchedule((Window(480, 1080, 20 * M),), 200 * M)),
        ("08:00-18:00 8Mbit/s", RateSchedule((Window(480, 1080, 1e6),))),
    ],
)
def test_schedules_are_read_as_people_write_them(text: str | list[str], schedule: RateSchedule) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a rate"),
        ("20M,", "is not a rate"),
        ("fast", "is not a rate"),
        ("0M", "nothing would ever arrive"),
        ("25:00-26:00 1M", "no such time of day"),
        ("08:60-09:00 1M", "no such time of day"),
        ("08:00-24:01 1M", "no such time of day"),
        ("08:00-08:00 1M", "a whole day, or nothing of it"),
        ("00:00-24:00 1M", "a whole day, or nothing of it"),
        ("1M, 2M", "two rates for the rest of the day"),
        ("08:00-12:00 1M, 11:00-13:00 2M", "the times 08:00-12:00 and 11:00-13:00 overlap"),
        ("22:00-06:00 1M, 05:59-07:00 2M", "overlap"),
        ("22:00-06:00 1M, 21:00-07:00 2M", "overlap"),
        ("08:00-18:00", "is not a rate"),
        ("08:00-18:0020M", "is not a rate"),
    ],
)
def test_what_is_no_schedule_is_an_error_of_usage_that_says_why(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_schedule(text)


def test_windows_that_meet_do_not_overlap() -> None:
    assert len(parse_schedule("08:00-12:00 1M, 12:00-13:00 2M, 13:00-08:00 3M").windows) == 3


edges = st.lists(st.integers(0, 1439), min_size=2, max_size=8, unique=True).map(sorted)
rates = st.one_of(st.none(), st.floats(1, 1e9))


@st.composite
def schedules(draw: st.DrawFn) -> RateSchedule:
    """Windows between edges of the day, some of them left out; the last one may go over midnight."""
    found = draw(edges)
    pairs = list(zip(found, [*found[1:], found[0]], strict=True))
    windows = [Window(start, end, draw(rates)) for start, end in pairs if draw(st.booleans())]
    return RateSchedule(tuple(draw(st.permutations(windows))), draw(rates))


def table_of(schedule: RateSchedule) -> list[float | None]:
    """The rate of every minute, painted window by window."""
    table = [schedule.rest] * 1440
    for window in schedule.windows:
        minute = window.start
        while minute != window.end % 1440:
            table[minute] = window.rate
            minute = (minute + 1) % 1440
    return table


@given(schedules(), st.floats(0, DAY, exclude_max=True))
def test_the_rate_is_that_of_the_table_and_holds_until_it_is_told_to(
    schedule: RateSchedule, second: float
) -> None:
    table = table_of(schedule)
    rate, left = schedule.at(second)
    assert rate == table[int(second // 60)]
    if left is None:
        assert len(set(table)) == 1
        return
    assert 0 < left <= DAY
    for minute in range(int(second // 60), int((second + left - 1e-6) // 60) + 1):
        assert table[minute % 1440] == rate
    edge = round((second + left) % DAY) % int(DAY)
    assert edge in {
        each * 60 % int(DAY) for window in schedule.windows for each in (window.start, window.end)
    }


@given(schedules())
def test_the_slowest_rate_is_that_of_some_time(schedule: RateSchedule) -> None:
    some = [each.rate for each in schedule.windows] + [schedule.rest]
    limits = [rate for rate in some if rate is not None]
    assert schedule.slowest == (min(limits) if limits else None)


# --- sharing ---------------------------------------------------------------------------------

ONE, TWO, THREE = (Owner(f"local:{number}") for number in (1, 2, 3))


class Bodies:
    """Bodies that bring pieces as fast as they are let, on a virtual clock."""

    def __init__(self, rate: float, bodies: dict[str, tuple[Owner, float, float]]) -> None:
        """For each: its owner, how long it needs for the next piece, and when it begins."""
        self.shared: SharedRate[str] = SharedRate()
        self.rate = rate
        self.bodies = bodies
        self.brought = dict.fromkeys(bodies, 0.0)
        self.now = 0.0

    def run(self, seconds: float, piece: int = 1000) -> dict[Owner, float]:
        """Bytes of each owner that were let go in this time."""
        self.shared.set_rate(self.rate, 0.0)
        ready = {name: begin for name, (_, _, begin) in self.bodies.items()}
        while True:
            following = self.shared.next()
            times = [*ready.values(), *([] if following is None else [self.now + following[1]])]
            self.now = max(self.now, min(times))
            if self.now >= seconds:
                break
            for name, at in list(ready.items()):
                if at <= self.now:
                    del ready[name]
                    self.shared.ask(self.bodies[name][0], piece, name)
            for name in self.shared.granted(self.now):
                self.brought[name] += piece
                ready[name] = self.now + self.bodies[name][1]
        total: dict[Owner, float] = {}
        for name, (owner, _, _) in self.bodies.items():
            total[owner] = total.get(owner, 0.0) + self.brought[name]
        return total


def test_an_owner_with_many_bodies_gets_no_more_than_one_with_one() -> None:
    many = {f"{number}": (ONE, 1e-6, 0.0) for number in range(16)}
    got = Bodies(1e6, {**many, "alone": (TWO, 1e-6, 0.0)}).run(10)
    assert got[ONE] == pytest.approx(got[TWO], rel=0.02)
    assert sum(got.values()) == pytest.approx(1e7, rel=0.02)


def test_what_one_does_not_use_is_the_others() -> None:
    got = Bodies(1e6, {"slow": (ONE, 0.01, 0.0), "a": (TWO, 1e-6, 0.0), "b": (THREE, 1e-6, 0.0)}).run(10)
    assert got[ONE] == pytest.approx(1e6, rel=0.1)
    assert got[TWO] == pytest.approx(got[THREE], rel=0.02)
    assert sum(got.values()) == pytest.approx(1e7, rel=0.02)


def test_who_comes_later_has_no_claim_on_what_was_before() -> None:
    got = Bodies(1e6, {"first": (ONE, 1e-6, 0.0), "later": (TWO, 1e-6, 5.0)}).run(10)
    assert got[TWO] == pytest.approx(2.5e6, rel=0.02)
    assert got[ONE] == pytest.approx(7.5e6, rel=0.02)


@given(
    st.floats(1e3, 1e9),
    st.lists(st.tuples(st.sampled_from([ONE, TWO, THREE]), st.integers(1, 1 << 20)), max_size=40),
)
def test_no_more_goes_than_the_rate_allows_and_an_owners_own_go_in_order(
    rate: float, asks: list[tuple[Owner, int]]
) -> None:
    shared: SharedRate[int] = SharedRate()
    shared.set_rate(rate, 0.0)
    for number, (owner, size) in enumerate(asks):
        shared.ask(owner, size, number)
    now, gone, order = 0.0, 0, list[int]()
    for _ in range(4 * len(asks) + 2):
        before = gone
        for ticket in shared.granted(now):
            order.append(ticket)
            gone += asks[ticket][1]
            before = max(before, gone - asks[ticket][1])
        assert before <= rate * (now + 0.1) + 2
        following = shared.next()
        if following is None:
            break
        assert following[0] not in order
        now += following[1]
    assert sorted(order) == list(range(len(asks)))
    for owner in (ONE, TWO, THREE):
        mine = [number for number in order if asks[number][0] == owner]
        assert mine == sorted(mine)


def due(shared: SharedRate[str]) -> float:
    following = shared.next()
    assert following is not None
    return following[1]


def test_another_rate_counts_at_once_and_none_lets_all_go() -> None:
    shared: SharedRate[str] = SharedRate()
    shared.set_rate(100.0, 0.0)
    for name in ("a", "b", "c"):
        shared.ask(ONE, 1000, name)
    assert shared.granted(0.0) == ["a"]
    assert due(shared) == pytest.approx(9.9)
    shared.set_rate(1000.0, 0.0)
    assert due(shared) == pytest.approx(0.99)
    shared.set_rate(None, 0.0)
    assert shared.granted(0.0) == ["b", "c"]
    assert shared.next() is None


def test_who_waits_no_more_takes_nobodys_time() -> None:
    shared: SharedRate[str] = SharedRate()
    shared.set_rate(100.0, 0.0)
    for name in ("a", "b", "c"):
        shared.ask(ONE, 10, name)
    shared.ask(TWO, 10, "other")
    shared.withdraw(ONE, "b")
    shared.withdraw(TWO, "other")
    shared.withdraw(TWO, "other")
    assert shared.granted(100.0) == ["a", "c"]
