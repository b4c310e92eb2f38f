"""P5: how time and memory grow with the work, by size and by number of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from perf import targets
from perf.content import GIB, KIB, MIB, folder_of, random_file, remove, scratch, sparse_file
from perf.contest import contest
from perf.contestants.tdx import Tdx
from perf.model import Contestant, Outcome, Settings, Table

DENSE: Final = (MIB, 16 * MIB, 256 * MIB, GIB, 4 * GIB)
SPARSE: Final = (32 * GIB, 100 * GIB)
ENDS: Final = 256 * MIB
FILES: Final = (1, 10, 100, 1_000, 10_000)
ROUNDS: Final = 3
"""At most: this scenario has many steps, and looks at orders of magnitude."""

STREAMS: Final = (Tdx("tdx, 1 stream", ("--streams", "1")), Tdx("tdx, 4 streams", ("--streams", "4")))
PUSH: Final = (Tdx("tdx push -r"),)


def run(settings: Settings) -> Outcome:
    with scratch(settings.disk) as home:
        tables = tuple(_steps(home / "source", settings))
    notes = (
        (
            "Dense files and folders of files of 16 KiB, page cache to tmpfs; sparse files with "
            f"{ENDS // MIB} MiB of data at each end: holes are neither read nor sent."
        ),
        (
            "Memory is the highest sum of the proportional set sizes of tdx push and tdx serve, "
            "sampled in a run of its own. The value of the target is the highest of all sizes, its "
            "range that of all sizes."
        ),
    )
    memory = [series.runs[0].memory for table in tables for series in table.series]
    target = targets.P5.reached_by(targets.mebibytes([each for each in memory if each is not None]))
    return Outcome("growth", "Cost as work grows", notes, tables, (replace(target, value=target.high),))


def _steps(source: Path, settings: Settings) -> Iterator[Table]:
    for size in DENSE:
        make = partial(random_file, source, settings.sized(size))
        yield _step("Dense files", {"size": _size(size)}, make, STREAMS, settings)
    for size in SPARSE:
        make = partial(sparse_file, source, settings.sized(size), settings.sized(ENDS))
        yield _step("Sparse files", {"size": _size(size)}, make, STREAMS, settings)
    for count in FILES:
        make = partial(folder_of, source, [16 * KIB] * settings.sized(count))
        yield _step("Files of 16 KiB", {"files": f"{count:,}"}, make, PUSH, settings)


def _step(
    title: str,
    conditions: dict[str, str],
    make: Callable[[], Path],
    contestants: tuple[Contestant, ...],
    settings: Settings,
) -> Table:
    source = make()
    try:
        rounds = min(ROUNDS, settings.rounds)
        return contest(title, contestants, source, settings, conditions=conditions, rounds=rounds)
    finally:
        remove(source)


def _size(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
