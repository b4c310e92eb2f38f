"""The targets: what is wanted, what must not be lost again, and how a figure is held against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from perf.content import MIB
from perf.figures import Spread
from perf.model import Target

TIMES_FASTER: Final = "× faster"
TIMES_AS_LONG: Final = "× the time"


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the targets. ``better`` is ``lower`` or ``higher``."""

    id: str
    what: str
    unit: str
    goal: float
    gate: float
    better: str

    def reached_by(self, values: Sequence[float]) -> Target:
        """The target for the figures of some rounds."""
        spread = Spread.of(values)
        return Target(
            self.id,
            self.what,
            self.unit,
            spread.median,
            spread.low,
            spread.high,
            self.goal,
            self.gate,
            self.better,
        )


P1: Final = Goal("P1", "3 GiB, page cache to tmpfs, against cp", TIMES_AS_LONG, 1.0, 1.2, "lower")
P2: Final = Goal(
    "P2", "3 GiB to disk, durable, against dd bs=1M conv=fsync", TIMES_AS_LONG, 1.05, 1.3, "lower"
)
P3_NGINX: Final = Goal("P3", "the push of P1 against curl → nginx", TIMES_FASTER, 2.0, 1.5, "higher")
P3_RSYNC: Final = Goal("P3", "the push of P1 against an rsync daemon", TIMES_FASTER, 2.5, 2.0, "higher")
P3_SCP: Final = Goal("P3", "the push of P1 against scp (AES-GCM)", TIMES_FASTER, 7.0, 5.0, "higher")
P4_TIME: Final = Goal("P4", "resume at 100 GiB: exec to the first new byte", "s", 0.5, 2.0, "lower")
P4_AGAIN: Final = Goal(
    "P4", "resume at 100 GiB: sent again, for each stream", "of an extent (64 MiB)", 1.0, 1.0, "lower"
)
P5: Final = Goal("P5", "memory of both ends, any size, up to 4 streams", "MiB", 160, 200, "lower")
P6: Final = Goal(
    "P6", "10,000 files of 16 KiB, durable, against rsync and then sync", TIMES_AS_LONG, 1.0, 1.5, "lower"
)
P7: Final = Goal(
    "P7", "64 files at once, against one file of the same size", "× the throughput", 0.9, 0.7, "higher"
)
P8: Final = Goal("P8", "3 GiB over TLS against scp (AES-256-GCM)", TIMES_FASTER, 5.0, 3.0, "higher")
P9: Final = Goal("P9", "100 ms round trip, 0.1 % loss", "× the link", 0.9, 0.7, "higher")
P10: Final = Goal("P10", "push of 1 KiB, exec to exit", "s", 0.25, 0.4, "lower")
P11: Final = Goal(
    "P11", "64 transfers at once, scraped 10 times a second", "× the throughput", 0.99, 0.97, "higher"
)

GOALS: Final = (P1, P2, P3_NGINX, P3_RSYNC, P3_SCP, P4_TIME, P4_AGAIN, P5, P6, P7, P8, P9, P10, P11)


def mebibytes(sizes: Sequence[float]) -> list[float]:
    return [size / MIB for size in sizes]


# --- judging -------------------------------------------------------------------


def reaches(target: Target, bar: float) -> bool:
    return target.value <= bar if target.better == "lower" else target.value >= bar


def verdict(target: Target) -> str:
    """``met``; ``gate met``, with the distance to the goal; or ``missed by``, with that to the gate."""
    if reaches(target, target.goal):
        return "met"
    if reaches(target, target.gate):
        return f"gate met, {_distance(target, target.goal)} from the goal"
    return f"**missed by {_distance(target, target.gate)}**"


def _distance(target: Target, bar: float) -> str:
    return f"{abs(target.value - bar) / bar * 100:.0f} %"
