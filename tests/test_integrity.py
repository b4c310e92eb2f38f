from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.integrity import (
    MAX_EXTENT,
    MIB,
    MIN_EXTENT,
    Root,
    cut,
    digest_of,
    extent_count,
    extent_size_for,
    extent_span,
    extents_of,
    new_hasher,
    root_of_small,
    zero_digest,
)
from tdx.model import Span

SPECIFICATION = Path(__file__).parents[1] / "docs" / "integrity.md"
ROOT = "xxh3-128:4194304:" + "0123456789abcdef" * 2

extent_sizes = st.sampled_from([4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB])
lengths = st.integers(0, 2**50)
some_spans = st.tuples(st.integers(0, 2**40), st.integers(1, 500 * MIB)).map(
    lambda at: Span(at[0], at[0] + at[1])
)


def rows_of(*columns: str) -> Iterator[list[str]]:
    """The cells of the table in the specification that has these columns."""
    lines = iter(SPECIFICATION.read_text(encoding="utf-8").splitlines())
    heading = "| " + " | ".join(columns) + " |"
    assert heading in lines, f"the specification has lost its table {heading}"
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip(" `") for cell in line.strip("|").split("|")]


def content(kind: str, length: int) -> bytes:
    return {
        "zeros": lambda: bytes(length),
        "pattern": lambda: (bytes(range(251)) * (length // 251 + 1))[:length],
    }[kind]()


def test_the_documented_vectors_are_what_is_computed() -> None:
    vectors = list(rows_of("content", "length", "extent size", "digests", "root"))
    assert len(vectors) >= 10
    for kind, length_text, size_text, digests_text, root in vectors:
        length, size = int(length_text), int(size_text)
        data = memoryview(content(kind, length))
        spans = [extent_span(index, length, size) for index in range(extent_count(length, size))]
        digests = [digest_of(data[span.start : span.end]) for span in spans]
        assert [digest.hex() for digest in digests] == re.findall(r"[0-9a-f]{32}", digests_text)
        assert str(Root.over(digests, length, size)) == root
        assert Root.parse(root) == Root.over(digests, length, size)


def test_the_documented_extent_sizes_are_what_is_chosen() -> None:
    bounds = [tuple(map(int, row)) for row in rows_of("length in bytes, from", "to", "extent size")]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 2**63 - 1
    for first, last, size in bounds:
        assert extent_size_for(first) == extent_size_for(last) == size
    assert all(before[1] + 1 == after[0] for before, after in zip(bounds, bounds[1:], strict=False))


def test_an_unknown_length_has_an_extent_size_of_its_own() -> None:
    assert extent_size_for(None) == 16 * MIB


def test_the_digest_is_xxh3_128_as_others_compute_it() -> None:
    assert digest_of(b"").hex() == "99aa06d3014798d86001c324468d497f"  # the xxHash specification's own


@given(lengths)
def test_the_extent_size_is_the_smallest_that_gives_at_most_1024_extents(length: int) -> None:
    size = extent_size_for(length)
    assert MIN_EXTENT <= size <= MAX_EXTENT
    assert size.bit_count() == 1
    assert size == MAX_EXTENT or extent_count(length, size) <= 1024
    assert size == MIN_EXTENT or extent_count(length, size // 2) > 1024


@given(st.integers(0, 200 * MIB), extent_sizes)
def test_extents_tile_the_file(length: int, size: int) -> None:
    spans = [extent_span(index, length, size) for index in range(extent_count(length, size))]
    assert sum(map(len, spans)) == length
    assert all(before.end == after.start for before, after in zip(spans, spans[1:], strict=False))
    assert all(span.start % size == 0 and len(span) <= size for span in spans)


@given(st.integers(0, 10**6), extent_sizes)
def test_an_extent_of_unknown_length_is_whole(index: int, size: int) -> None:
    assert extent_span(index, None, size) == Span(index * size, (index + 1) * size)


@given(some_spans, extent_sizes)
def test_cutting_a_span_leaves_one_piece_in_each_extent_it_touches(span: Span, size: int) -> None:
    pieces = list(cut(span, size))
    assert (pieces[0].start, pieces[-1].end) == (span.start, span.end)
    assert all(before.end == after.start for before, after in zip(pieces, pieces[1:], strict=False))
    assert [extents_of(piece, size) for piece in pieces] == [
        range(index, index + 1) for index in extents_of(span, size)
    ]


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=4))
def test_hashing_in_parts_gives_the_digest_of_the_whole(data: bytes, cuts: list[int]) -> None:
    hasher, at = new_hasher(), 0
    for end in [*sorted(cuts), len(data)]:
        hasher.update(memoryview(data)[at:end])
        at = max(at, min(end, len(data)))
    assert hasher.digest() == digest_of(data)


@pytest.mark.parametrize("size", [0, 1, 1000, MIB - 1, MIB, MIB + 1, 4 * MIB, 5 * MIB + 7])
def test_the_digest_of_zeros_needs_no_zeros(size: int) -> None:
    assert zero_digest(size) == digest_of(bytes(size))


@given(st.binary(min_size=16, max_size=16), extent_sizes)
def test_a_root_is_read_as_it_was_written(value: bytes, size: int) -> None:
    root = Root(size, value)
    assert Root.parse(str(root)) == root


@given(st.integers(0, 4), st.integers(0, 20 * MIB))
def test_a_root_is_over_as_many_digests_as_there_are_extents(count: int, length: int) -> None:
    digests = [digest_of(b"%d" % index) for index in range(count)]
    if count == extent_count(length, MIN_EXTENT):
        Root.over(digests, length, MIN_EXTENT)
    else:
        with pytest.raises(ValueError, match="digests do not fit"):
            Root.over(digests, length, MIN_EXTENT)


def test_the_root_tells_order_and_length_apart() -> None:
    a, b = digest_of(b"a"), digest_of(b"b")
    roots = {
        Root.over([a, b], 5 * MIB, MIN_EXTENT),
        Root.over([b, a], 5 * MIB, MIN_EXTENT),
        Root.over([a, b], 6 * MIB, MIN_EXTENT),
    }
    assert len(roots) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "xxh3-128",
        "xxh3-128:4194304",
        ROOT + "0",
        ROOT[:-1],
        ROOT.upper(),
        ROOT.replace("abcdef", "ABCDEF"),
        ROOT.replace("0123", "01 3"),
        ROOT.replace("89ab", "89 b"),
        ROOT[:-1] + "g",
        ROOT + "\n",
        " " + ROOT,
        ROOT.replace("4194304", "04194304"),
        ROOT.replace("4194304", "+4194304"),
        ROOT.replace("4194304", " 4194304"),
        ROOT.replace("4194304", "4_194_304"),
        ROOT.replace("4194304", "٤١٩٤٣٠٤"),
        ROOT.replace("4194304", "4194305"),
        ROOT.replace("4194304", "2097152"),
        ROOT.replace("4194304", "134217728"),
        ROOT.replace("4194304", "12582912"),
        ROOT.replace("4194304", "0"),
        ROOT.replace("4194304", "-4194304"),
        ROOT.replace("4194304", "9" * 40),
        ROOT.replace("xxh3-128", "sha-256"),
        ROOT.replace(":", "::", 1),
    ],
)
def test_a_root_has_one_spelling(text: str) -> None:
    assert str(Root.parse(ROOT)) == ROOT
    with pytest.raises(ValueError, match="not a"):
        Root.parse(text)


@pytest.mark.parametrize("size", [0, 1, 4096, MIN_EXTENT])
def test_the_root_of_a_small_file_is_the_same_however_it_is_computed(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    digests = [digest_of(content)] if content else []
    assert root_of_small(digest_of(content), size) == str(Root.over(digests, size, MIN_EXTENT))
