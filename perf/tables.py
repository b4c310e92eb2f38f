"""Looking figures up in tables."""

from __future__ import annotations

from collections.abc import Sequence

from perf.figures import ratios
from perf.model import Run, Series, Table


def series_of(table: Table, name: str) -> Series:
    """The series of a contestant, KeyError where it took no part."""
    for series in table.series:
        if series.contestant == name:
            return series
    raise KeyError(name)


def seconds_of(runs: tuple[Run, ...]) -> list[float]:
    return [run.seconds for run in runs]


def grouped(tables: Sequence[Table]) -> list[tuple[str, list[Table]]]:
    """Tables that differ in nothing but their conditions, by their title, in the order of the first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.title, tuple(table.conditions)), []).append(table)
    return [(title, group) for (title, _), group in groups.items()]


def moved(table: Table) -> str:
    """What one run moves, in words."""
    files = "one file" if table.files == 1 else f"{table.files:,} files"
    return f"{files}, {table.bytes:,} bytes"


def time_ratios(table: Table, over: str, under: str) -> list[float]:
    """How many times as long ``over`` takes as ``under``, round by round; empty where either is missing."""
    return ratios(*(seconds_of(runs) for runs in _shared(series_of(table, over), series_of(table, under))))


def _shared(one: Series, other: Series) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """The runs of both, as many rounds as both have."""
    rounds = min(len(one.runs), len(other.runs))
    return one.runs[:rounds], other.runs[:rounds]
