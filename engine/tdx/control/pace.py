"""One rate limit shared by every stream of a push."""

from __future__ import annotations

import threading
import time

from tdx.policy.pacing import TokenBucket


class Pace:
    """A token bucket with a lock and a clock; called from pumps' threads."""

    def __init__(self, rate: float | None) -> None:
        """``rate`` in bytes per second; None: no limit."""
        self._bucket = None if rate is None else TokenBucket(rate)
        self._lock = threading.Lock()

    @property
    def limited(self) -> bool:
        return self._bucket is not None

    def wait_for(self, n: int) -> float:
        """Seconds to wait before the next ``n`` bytes may go."""
        if self._bucket is None:
            return 0.0
        with self._lock:
            return self._bucket.reserve(n, time.monotonic())
