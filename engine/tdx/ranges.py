"""A set of non-negative integers kept as sorted, disjoint, half-open spans."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from tdx.model import Span


class RangeSet:
    """Mutable set of byte offsets.

    Spans never overlap or touch: adding ``[0, 4)`` and ``[4, 8)`` leaves ``[0, 8)``.
    Every operation on one span costs O(log n) to find it plus the spans it merges
    or cuts.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for span in spans:
            self.add(span)

    def __iter__(self) -> Iterator[Span]:
        return (Span(start, end) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        """How many spans, not how many bytes."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        spans = ", ".join(f"[{span.start}, {span.end})" for span in self)
        return f"RangeSet({spans})"

    def copy(self) -> RangeSet:
        twin = RangeSet()
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        return twin

    def add(self, span: Span) -> None:
        first = bisect_left(self._ends, span.start)
        last = bisect_right(self._starts, span.end)
        start, end = span.start, span.end
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, span: Span) -> None:
        first = bisect_right(self._ends, span.start)
        last = bisect_left(self._starts, span.end)
        starts: list[int] = []
        ends: list[int] = []
        if first < last:
            if self._starts[first] < span.start:
                starts.append(self._starts[first])
                ends.append(span.start)
            if self._ends[last - 1] > span.end:
                starts.append(span.end)
                ends.append(self._ends[last - 1])
            self._starts[first:last] = starts
            self._ends[first:last] = ends

    def covers(self, span: Span) -> bool:
        """Whether every byte of ``span`` is in the set."""
        at = bisect_right(self._starts, span.start) - 1
        return at >= 0 and self._ends[at] >= span.end

    def total(self) -> int:
        """How many bytes are in the set."""
        return sum(self._ends) - sum(self._starts)

    def prefix(self) -> int:
        """The length of the run that starts at 0."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def missing(self, length: int) -> RangeSet:
        """The bytes of ``[0, length)`` that are not in the set."""
        gaps = RangeSet([Span(0, length)] if length else [])
        for span in self:
            gaps.remove(span)
        return gaps
