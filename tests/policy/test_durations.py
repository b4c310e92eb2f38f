from __future__ import annotations

from collections import Counter

import pytest

from tdx.errors import UsageError
from tdx.policy.durations import fixed_share, parse_duration, parse_timeout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("15m", 900.0),
        ("7d", 604800.0),
        ("2w", 1209600.0),
        (" 3s ", 3.0),
        ("0", 0.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1e3", "1y", "1M", "inf", "nan", "1h30m", "٣s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_a_timeout_of_zero_is_refused() -> None:
    assert parse_timeout("1ms") == pytest.approx(0.001)
    with pytest.raises(UsageError):
        parse_timeout("0s")


def test_a_share_is_the_same_each_time_and_another_for_another_machine_or_name() -> None:
    assert fixed_share("m", "nightly") == fixed_share("m", "nightly")
    assert len({fixed_share(machine, name) for machine in "abc" for name in ("x", "y")}) == 6
    assert fixed_share("ab", "c") != fixed_share("a", "bc")


def test_the_shares_of_a_fleet_are_spread_evenly() -> None:
    shares = [fixed_share(f"machine {number}", "nightly") for number in range(2000)]
    assert all(0 <= share < 1 for share in shares)
    tenths = Counter(int(share * 10) for share in shares)
    assert set(tenths) == set(range(10))
    assert min(tenths.values()) > 140
