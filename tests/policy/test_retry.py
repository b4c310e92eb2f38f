"""Retries with backoff."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx import errors
from tdx.policy.retry import Retrier, RetryPolicy


class Fixed:
    """A draw that is always the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


LOST = errors.ConnectionLost("gone")


def test_waits_double_up_to_the_cap_and_then_it_gives_up() -> None:
    retrier = Retrier(RetryPolicy(retries=8, base=0.25, cap=15.0), Fixed(1.0))
    waits = [retrier.failed(LOST) for _ in range(9)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, None]


def test_progress_makes_the_next_failure_the_first() -> None:
    retrier = Retrier(RetryPolicy(retries=2), Fixed(1.0))
    for _ in range(100):
        assert retrier.failed(LOST) == 0.25
        assert retrier.failed(LOST) == 0.5
        assert retrier.failed(LOST) is None
        retrier.progressed()


@pytest.mark.parametrize("error", errors.leaves()[1:])
def test_permanent_errors_are_never_tried_again(error: type[errors.TdxError]) -> None:
    instance = error.__new__(error)
    wait = Retrier(RetryPolicy(), Fixed(0.5)).failed(instance)
    assert (wait is None) == (error.permanent or error is errors.NoSpace)


def test_no_retries_means_none() -> None:
    assert Retrier(RetryPolicy(retries=0), Fixed(0.0)).failed(LOST) is None


def test_very_many_retries_never_overflow() -> None:
    retrier = Retrier(RetryPolicy(retries=5000), Fixed(1.0))
    assert [retrier.failed(LOST) for _ in range(5000)][-1] == 15.0


@given(st.integers(0, 2**32), st.floats(0.01, 5), st.floats(5, 60))
def test_jitter_stays_inside_the_ceiling(seed: int, base: float, cap: float) -> None:
    retrier = Retrier(RetryPolicy(retries=20, base=base, cap=cap), random.Random(seed))
    for n in range(20):
        wait = retrier.failed(LOST)
        assert wait is not None
        assert 0.0 <= wait <= min(cap, base * 2**n)


@pytest.mark.parametrize("policy", [{"retries": -1}, {"base": 0.0}, {"base": 2.0, "cap": 1.0}])
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not a retry policy"):
        RetryPolicy(**policy)  # type: ignore[arg-type]
