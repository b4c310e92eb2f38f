"""The arithmetic of the report: medians, ratios of the same round, and how sure they are."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RESAMPLES: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Runs summed up the way every figure is quoted."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"

    @property
    def wide(self) -> bool:
        """Whether the runs differ so much that the median alone says little: by more than a fifth of it."""
        return self.high - self.low > 0.2 * abs(self.median)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Each round's ratio: what the rounds have in common (a busy neighbour, a slow disk) cancels out."""
    return [a / b for a, b in zip(over, under, strict=True)]


def interval_of_median(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The bootstrap (percentile) interval of the median. The same values always give the same one."""
    return _interval(
        [statistics.median(sample) for sample in _resampled(values, random.Random(1))],
        level,
    )


def interval_of_ratio(
    after: Sequence[float], before: Sequence[float], level: float = LEVEL
) -> tuple[float, float]:
    """The bootstrap interval of the ratio of two medians whose runs have no rounds in common."""
    chance = random.Random(1)
    return _interval(
        [
            statistics.median(a) / statistics.median(b)
            for a, b in zip(_resampled(after, chance), _resampled(before, chance), strict=True)
        ],
        level,
    )


def _resampled(values: Sequence[float], chance: random.Random) -> list[list[float]]:
    return [chance.choices(values, k=len(values)) for _ in range(RESAMPLES)]


def _interval(estimates: list[float], level: float) -> tuple[float, float]:
    estimates.sort()
    tail = (1 - level) / 2
    last = len(estimates) - 1
    return estimates[round(tail * last)], estimates[round((1 - tail) * last)]
