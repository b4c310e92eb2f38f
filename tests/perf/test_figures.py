"""The arithmetic of the report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.figures import Spread, interval_of_median, interval_of_ratio, number, ratios
from perf.model import Run, Series, Table, Target
from perf.tables import time_ratios
from perf.targets import GOALS, P1, P7, verdict

SECONDS = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


def runs(*seconds: float) -> tuple[Run, ...]:
    return tuple(Run(each, 0, 0) for each in seconds)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (1, "1.00"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")],
)
def test_a_number_has_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_spread_is_quoted_with_its_lowest_and_highest_run() -> None:
    assert str(Spread.of([3.0, 1.0, 2.0])) == "2.00 (1.00–3.00)"


def test_a_spread_is_wide_from_a_fifth_of_its_median_on() -> None:
    assert Spread.of([1.0, 1.3]).wide
    assert not Spread.of([1.0, 1.1]).wide


def test_the_ratio_is_the_median_of_the_rounds_and_not_that_of_the_medians() -> None:
    slow_rounds = Table("", 1, 1, {}, (Series("a", "", runs(1, 20, 30)), Series("b", "", runs(2, 10, 10))))
    assert time_ratios(slow_rounds, "a", "b") == [0.5, 2.0, 3.0]


def test_rounds_that_one_of_them_lacks_make_no_ratio() -> None:
    table = Table("", 1, 1, {}, (Series("a", "", runs(1, 2)), Series("b", "", (), "not installed")))
    assert time_ratios(table, "a", "b") == []
    with pytest.raises(KeyError):
        time_ratios(table, "a", "nobody")


@given(SECONDS)
def test_the_interval_lies_within_the_runs_around_their_median_and_is_always_the_same(
    seconds: list[float],
) -> None:
    low, high = interval_of_median(seconds)
    spread = Spread.of(seconds)
    assert spread.low <= low <= spread.median <= high <= spread.high
    assert interval_of_median(seconds) == (low, high)


@given(st.floats(0.1, 10), SECONDS)
def test_runs_that_all_take_a_times_as_long_have_that_ratio_in_their_interval(
    times: float, seconds: list[float]
) -> None:
    low, high = interval_of_ratio([times * each for each in seconds], seconds)
    assert low <= times * (1 + 1e-9)
    assert high >= times * (1 - 1e-9)
    assert ratios([times * each for each in seconds], seconds) == pytest.approx([times] * len(seconds))


def test_every_promised_target_has_a_goal_that_is_not_easier_than_its_gate() -> None:
    assert {goal.id for goal in GOALS} == {f"P{number}" for number in range(1, 12)}
    for goal in GOALS:
        harder = goal.goal <= goal.gate if goal.better == "lower" else goal.goal >= goal.gate
        assert harder, goal


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (P1.reached_by([0.9, 1.0, 1.4]), "met"),
        (P1.reached_by([1.1]), "gate met, 10 % from the goal"),
        (P1.reached_by([1.5]), "**missed by 25 %**"),
        (P7.reached_by([0.95]), "met"),
        (P7.reached_by([0.8]), "gate met, 11 % from the goal"),
        (P7.reached_by([0.35]), "**missed by 50 %**"),
    ],
)
def test_a_target_is_met_or_its_gate_is_or_it_is_missed(target: Target, said: str) -> None:
    assert verdict(target) == said
