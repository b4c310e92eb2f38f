"""The token bucket on a virtual clock; rates and sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import UsageError
from tdx.policy.pacing import TokenBucket, parse_rate, parse_size, piece_of


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = TokenBucket(500.0)
    assert bucket.reserve(50, 0.0) == 0.0
    assert bucket.reserve(500, 0.0) == pytest.approx(1.0)
    assert bucket.reserve(500, 0.0) == pytest.approx(2.0)
    assert bucket.reserve(500, 1.0) == pytest.approx(2.0)


def test_a_pause_saves_up_no_more_than_the_burst() -> None:
    bucket = TokenBucket(500.0)
    bucket.reserve(50, 0.0)
    assert bucket.reserve(50, 1000.0) == 0.0
    assert bucket.reserve(500, 1000.0) == pytest.approx(1.0)


def test_a_caller_that_read_the_clock_earlier_waits_until_the_same_moment() -> None:
    bucket = TokenBucket(100.0)
    assert bucket.reserve(110, 10.0) == pytest.approx(1.0)
    assert bucket.reserve(100, 9.0) == pytest.approx(3.0)
    assert bucket.reserve(100, 10.0) == pytest.approx(3.0)


def test_another_rate_counts_from_then_on_and_what_is_owed_stays_owed() -> None:
    bucket = TokenBucket(100.0)
    assert bucket.reserve(110, 0.0) == pytest.approx(1.0)
    bucket.change(1000.0, 0.5)
    assert bucket.reserve(0, 0.5) == pytest.approx(0.05)
    bucket.change(10.0, 1.0)
    assert bucket.reserve(11, 1.0) == pytest.approx(1.0)


def test_pieces_are_a_tenth_of_a_second_long() -> None:
    assert piece_of(None, 1 << 30) == 1 << 30
    assert piece_of(1e6, 1 << 30) == 100_000
    assert piece_of(1e6, 7) == 7
    assert piece_of(1.0, 7) == 1


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="not a rate"):
        TokenBucket(rate)


@given(
    st.floats(1e3, 1e9),
    st.lists(st.tuples(st.integers(1, 8 << 20), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_callers_that_wait_as_told_never_exceed_the_rate(rate: float, calls: list[tuple[int, float]]) -> None:
    bucket = TokenBucket(rate)
    now, sent = 0.0, 0
    for n, idle in calls:
        now += idle
        now += bucket.reserve(n, now)
        sent += n
        assert sent <= rate * (now + 0.1) * (1 + 1e-9) + 1


@given(st.floats(1e4, 1e8), st.integers(1, 8))
def test_streams_that_share_a_bucket_get_the_whole_rate_and_even_shares(rate: float, streams: int) -> None:
    bucket = TokenBucket(rate)
    chunk = int(rate / 100)
    bucket.reserve(int(rate / 10), 0.0)
    free_at = [0.0] * streams
    sent = [0] * streams
    while min(free_at) < 10.0:
        stream = free_at.index(min(free_at))
        free_at[stream] += bucket.reserve(chunk, free_at[stream])
        sent[stream] += chunk
    assert sum(sent) == pytest.approx(rate * 10, rel=0.02)
    assert max(sent) - min(sent) <= chunk


@pytest.mark.parametrize("rate", [20e6, 400e6, 2e9])
@pytest.mark.parametrize("streams", [1, 4])
def test_waits_that_overshoot_do_not_lower_the_rate(rate: float, streams: int) -> None:
    bucket = TokenBucket(rate)
    window, overshoot, seconds = 512 << 10, 0.001, 10.0
    free_at = [0.0] * streams
    sent = 0
    while min(free_at) < seconds:
        stream = free_at.index(min(free_at))
        wait = bucket.reserve(window, free_at[stream])
        free_at[stream] += wait + overshoot if wait else 1e-6
        sent += window
    assert sent == pytest.approx(rate * seconds, rel=0.02)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1000", 1000),
        ("1", 1),
        ("20M", 20 * 1024**2),
        ("20m", 20 * 1024**2),
        ("20 M", 20 * 1024**2),
        ("20Mi", 20 * 1024**2),
        ("20MiB", 20 * 1024**2),
        ("20MB", 20e6),
        ("20MB/s", 20e6),
        (" 20kB ", 20e3),
        ("20Mbit", 2.5e6),
        ("20Mbit/s", 2.5e6),
        ("1Gbit", 125e6),
        ("8bit", 1),
        ("8Kibit", 1024),
        ("1.5k", 1536),
        ("100B", 100),
        ("1T", 1024**4),
    ],
)
def test_rates_are_read_as_curl_and_people_mean_them(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("3G", 3 * 1024**3),
        ("3GiB", 3 * 1024**3),
        ("3GB", 3 * 1000**3),
        ("1.5K", 1536),
        ("1.1G", 1181116006),
        ("999999999999999", 999999999999999),
    ],
)
def test_sizes_are_read_as_dd_and_truncate_mean_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1e6", "20Mb", "20mb", "5iB", "1..5M", ".5M", "1,5M", "20X", "nan", "inf", "٣M", "1M/h"],
)
def test_what_is_no_amount_is_a_usage_error_that_shows_how(text: str) -> None:
    with pytest.raises(UsageError, match="20M"):
        parse_rate(text)
    with pytest.raises(UsageError, match="3G"):
        parse_size(text)


def test_a_rate_of_zero_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no limit"):
        parse_rate("0M")


def test_a_size_is_not_in_bits_and_not_per_second() -> None:
    for text in ("8Mbit", "8M/s"):
        with pytest.raises(UsageError):
            parse_size(text)


@given(st.integers(0, 10**12))
def test_a_plain_number_is_itself(n: int) -> None:
    assert parse_size(str(n)) == n
