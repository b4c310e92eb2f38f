"""A flood of events leaves few lines, and they say how many there were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tdx.policy.flood import Flood


def test_a_few_events_all_get_through() -> None:
    flood = Flood(burst=3, per_second=1.0)
    assert [flood.admit(100.0) for _ in range(3)] == [0, 0, 0]


def test_a_flood_is_held_back_and_counted_by_the_next_that_gets_through() -> None:
    flood = Flood(burst=2, per_second=1.0)
    assert [flood.admit(100.0) for _ in range(5)] == [0, 0, None, None, None]
    assert flood.admit(101.0) == 3
    assert flood.admit(101.5) is None
    assert flood.admit(102.0) == 1


def test_a_clock_that_goes_back_lets_nothing_more_through() -> None:
    flood = Flood(burst=1, per_second=1.0)
    assert flood.admit(100.0) == 0
    assert flood.admit(50.0) is None
    assert flood.admit(100.5) is None


@given(st.lists(st.floats(0, 100), max_size=300).map(sorted), st.integers(1, 10), st.floats(0.5, 10))
def test_none_is_lost_and_no_more_get_through_than_the_rate_allows(
    times: list[float], burst: int, per_second: float
) -> None:
    flood = Flood(burst, per_second)
    found = [flood.admit(now) for now in times]
    passed = [held for held in found if held is not None]
    assert len(passed) <= burst + (times[-1] if times else 0) * per_second + 1e-6
    last = max((at for at, held in enumerate(found) if held is not None), default=-1)
    assert sum(passed) + len(passed) == last + 1
