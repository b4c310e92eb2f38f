"""Stream scheduling: every missing byte once, never two streams on one extent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.integrity import MIB
from tdx.model import Span
from tdx.policy.schedule import StreamCount, StreamScheduler
from tdx.ranges import RangeSet

X = 4 * MIB


def all_of(length: int) -> RangeSet:
    return RangeSet().missing(length)


def test_one_stream_gets_everything_in_one_run() -> None:
    scheduler = StreamScheduler(all_of(100 * X + 1), X, 100 * X + 1, 1)
    assert scheduler.next_run(0, 0.0) == Span(0, 100 * X + 1)
    assert scheduler.next_run(1, 0.0) is None
    assert not scheduler.idle()
    scheduler.acknowledged(0, 1.0)
    assert scheduler.idle()
    assert scheduler.next_run(0, 1.0) is None


def test_an_empty_file_has_nothing_to_hand_out() -> None:
    scheduler = StreamScheduler(all_of(0), X, 0, 4)
    assert scheduler.idle()
    assert scheduler.next_run(0, 0.0) is None


def test_a_run_is_no_longer_than_the_limit() -> None:
    scheduler = StreamScheduler(all_of(100 * X), X, 100 * X, 1, run_limit=10 * X + 5)
    assert scheduler.next_run(0, 0.0) == Span(0, 10 * X)


def test_a_run_is_at_least_one_extent() -> None:
    scheduler = StreamScheduler(all_of(3 * X), X, 3 * X, 4, run_limit=1)
    assert scheduler.next_run(0, 0.0) == Span(0, X)


def test_several_streams_get_half_of_their_share_each_time() -> None:
    scheduler = StreamScheduler(all_of(64 * X), X, 64 * X, 4)
    assert scheduler.next_run(0, 0.0) == Span(0, 8 * X)
    assert scheduler.next_run(1, 0.0) == Span(8 * X, 15 * X)
    assert scheduler.next_run(2, 0.0) == Span(15 * X, 21 * X)


def test_a_run_never_reaches_over_what_is_held() -> None:
    missing = RangeSet([Span(0, 2 * X), Span(5 * X, 6 * X)])
    scheduler = StreamScheduler(missing, X, 10 * X, 1)
    assert scheduler.next_run(0, 0.0) == Span(0, 2 * X)
    assert scheduler.next_run(1, 0.0) == Span(5 * X, 6 * X)


def test_an_extent_of_which_a_part_is_missing_is_sent_whole() -> None:
    scheduler = StreamScheduler(RangeSet([Span(X + 17, X + 18)]), X, 2 * X - 1, 1)
    assert scheduler.next_run(0, 0.0) == Span(X, 2 * X - 1)


def test_without_a_length_runs_end_on_extents() -> None:
    scheduler = StreamScheduler(RangeSet([Span(0, X + 1)]), X, None, 1)
    assert scheduler.next_run(0, 0.0) == Span(0, 2 * X)


def test_a_stream_has_one_run_at_a_time() -> None:
    scheduler = StreamScheduler(all_of(64 * X), X, 64 * X, 4)
    scheduler.next_run(7, 0.0)
    with pytest.raises(ValueError, match="stream 7"):
        scheduler.next_run(7, 0.0)


def test_a_failed_run_comes_back_without_what_the_receiver_holds() -> None:
    scheduler = StreamScheduler(all_of(4 * X), X, 4 * X, 1)
    scheduler.next_run(0, 0.0)
    scheduler.failed(0, 1.0, RangeSet([Span(0, X + 5), Span(3 * X, 4 * X)]))
    assert scheduler.next_run(1, 1.0) == Span(X, 3 * X)


def test_a_failed_run_comes_back_whole_when_nothing_is_known() -> None:
    scheduler = StreamScheduler(all_of(4 * X), X, 4 * X, 1)
    scheduler.next_run(0, 0.0)
    scheduler.failed(0, 1.0)
    scheduler.failed(0, 1.0)
    assert scheduler.next_run(0, 1.0) == Span(0, 4 * X)


def test_a_slower_stream_gets_shorter_runs() -> None:
    scheduler = StreamScheduler(all_of(400 * X), X, 400 * X, 2)
    for stream in (0, 1):
        scheduler.next_run(stream, 0.0)
    scheduler.acknowledged(0, 1.0)
    scheduler.acknowledged(1, 8.0)
    slow = scheduler.next_run(1, 4.0)
    scheduler.failed(1, 4.0)
    fast = scheduler.next_run(0, 4.0)
    assert slow is not None
    assert fast is not None
    assert len(slow) < len(fast) / 2


def test_a_stream_that_kept_little_before_it_broke_gets_shorter_runs() -> None:
    scheduler = StreamScheduler(all_of(400 * X), X, 400 * X, 2)
    for stream in (0, 1):
        scheduler.next_run(stream, 0.0)
    scheduler.acknowledged(0, 1.0)
    scheduler.failed(1, 1.0, RangeSet([Span(0, 110 * X)]))
    broken = scheduler.next_run(1, 1.0)
    scheduler.failed(1, 1.0)
    steady = scheduler.next_run(0, 1.0)
    assert broken is not None
    assert steady is not None
    assert len(broken) < len(steady) / 2


def test_runs_bounded_in_time_leave_something_for_streams_that_come_later() -> None:
    scheduler = StreamScheduler(all_of(1000 * X), X, 1000 * X, 1, run_seconds=4.0)
    assert scheduler.next_run(0, 0.0) == Span(0, 2 * X)
    scheduler.acknowledged(0, 1.0)
    assert scheduler.next_run(0, 1.0) == Span(2 * X, 10 * X)
    assert scheduler.next_run(1, 1.0) == Span(10 * X, 18 * X)
    scheduler.acknowledged(0, 1.001)
    assert scheduler.next_run(0, 1.001) == Span(18 * X, 146 * X)


def test_a_crawling_stream_still_gets_runs_worth_a_request() -> None:
    scheduler = StreamScheduler(all_of(1000 * X), X, 1000 * X, 1, run_seconds=4.0)
    scheduler.next_run(0, 0.0)
    scheduler.acknowledged(0, 1000.0)
    assert scheduler.next_run(0, 1000.0) == Span(2 * X, 4 * X)


def test_streams_end_together() -> None:
    scheduler = StreamScheduler(all_of(1024 * X), X, 1024 * X, 4)
    rates = [X, X, X / 2, 2 * X]
    free_at = [0.0] * 4
    last = [0.0] * 4
    ended = 0.0
    while not scheduler.idle():
        stream = free_at.index(min(free_at))
        now = free_at[stream]
        if last[stream]:
            scheduler.acknowledged(stream, now)
        run = scheduler.next_run(stream, now)
        if run is None:
            last[stream], free_at[stream] = 0.0, float("inf")
        else:
            free_at[stream] = last[stream] = now + len(run) / rates[stream]
            ended = free_at[stream]
    assert ended <= 1024 * X / sum(rates) * 1.02 + X / min(rates)


Step = tuple[str, int, int]


def shared(ranges: RangeSet, run: Span) -> bool:
    """Whether any byte of ``run`` is in ``ranges``."""
    return any(run.start < span.end and span.start < run.end for span in ranges)


@given(
    st.integers(0, 40 * 8),
    st.lists(st.tuples(st.integers(0, 320), st.integers(1, 60)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 100),
    st.lists(st.tuples(st.sampled_from("naf"), st.integers(0, 4), st.integers(0, 320)), max_size=80),
)
def test_every_missing_byte_is_handed_out_once_and_no_extent_twice_at_once(
    length: int, gaps: list[tuple[int, int]], streams: int, run_limit: int, steps: list[Step]
) -> None:
    extent = 8
    missing = (
        RangeSet(Span(start, min(start + size, length)) for start, size in gaps if start < length)
        if gaps
        else all_of(length)
    )
    scheduler = StreamScheduler(missing, extent, length, streams, run_limit=run_limit)
    running: dict[int, Span] = {}
    delivered = RangeSet()
    now = 0.0

    def step(action: str, stream: int, cut: int) -> None:
        if action == "n" and stream not in running:
            run = scheduler.next_run(stream, now)
            if run is not None:
                assert run.start % extent == 0
                assert run.end % extent == 0 or run.end == length
                assert len(run) <= max(run_limit, extent)
                assert shared(missing, run)
                assert not shared(delivered, run)
                assert not any(run.start < other.end and other.start < run.end for other in running.values())
                running[stream] = run
        elif action == "a" and stream in running:
            scheduler.acknowledged(stream, now)
            delivered.add(running.pop(stream))
        elif action == "f" and stream in running:
            run = running.pop(stream)
            held = min(run.end, run.start + cut)
            kept = held if held == run.end else held // extent * extent
            scheduler.failed(stream, now, RangeSet([Span(0, held)]) if held else None)
            if held and kept > run.start:
                delivered.add(Span(run.start, kept))

    for action, stream, cut in steps:
        now += 0.25
        step(action, stream, cut)
        whole = RangeSet(
            Span(span.start // extent * extent, min(-(-span.end // extent) * extent, length))
            for span in missing
        )
        assert scheduler.idle() == (delivered == whole)
    for stream in list(running):
        step("a", stream, 0)
    while not scheduler.idle():
        step("n", 0, 0)
        step("a", 0, 0)
    for span in missing:
        assert delivered.covers(span)


def run_link(rate_of: Callable[[int, float], float], limit: int, seconds: float) -> list[int]:
    """The number of streams wanted over time, on a link of which ``rate_of(streams, now)``
    says how fast it is."""
    count = StreamCount(limit)
    now, sent, seen = 0.0, 0.0, [1]
    while now < seconds:
        wanted = count.observe(int(sent), now)
        if wanted != seen[-1]:
            seen.append(wanted)
        sent += rate_of(wanted, now) * 0.125
        now += 0.125
    return seen


def test_a_link_where_streams_add_up_gets_all_of_them() -> None:
    assert run_link(lambda streams, _: streams * 1e7, 8, 60.0) == [1, 2, 4, 8]


def test_a_limit_that_is_no_power_of_two_is_reached() -> None:
    assert run_link(lambda streams, _: streams * 1e7, 6, 60.0) == [1, 2, 4, 6]


def test_a_link_that_one_stream_fills_goes_back_to_one_and_rests() -> None:
    assert run_link(lambda *_: 1e9, 8, 30.0) == [1, 2, 1]
    assert run_link(lambda *_: 1e9, 8, 60.0) == [1, 2, 1, 2, 1]


def test_a_link_filled_by_four_settles_at_four() -> None:
    assert run_link(lambda streams, _: min(streams, 4) * 1e7, 16, 30.0) == [1, 2, 4, 8, 4]


def test_a_gain_of_less_than_eight_per_cent_is_not_worth_it() -> None:
    assert run_link(lambda streams, _: 1e8 * (1 + 0.07 * (streams > 1)), 8, 20.0) == [1, 2, 1]
    assert run_link(lambda streams, _: 1e8 * (1 + 0.09 * (streams > 1)), 2, 20.0) == [1, 2]


def test_a_link_that_improves_is_tried_again_after_the_rest() -> None:
    assert run_link(lambda streams, now: 1e7 * (streams if now > 20 else 1), 2, 60.0) == [1, 2, 1, 2]


def test_one_stream_allowed_is_one_stream_used() -> None:
    assert run_link(lambda streams, _: streams * 1e7, 1, 60.0) == [1]


def test_a_link_that_stands_still_is_not_given_more_streams() -> None:
    assert run_link(lambda *_: 0.0, 8, 60.0) == [1]
