from __future__ import annotations

import pytest

from tdx_cli.text import rate_of, seconds_of, size_of


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 50, "1.0 PiB"),
        (5000 << 50, "5000.0 PiB"),
    ],
)
def test_sizes_go_in_steps_of_1024(count: int, text: str) -> None:
    assert size_of(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0004, "0 s"),
        (0.0123, "0.012 s"),
        (0.5, "0.5 s"),
        (1.54, "1.5 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (245, "4:05"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
    ],
)
def test_durations_are_as_exact_as_they_are_short(seconds: float, text: str) -> None:
    assert seconds_of(seconds) == text


def test_a_rate_over_no_time_is_no_division_by_zero() -> None:
    assert rate_of(0, 0.0) == "0 B/s"
    assert rate_of(2 << 30, 1.0) == "2.0 GiB/s"
