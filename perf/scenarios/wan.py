"""P9: one large file over links of set rate, round trip and loss, with cubic and with BBR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from perf import targets
from perf.content import MIB, random_file, remove, scratch
from perf.contest import contest
from perf.model import Contestant, Missing, Outcome, Run, Settings, Table, Target
from perf.tables import series_of
from perf.wan.calibration import carried, kept
from perf.wan.ends import Curl, TdxAcross
from perf.wan.link import link
from perf.wan.pipe import MTU, Conditions

MBIT: Final = 1e6 / 8
RATES: Final = (100, 500)
"""Mbit/s: at the second one the emulator and both ends share two cores without being what limits a run."""

ROUND_TRIPS: Final = (0.01, 0.1)
LOSSES: Final = (0.0, 0.001, 0.01)
CONTROLS: Final = ("cubic", "bbr")

SHARE: Final = "share_of_link"
TARGET_SECONDS: Final = 25.0
"""How long the link itself takes for the file of a target."""

OTHER_SECONDS: Final = 5.0
MOST_ROUNDS_AT_HIGH_RATE: Final = 3
PAYLOAD: Final = 1448
"""Bytes of a packet that are the connection's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One place in the grid. ``rate`` in Mbit/s, ``round_trip`` in seconds."""

    rate: int
    round_trip: float
    loss: float
    control: str

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.rate * MBIT, self.round_trip / 2, self.loss)

    @property
    def is_target(self) -> bool:
        return self.round_trip == 0.1 and self.loss == 0.001

    @property
    def told(self) -> dict[str, str]:
        return {
            "congestion control": self.control,
            "link": f"{self.rate} Mbit/s",
            "round trip": f"{self.round_trip * 1000:g} ms",
            "loss": f"{self.loss * 100:g} %",
        }

    def carries(self, connections: int) -> float:
        """Bytes per second that so many connections may hope for: what a random loss leaves to those that
        take it for congestion is 1.22 packets a round trip over its root (Mathis et al., 1997)."""
        if self.control == "bbr" or not self.loss:
            return self.conditions.rate
        each = 1.22 * PAYLOAD / (self.round_trip * math.sqrt(self.loss))
        return min(self.conditions.rate, connections * each)


def run(settings: Settings) -> Outcome:
    """The whole grid takes about a quarter of an hour."""
    try:
        notes = _calibration(settings)
    except Missing as missing:
        return Outcome("wan", "Long and lossy links", (f"Left out: {missing}.",), ())
    cells = [Cell(*each) for each in _grid()]
    tables: list[Table] = []
    found: list[Target] = []
    for cell in cells:
        measured, references = _measure(cell, settings)
        tables += [measured, references]
        if cell.is_target:
            found.append(_target(cell, measured))
    return Outcome("wan", "Long and lossy links", (*notes, *_notes(settings)), tuple(tables), tuple(found))


def _grid() -> list[tuple[int, float, float, str]]:
    return [
        (rate, trip, loss, control)
        for rate in RATES
        for trip in ROUND_TRIPS
        for loss in LOSSES
        for control in CONTROLS
    ]


def _measure(cell: Cell, settings: Settings) -> tuple[Table, Table]:
    """tdx as it comes; and single connections, with a file of a size that they can carry."""
    seconds, rounds = OTHER_SECONDS, 1
    if cell.is_target:
        seconds, rounds = TARGET_SECONDS, settings.rounds
        if cell.rate != RATES[0]:
            rounds = min(rounds, MOST_ROUNDS_AT_HIGH_RATE)
    with link(cell.conditions, cell.control) as made, scratch(settings.memory) as home:
        tdx: list[Contestant] = [TdxAcross(made)]
        single: list[Contestant] = [Curl(made)]
        if cell.is_target:
            single.append(TdxAcross(made, "tdx, 1 stream", ("--streams", "1")))
        size = settings.sized(int(seconds * cell.carries(64)))
        measured = _contest("tdx", cell, tdx, size, home, settings, rounds)
        size = settings.sized(int(OTHER_SECONDS * cell.carries(1)))
        return measured, _contest("One connection", cell, single, size, home, settings, 1)


def _contest(
    title: str,
    cell: Cell,
    contestants: Sequence[Contestant],
    size: int,
    home: Path,
    settings: Settings,
    rounds: int,
) -> Table:
    source = random_file(home / "source", max(MIB, size // MIB * MIB))
    try:
        table = contest(
            title,
            contestants,
            source,
            settings,
            conditions=cell.told,
            rounds=rounds,
            with_memory=False,
        )
    finally:
        remove(source)

    def with_share(run: Run) -> Run:
        share = table.bytes / run.seconds / cell.conditions.rate
        return replace(run, figures={**run.figures, SHARE: share})

    series = tuple(replace(each, runs=tuple(with_share(run) for run in each.runs)) for each in table.series)
    return replace(table, series=series)


def _target(cell: Cell, measured: Table) -> Target:
    shares = [run.figures[SHARE] for run in series_of(measured, "tdx").runs]
    what = f"{targets.P9.what}, {cell.rate} Mbit/s"
    return replace(targets.P9.reached_by(shares), id=f"P9 {cell.control}", what=what)


def _calibration(settings: Settings) -> tuple[str, ...]:
    target = Cell(RATES[0], 0.1, 0.001, "cubic")
    with scratch(settings.disk) as home:
        most, held = carried(home), kept(target.conditions, home)
    return (
        (
            "The link is a program of the suite's own between two network namespaces, a process for each "
            "direction: rate, delay, random loss, and a queue of one round trip's bytes that drops what "
            f"finds no room. With no delay and no loss it carries {most.rate / MBIT:.0f} Mbit/s of one TCP "
            f"connection, at {most.there:.2f} and {most.back:.2f} of a core; {RATES[-1]} Mbit/s is the most "
            "that is asked of it, with both ends on the same two cores."
        ),
        (
            f"Asked for a round trip of 100 ms and 0.1 % loss, datagrams took {held.quickest * 1000:.1f} ms "
            f"at least, {held.median * 1000:.1f} ms in the middle and {held.slowest_percent * 1000:.1f} ms "
            f"at the 99th percentile, and {held.lost * 100:.2f} % of all packets were lost."
        ),
    )


def _notes(settings: Settings) -> tuple[str, ...]:
    return (
        (
            "The figure is content over time, exec to exit, as a share of the link's rate in IP packets of "
            f"{MTU} bytes: headers and TLS leave 0.963 of it to content, and the start and the end of a push "
            "take about ten round trips."
        ),
        (
            "The congestion control is a property of the route in both namespaces; tdx forces none. The "
            "kernel keeps no memory of the path from one run to the next."
        ),
        (
            f"The cells of the target get a file that the link takes {TARGET_SECONDS:g} s for, and "
            f"{settings.rounds} rounds ({MOST_ROUNDS_AT_HIGH_RATE} at most at {RATES[-1]} Mbit/s). The "
            f"others get one round and {OTHER_SECONDS:g} s, or a smaller file where random loss leaves less "
            "than the link to as many connections as tdx may open. Single connections get a file of the size "
            "that they can be expected to carry in that time: the same file would take some many minutes."
        ),
    )
