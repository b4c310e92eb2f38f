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
    scheduler = StreamScheduler(all_of(1000 * X), X, 1000 * X, 1, run_seconds=4.0, run_limit=128 * X)
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


P = X // 16


def test_where_a_share_is_less_than_an_extent_streams_get_parts_of_it() -> None:
    scheduler = StreamScheduler(all_of(2 * X), X, 2 * X, 4, part=P)
    assert scheduler.next_run(0, 0.0) == Span(0, 4 * P)
    assert scheduler.next_run(1, 0.0) == Span(4 * P, 7 * P)
    assert scheduler.next_run(2, 0.0) == Span(7 * P, 10 * P)


def test_a_part_ends_with_its_extent_and_whole_extents_begin_on_one() -> None:
    scheduler = StreamScheduler(all_of(100 * X), X, 100 * X, 1, part=P, run_limit=X + X // 2)
    assert scheduler.next_run(0, 0.0) == Span(0, X)
    scheduler.failed(0, 0.0)
    few = StreamScheduler(all_of(3 * X), X, 3 * X, 1, part=P, run_limit=12 * P)
    assert [few.next_run(stream, 0.0) for stream in range(3)] == [
        Span(0, 12 * P),
        Span(12 * P, 16 * P),
        Span(X, X + 12 * P),
    ]


def test_a_part_that_failed_comes_back_and_joins_what_waits_beside_it() -> None:
    scheduler = StreamScheduler(all_of(4 * X), X, 4 * X, 1, part=P, run_limit=4 * P)
    scheduler.next_run(0, 0.0)
    scheduler.failed(0, 1.0, RangeSet())
    scheduler.streams = 1
    assert scheduler.next_run(0, 1.0) == Span(0, 4 * P)


def test_a_part_takes_so_long_that_it_is_worth_a_request() -> None:
    scheduler = StreamScheduler(all_of(2 * X), X, 2 * X, 8, part=P, least_seconds=0.5)
    assert scheduler.next_run(0, 0.0) == Span(0, 2 * P)
    scheduler.acknowledged(0, 2 * P / (12 * P))
    assert scheduler.next_run(0, 1.0) == Span(2 * P, 8 * P)


def last_byte_at(part: int | None, streams: int, extents: int) -> float:
    """When everything has arrived over ``streams`` that carry an extent in 8 seconds each, as lossy links
    make them, and lose a tenth of a second with each request."""
    length = extents * X
    scheduler = StreamScheduler(
        all_of(length), X, length, streams, part=part, run_seconds=4.0, least_seconds=0.4
    )
    free: list[tuple[float, int]] = [(0.0, stream) for stream in range(streams)]
    ended = 0.0
    started: set[int] = set()
    while free:
        now, stream = min(free)
        free.remove((now, stream))
        if stream in started:
            scheduler.acknowledged(stream, now)
            ended = max(ended, now)
        run = scheduler.next_run(stream, now)
        if run is not None:
            started.add(stream)
            free.append((now + 0.1 + len(run) / X * 8.0, stream))
    assert scheduler.idle()
    return ended


def test_parts_let_slow_streams_end_together() -> None:
    best = 64 * 8.0 / 24
    assert last_byte_at(P, 24, 64) < best * 1.1
    assert last_byte_at(None, 24, 64) > best * 1.1


def test_a_cautious_run_is_at_most_twice_as_long_as_the_last_one() -> None:
    scheduler = StreamScheduler(all_of(1000 * X), X, 1000 * X, 8, part=P, run_seconds=4.0, cautious=True)
    lengths: list[int] = []
    for turn in range(7):
        run = scheduler.next_run(0, float(turn))
        assert run is not None
        lengths.append(len(run))
        scheduler.acknowledged(0, turn + 0.01)
    # The fourth is only what is left of the first extent.
    assert lengths == [2 * P, 4 * P, 8 * P, 2 * P, 2 * X, 4 * X, 8 * X]


Step = tuple[str, int, int]


def shared(ranges: RangeSet, run: Span) -> bool:
    """Whether any byte of ``run`` is in ``ranges``."""
    return any(run.start < span.end and span.start < run.end for span in ranges)


@given(
    st.integers(0, 40 * 8),
    st.lists(st.tuples(st.integers(0, 320), st.integers(1, 60)), max_size=5),
    st.integers(1, 5),
    st.integers(1, 100),
    st.sampled_from([None, 1, 2, 4]),
    st.lists(st.tuples(st.sampled_from("naf"), st.integers(0, 4), st.integers(0, 320)), max_size=80),
)
def test_every_missing_byte_is_handed_out_once_and_no_extent_twice_at_once(
    length: int,
    gaps: list[tuple[int, int]],
    streams: int,
    run_limit: int,
    part: int | None,
    steps: list[Step],
) -> None:
    extent = 8
    missing = (
        RangeSet(Span(start, min(start + size, length)) for start, size in gaps if start < length)
        if gaps
        else all_of(length)
    )
    scheduler = StreamScheduler(missing, extent, length, streams, part=part, run_limit=run_limit)
    running: dict[int, Span] = {}
    delivered = RangeSet()
    now = 0.0

    wanted = RangeSet(
        Span(span.start // extent * extent, min(-(-span.end // extent) * extent, length)) for span in missing
    )

    def step(action: str, stream: int, cut: int) -> None:
        if action == "n" and stream not in running:
            run = scheduler.next_run(stream, now)
            if run is not None:
                assert run.start % (part or extent) == 0
                assert run.end % (part or extent) == 0 or run.end == length
                inside_one = run.start // extent == (run.end - 1) // extent
                whole = run.start % extent == 0 and (run.end % extent == 0 or run.end == length)
                assert whole or (inside_one and part is not None)
                assert len(run) <= max(run_limit, part or extent)
                assert shared(wanted, run)
                assert not shared(delivered, run)
                assert not any(run.start < other.end and other.start < run.end for other in running.values())
                running[stream] = run
        elif action == "a" and stream in running:
            scheduler.acknowledged(stream, now)
            delivered.add(running.pop(stream))
        elif action == "f" and stream in running:
            run = running.pop(stream)
            held = min(run.end, run.start + cut)
            kept = held if held >= run.end else held // extent * extent
            scheduler.failed(stream, now, RangeSet([Span(0, held)]) if held else None)
            if held and kept > run.start:
                delivered.add(Span(run.start, kept))

    for action, stream, cut in steps:
        now += 0.25
        step(action, stream, cut)
        assert scheduler.idle() == (delivered == wanted)
    for stream in list(running):
        step("a", stream, 0)
    while not scheduler.idle():
        step("n", 0, 0)
        step("a", 0, 0)
    for span in missing:
        assert delivered.covers(span)


def run_link(
    rate_of: Callable[[int, float], float], limit: int, seconds: float, *, several: bool = False
) -> list[int]:
    """The number of streams wanted over time, on a link of which ``rate_of(streams, now)``
    says how fast it is."""
    count = StreamCount(limit, several=several)
    now, sent, seen = 0.0, 0.0, [count.wanted]
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


class TestSeveral:
    def test_it_begins_with_several_and_takes_as_many_as_add_up(self) -> None:
        assert run_link(lambda streams, _: streams * 1e6, 64, 60.0, several=True) == [8, 16, 32, 64]

    def test_it_begins_with_no_more_than_are_allowed(self) -> None:
        assert run_link(lambda streams, _: streams * 1e6, 4, 60.0, several=True) == [4]

    def test_more_that_gain_nothing_are_kept_but_no_further_ones_tried(self) -> None:
        assert run_link(lambda *_: 1e7, 64, 25.0, several=True) == [8, 16]

    def test_streams_that_slow_down_get_help_before_the_rest_is_over(self) -> None:
        def link(streams: int, now: float) -> float:
            return min(1e8, streams * (1e7 if now < 8.0 else 2e6))

        assert run_link(link, 64, 25.0, several=True) == [8, 16, 32, 64]
