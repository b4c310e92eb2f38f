from __future__ import annotations

import pytest

from tdx.policy.speed import WINDOW, Speed


def test_a_rate_needs_two_observations() -> None:
    speed = Speed()
    assert speed.rate is None
    speed.observe(100, 1.0)
    assert speed.rate is None
    speed.observe(100, 1.0)
    assert speed.rate is None
    speed.observe(300, 2.0)
    assert speed.rate == pytest.approx(200.0)
    assert speed.eta(1000) == pytest.approx(5.0)


def test_what_is_long_past_does_not_count() -> None:
    speed = Speed()
    for second in range(100):
        speed.observe(second * 10 if second < 50 else 500 + (second - 50) * 1000, float(second))
    assert speed.rate == pytest.approx(1000.0)


def test_the_window_is_covered_by_few_observations_too() -> None:
    speed = Speed()
    speed.observe(0, 0.0)
    speed.observe(100, 10 * WINDOW)
    speed.observe(200, 20 * WINDOW)
    assert speed.rate == pytest.approx(10 / WINDOW)


def test_what_does_not_move_has_no_end() -> None:
    speed = Speed()
    speed.observe(5, 0.0)
    speed.observe(5, 1.0)
    assert speed.rate == 0.0
    assert speed.eta(10) is None


def test_a_count_that_begins_anew_is_measured_anew() -> None:
    speed = Speed()
    speed.observe(1000, 0.0)
    speed.observe(2000, 1.0)
    speed.observe(10, 2.0)
    assert speed.rate is None
