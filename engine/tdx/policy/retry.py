"""When to try again after a failure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tdx.errors import TdxError


class Randomness(Protocol):
    """``random.Random``, or anything with its ``random``."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retries`` failures in a row are borne; waits are drawn from [0, base * 2**n), at
    most [0, cap), in seconds ("full jitter")."""

    retries: int = 8
    base: float = 0.25
    cap: float = 15.0

    def __post_init__(self) -> None:
        if self.retries < 0 or not 0 < self.base <= self.cap:
            raise ValueError(f"not a retry policy: {self}")


class Retrier:
    """Counts failures in a row and says how long to wait after each."""

    def __init__(self, policy: RetryPolicy, rng: Randomness) -> None:
        self._policy = policy
        self._rng = rng
        self._failures = 0

    def failed(self, error: TdxError) -> float | None:
        """Seconds to wait before the next try; None: give up, because the error is
        permanent or the retries are used up."""
        if error.permanent or self._failures >= self._policy.retries:
            return None
        ceiling = self._policy.cap
        doublings = self._failures
        if doublings < math.log2(self._policy.cap / self._policy.base):
            ceiling = self._policy.base * 2.0**doublings
        wait = ceiling * self._rng.random()
        self._failures += 1
        return wait

    def progressed(self) -> None:
        """Bytes were acknowledged: the next failure counts as the first."""
        self._failures = 0
