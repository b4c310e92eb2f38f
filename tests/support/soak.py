"""Tests that can never have run enough: a taste of them in every run, the whole of them with ``--soak``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.content import SEED, chosen_seed


@dataclass(frozen=True)
class Soak:
    """How much of a test this run does, the chance it throws its dice by, and where it says what it did."""

    whole: bool
    record: Callable[[str, object], None]
    seed: int = field(default_factory=chosen_seed)

    @property
    def dice(self) -> random.Random:
        """New ones, that fall the same for the same seed."""
        return random.Random(self.seed)

    def rounds(self, taste: int, whole: int) -> int:
        """How many rounds this run does."""
        return whole if self.whole else taste

    def seconds(self, taste: float, whole: float) -> float:
        """How long this run goes on."""
        return whole if self.whole else taste

    def tell(self, figures: str) -> None:
        """What the run did, for the summary at its end; with the seed that repeats it."""
        self.record("figures", f"{figures} ({SEED}={self.seed})")
