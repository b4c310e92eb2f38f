"""What a change did: two sets of results side by side, and whether they differ by more than the noise."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf import results
from perf.figures import Spread, interval_of_ratio, number
from perf.model import Series, Table
from perf.tables import seconds_of

FEWEST: Final = 3
"""Runs on either side, below which nothing is said to differ."""


@dataclass(frozen=True, slots=True)
class Change:
    """One contestant under one set of conditions, before and after, in seconds. ``ratio`` is after by
    before, between ``low`` and ``high`` with 95 % confidence."""

    scenario: str
    table: str
    contestant: str
    before: Spread
    after: Spread
    ratio: float
    low: float
    high: float
    runs: int

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where the whole interval says so, ``within the noise`` otherwise."""
        if self.runs < FEWEST:
            return "too few runs"
        if self.high < 1:
            return "faster"
        if self.low > 1:
            return "slower"
        return "within the noise"


def changes(before: Sequence[results.Result], after: Sequence[results.Result]) -> Iterator[Change]:
    """Everything that both sets of results have runs of."""
    old = dict(_named(before))
    for key, series in _named(after):
        if key in old:
            yield _change(key, old[key], series)


def _named(found: Sequence[results.Result]) -> Iterator[tuple[tuple[str, str, str], Series]]:
    for result in found:
        for table in result.outcome.tables:
            for series in table.series:
                if series.runs:
                    yield (result.outcome.scenario, _name(table), series.contestant), series


def _name(table: Table) -> str:
    return ", ".join([table.title, *(f"{key} {value}" for key, value in table.conditions.items())])


def _change(key: tuple[str, str, str], before: Series, after: Series) -> Change:
    old, new = seconds_of(before.runs), seconds_of(after.runs)
    low, high = interval_of_ratio(new, old)
    was, now = Spread.of(old), Spread.of(new)
    return Change(*key, was, now, now.median / was.median, low, high, min(len(old), len(new)))


def tell(found: Sequence[Change]) -> str:
    """A Markdown table."""
    lines = [
        "| scenario | conditions | contestant | before s | after s | after ÷ before (95 %) | verdict |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for each in found:
        ratio = f"{number(each.ratio)} ({number(each.low)}–{number(each.high)})"
        cells = [each.scenario, each.table, each.contestant, str(each.before), str(each.after), ratio]
        lines.append("| " + " | ".join([*cells, each.verdict]) + " |")
    return "\n".join(lines)


def read(path: Path) -> list[results.Result]:
    """One result, or a folder's: that of all results, or one that has such a folder."""
    if not path.is_dir():
        return [results.loads(path.read_text())]
    return results.read_all(path.parent if path.name == results.FOLDER else path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="perf/compare", description=__doc__)
    parser.add_argument("before", type=Path, help="a result (JSON) or a folder of results")
    parser.add_argument("after", type=Path, help="another")
    given = parser.parse_args(arguments)
    try:
        before, after = read(given.before), read(given.after)
    except (OSError, ValueError, KeyError) as error:
        print(f"perf/compare: {error}", file=sys.stderr)
        return 1
    found = list(changes(before, after))
    if not found:
        print("perf/compare: these results have nothing in common", file=sys.stderr)
        return 1
    if {result.scale for result in before} != {result.scale for result in after}:
        print("These are of different scales: the sizes that were moved differ.\n")
    print(tell(found))
    return 0
