"""How fast something has gone lately, and how long it still takes."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW: Final = 5.0
"""Seconds over which the rate is measured."""


class Speed:
    """The rate of a growing count over the last :data:`WINDOW` seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, count: int, now: float) -> None:
        """A count that is less than before begins anew."""
        if self._seen and count < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, count))
        # One observation older than the window stays, so that the window is covered.
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Per second; None until two observations are some time apart."""
        if not self._seen or self._seen[-1][0] <= self._seen[0][0]:
            return None
        (before, start), (after, end) = self._seen[0], self._seen[-1]
        return (end - start) / (after - before)

    def eta(self, left: int) -> float | None:
        """Seconds for ``left`` more; None where it does not move."""
        rate = self.rate
        return left / rate if rate else None
