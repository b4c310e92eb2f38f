from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.model import Span
from tdx.ranges import RangeSet

LIMIT = 24

spans = st.tuples(st.integers(0, LIMIT - 1), st.integers(1, LIMIT)).map(lambda at: Span(at[0], at[0] + at[1]))
edits = st.lists(st.tuples(st.booleans(), spans), max_size=12)


def apply(changes: Iterable[tuple[bool, Span]]) -> tuple[RangeSet, set[int]]:
    """The same additions and removals on a range set and on its model, a set of integers."""
    ranges, model = RangeSet(), set[int]()
    for adds, span in changes:
        if adds:
            ranges.add(span)
            model |= set(range(span.start, span.end))
        else:
            ranges.remove(span)
            model -= set(range(span.start, span.end))
    return ranges, model


def members(ranges: RangeSet) -> set[int]:
    return {byte for span in ranges for byte in range(span.start, span.end)}


@given(edits)
def test_adding_and_removing_spans_is_union_and_difference_of_their_bytes(
    changes: list[tuple[bool, Span]],
) -> None:
    ranges, model = apply(changes)
    assert members(ranges) == model
    assert ranges.total() == len(model)


@given(edits)
def test_spans_are_ascending_and_neither_overlap_nor_touch(changes: list[tuple[bool, Span]]) -> None:
    listed = list(apply(changes)[0])
    assert all(before.end < after.start for before, after in zip(listed, listed[1:], strict=False))
    assert len(listed) == len(apply(changes)[0])


@given(edits, spans)
def test_covers_asks_for_all_of_the_bytes(changes: list[tuple[bool, Span]], span: Span) -> None:
    ranges, model = apply(changes)
    asked = set(range(span.start, span.end))
    assert ranges.covers(span) == (asked <= model)


@given(edits, st.integers(0, 2 * LIMIT))
def test_what_is_missing_is_the_rest_of_the_file(changes: list[tuple[bool, Span]], length: int) -> None:
    ranges, model = apply(changes)
    assert members(ranges.missing(length)) == set(range(length)) - model
    assert members(ranges) == model


@given(edits)
def test_the_prefix_ends_at_the_first_missing_byte(changes: list[tuple[bool, Span]]) -> None:
    ranges, model = apply(changes)
    assert ranges.prefix() == min(set(range(3 * LIMIT)) - model)


@given(edits)
def test_equal_bytes_make_equal_sets_however_they_were_added(changes: list[tuple[bool, Span]]) -> None:
    ranges, model = apply(changes)
    assert ranges == RangeSet(Span(byte, byte + 1) for byte in sorted(model, reverse=True))


@given(edits, spans)
def test_a_copy_lives_its_own_life(changes: list[tuple[bool, Span]], span: Span) -> None:
    ranges, model = apply(changes)
    twin = ranges.copy()
    twin.add(span)
    twin.remove(Span(0, 1))
    assert members(ranges) == model
    assert members(twin) == (model | set(range(span.start, span.end))) - {0}


def test_different_sets_differ_and_nothing_else_is_a_range_set() -> None:
    ranges = RangeSet([Span(0, 4)])
    assert ranges != RangeSet([Span(0, 5)])
    assert ranges != RangeSet([Span(1, 4)])
    assert ranges != [Span(0, 4)]


def test_a_mutable_set_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(RangeSet())


def test_the_repr_shows_half_open_spans() -> None:
    assert repr(RangeSet([Span(8, 12), Span(0, 4)])) == "RangeSet([0, 4), [8, 12))"


@pytest.mark.parametrize(("start", "end"), [(0, 0), (4, 4), (5, 4), (-1, 4)])
def test_a_span_is_never_empty_or_negative(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not a span"):
        Span(start, end)


def test_a_span_is_as_long_as_its_bytes() -> None:
    assert len(Span(3, 10)) == 7
