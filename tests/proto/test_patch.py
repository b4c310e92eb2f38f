"""The bodies by which a file is made from an earlier version: read back as written, refused otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import ProtocolError
from tdx.integrity import BLOCK, block_digests, digest_of, extent_span
from tdx.model import Span
from tdx.proto import patch as wire

EXTENT = 8 * BLOCK
LENGTH = 5 * EXTENT + 3 * BLOCK + 17
COUNT = 6
DIGEST = digest_of(b"")

indices = st.sets(st.integers(0, COUNT - 1), min_size=1).map(sorted)


@given(indices)
def test_a_list_of_extents_is_read_back(chosen: list[int]) -> None:
    listed = [(index, digest_of(bytes([index]))) for index in chosen]
    assert wire.parse_list(wire.encode_list(listed), LENGTH, EXTENT) == listed


@given(indices)
def test_a_list_of_blocks_is_read_back(chosen: list[int]) -> None:
    listed = [
        (index, bytes([index]) * wire.digests_size(extent_span(index, LENGTH, EXTENT))) for index in chosen
    ]
    found = wire.parse_blocks(wire.encode_blocks(listed), LENGTH, EXTENT)
    assert [(index, bytes(digests)) for index, digests in found] == listed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(19),
        bytes(21),
        wire.encode_list([(COUNT, DIGEST)]),
        wire.encode_list([(1, DIGEST), (0, DIGEST)]),
        wire.encode_list([(1, DIGEST), (1, DIGEST)]),
        wire.encode_list((index, DIGEST) for index in range(wire.MAX_LISTED + 1)),
    ],
    ids=["nothing", "short", "long", "beyond", "backwards", "twice", "too many"],
)
def test_a_list_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_list(body, LENGTH, EXTENT)


WHOLE = bytes(EXTENT // BLOCK * 8)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(3),
        wire.encode_blocks([(0, WHOLE[8:])]),
        wire.encode_blocks([(0, WHOLE)]) + b"x",
        wire.encode_blocks([(COUNT, WHOLE)]),
        wire.encode_blocks([(1, WHOLE), (0, WHOLE)]),
        wire.encode_blocks([(1, WHOLE), (1, WHOLE)]),
        bytes(wire.BLOCKS_LIMIT + 1),
    ],
    ids=["nothing", "short", "a block short", "long", "beyond", "backwards", "twice", "too many"],
)
def test_blocks_that_make_no_sense_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_blocks(body, LENGTH, EXTENT)


@given(
    st.sets(st.integers(0, 7)),
    st.integers(0, 8),
    st.sampled_from([Span(EXTENT, 2 * EXTENT), Span(EXTENT, 2 * EXTENT - 17)]),
)
def test_exactly_the_blocks_that_differ_or_are_missing_are_named(
    changed: set[int], there: int, extent: Span
) -> None:
    old = bytearray(len(extent))
    for index in changed:
        old[index * BLOCK] ^= 1
    theirs = block_digests(memoryview(bytes(len(extent))))
    ours = block_digests(memoryview(old)[: there * BLOCK])
    found = wire.differing_blocks(extent, ours, theirs)
    blocks = [
        at
        for span in found
        for at in range((span.start - extent.start) // BLOCK, -(-(span.end - extent.start) // BLOCK))
    ]
    assert blocks == sorted(changed | set(range(there, 8)))
    assert all(a.end < b.start for a, b in zip(found, found[1:], strict=False))
    assert all(span.end % BLOCK == 0 or span.end == extent.end for span in found)


@given(st.integers(0, 1 << 20), st.integers(1, 5 * wire.MAX_RUN))
def test_runs_are_short_enough_and_miss_nothing(start: int, size: int) -> None:
    runs = list(wire.runs_of([Span(start, start + size)]))
    assert all(len(run) <= wire.MAX_RUN for run in runs)
    assert runs[0].start == start
    assert runs[-1].end == start + size
    assert all(a.end == b.start for a, b in zip(runs, runs[1:], strict=False))
