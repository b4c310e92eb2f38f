"""How many lines a stranger may make somebody else write."""

from __future__ import annotations

from typing import Final

BURST: Final = 50
PER_SECOND: Final = 5.0


class Flood:
    """Lets events through up to a rate, and counts those that it holds back. Not thread-safe."""

    def __init__(self, burst: int = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._room = self._burst
        self._at = 0.0
        self._held_back = 0

    def admit(self, now: float) -> int | None:
        """None where this event, at ``now`` (monotonic, in seconds), is one too many; otherwise
        how many were held back since the last that was let through."""
        self._room = min(self._burst, self._room + max(0.0, now - self._at) * self._per_second)
        self._at = max(self._at, now)
        if self._room < 1.0:
            self._held_back += 1
            return None
        self._room -= 1.0
        held_back, self._held_back = self._held_back, 0
        return held_back
