"""Extents that several bodies bring together, each a part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tdx.errors import UploadBusy
from tdx.model import Span
from tdx.ranges import RangeSet


@dataclass(slots=True)
class _Extent:
    written: RangeSet = field(default_factory=RangeSet)
    writing: list[Span] = field(default_factory=list[Span])
    complete: bool = False


class Parts:
    """What has been written of extents that are not held yet, and who writes there now. Extents are
    indices, parts are byte ranges inside one. Thread-safe.

    It is kept in memory only: what a restart forgets is sent again, as of any extent that had not ended.
    """

    def __init__(self, lost: Callable[[int], None] = lambda _: None) -> None:
        """``lost(n)`` is called, in any thread, when ``n`` bytes that were written do not count any more; not
        for those of an extent that is whole."""
        self._lost = lost
        self._lock = threading.Lock()
        self._extents: dict[int, _Extent] = {}

    def begin(self, extent: int, part: Span) -> None:
        """A body is about to write ``part``: from now on nothing in it counts as written. UploadBusy where
        another one writes there, or where the whole extent is about to be recorded."""
        with self._lock:
            found = self._extents.setdefault(extent, _Extent())
            if found.complete or any(overlap(part, other) for other in found.writing):
                raise UploadBusy(f"extent {extent} is being written by another connection", extent=extent)
            found.writing.append(part)
            before = found.written.total()
            found.written.remove(part)
            lost = before - found.written.total()
        self._lost(lost)

    def wrote(self, extent: int, part: Span, whole: Span) -> bool:
        """Every byte of ``part`` is there; whether with it ``whole``, all of the extent, is."""
        with self._lock:
            found = self._extents[extent]
            found.written.add(part)
            found.complete = found.written.covers(whole)
            return found.complete

    def end(self, extent: int, part: Span) -> bool:
        """The body that began ``part`` writes no more; whether it was the last one in this extent."""
        with self._lock:
            found = self._extents[extent]
            found.writing.remove(part)
            if not found.writing and (found.complete or not found.written):
                del self._extents[extent]
            return not found.writing

    def forget(self, extents: range | None = None) -> None:
        """Nothing of these extents, or of any, counts as written. Nobody writes there now."""
        lost = 0
        with self._lock:
            for extent in list(self._extents):
                if extents is None or extent in extents:
                    gone = self._extents.pop(extent)
                    lost += 0 if gone.complete else gone.written.total()
        self._lost(lost)


def overlap(a: Span, b: Span) -> bool:
    """Whether two ranges have a byte in common."""
    return max(a.start, b.start) < min(a.end, b.end)
