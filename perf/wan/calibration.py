"""What the emulator itself carries, and how well it keeps to its conditions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.processes import cpu_seconds, said, server, timed
from perf.wan.ends import PROBE
from perf.wan.link import FAR, Link, link
from perf.wan.pipe import Conditions

UNBOUND: Final = Conditions(rate=100e9 / 8, delay=0.0, queue=16 << 20)
BLAST_SECONDS: Final = 5.0
PINGS: Final = 5000


@dataclass(frozen=True, slots=True)
class Carried:
    """One TCP connection with nothing in its way but the emulator: bytes of payload per second, and the
    share of a core that each direction took."""

    rate: float
    there: float
    back: float


@dataclass(frozen=True, slots=True)
class Kept:
    """Round trips of small datagrams in seconds, and the share of packets, both ways, that were dropped."""

    quickest: float
    median: float
    slowest_percent: float
    lost: float


def carried(home: Path) -> Carried:
    """Blast it."""
    with link(UNBOUND, "cubic") as made, _far(made, "drain", home) as port:
        before = [cpu_seconds([pid]) for pid in made.pids]
        told = json.loads(timed([*made.near, *PROBE, "blast", FAR, port, str(BLAST_SECONDS)]).output)
        there, back = (
            (cpu_seconds([pid]) - used) / told["seconds"] for pid, used in zip(made.pids, before, strict=True)
        )
    return Carried(told["bytes"] / told["seconds"], there, back)


def kept(conditions: Conditions, home: Path) -> Kept:
    """Send small datagrams back and forth."""
    with link(conditions, "cubic") as made, _far(made, "echo", home) as port:
        trips = json.loads(timed([*made.near, *PROBE, "ping", FAR, port, str(PINGS)]).output)
        counts = made.counts()
    passed = sum(count.delivered for count in counts)
    lost = sum(count.lost + count.overflowed for count in counts)
    return Kept(trips[0], statistics.median(trips), trips[len(trips) * 99 // 100], lost / (lost + passed))


@contextmanager
def _far(made: Link, mode: str, home: Path) -> Iterator[str]:
    log = home / f"{mode}.log"
    with server([*made.far, *PROBE, mode], log) as process:
        yield said(process, log)
