"""The plots of the report: SVG that is the same for the same figures, legible on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perf.content import MIB
from perf.contest import Outcome, Series, Table
from perf.figures import Spread, number
from perf.tables import seconds_of

INK: Final = "#808890"
OWN: Final = "#2f81f7"
OTHERS: Final = "#8b949e"
LINES: Final = ("#2f81f7", "#d29922", "#3fb950", "#db61a2", "#a371f7", "#f0883e", "#39c5cf", "#8b949e")
MARKS: Final = "osD^vPX*"

SETTINGS: Final[Any] = {
    "svg.hashsalt": "tdx",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw(outcome: Outcome, folder: Path) -> list[str]:
    """Draw a scenario's tables: bars for one under its own conditions, lines for those that differ in
    nothing but the conditions. Returns the file names, relative to the folder that ``folder`` is in."""
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    groups = groupby(outcome.tables, key=lambda table: (table.title, tuple(table.conditions)))
    with mpl.rc_context(SETTINGS):
        for number_of, (_, group) in enumerate(groups):
            tables = list(group)
            if not any(series.runs for table in tables for series in table.series):
                continue
            figure = _lines(tables) if len(tables) > 1 else _bars(tables[0])
            name = f"{outcome.scenario}{f'-{number_of + 1}' if number_of else ''}.svg"
            figure.savefig(
                folder / name, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
            )
            names.append(f"{folder.name}/{name}")
    return names


# --- bars ----------------------------------------------------------------------


def _bars(table: Table) -> Figure:
    """Seconds of everybody, the fastest at the top, with whiskers from the lowest to the highest run."""
    there = sorted((each for each in table.series if each.runs), key=_median, reverse=True)
    spreads = [Spread.of(seconds_of(each.runs)) for each in there]
    figure = Figure(figsize=(7.5, 0.8 + 0.34 * len(there)))
    axes = figure.add_subplot()
    places = range(len(there))
    medians = [each.median for each in spreads]
    axes.barh(
        places,
        medians,
        height=0.62,
        color=[OWN if each.contestant.startswith("tdx") else OTHERS for each in there],
        xerr=_whiskers(spreads),
        error_kw={"ecolor": INK, "capsize": 3, "lw": 1.2},
    )
    for place, spread in zip(places, spreads, strict=True):
        axes.annotate(
            number(spread.median),
            (spread.high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(list(places), [each.contestant for each in there])
    axes.set_xlabel("seconds: median, lowest and highest run")
    axes.set_title(table.title, loc="left")
    axes.grid(visible=False, axis="y")
    return figure


def _median(series: Series) -> float:
    return Spread.of(seconds_of(series.runs)).median


def _whiskers(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]


# --- lines ---------------------------------------------------------------------


def _lines(tables: Sequence[Table]) -> Figure:
    """Where the work grows, seconds and memory on logarithmic axes; otherwise megabytes per second."""
    grows = len({(table.bytes, table.files) for table in tables}) == len(tables)
    figure = Figure(figsize=(9.5, 3.4) if grows else (max(6.5, 1.2 + 0.55 * len(tables)), 3.6))
    if not grows:
        _throughput(figure.add_subplot(), tables)
        return figure
    time_axes, memory_axes = figure.subplots(1, 2)
    _growth(time_axes, tables)
    _memory(memory_axes, tables)
    figure.tight_layout()
    return figure


def _names(tables: Sequence[Table]) -> list[str]:
    return list(
        dict.fromkeys(series.contestant for table in tables for series in table.series if series.runs)
    )


def _points(tables: Sequence[Table], name: str) -> list[tuple[int, Table, Series]]:
    return [
        (place, table, series)
        for place, table in enumerate(tables)
        for series in table.series
        if series.contestant == name and series.runs
    ]


def _style(index: int) -> dict[str, Any]:
    return {
        "color": LINES[index % len(LINES)],
        "marker": MARKS[index % len(MARKS)],
        "ms": 4.5,
        "lw": 1.4,
        "capsize": 2.5,
    }


def _throughput(axes: Axes, tables: Sequence[Table]) -> None:
    for index, name in enumerate(_names(tables)):
        points = _points(tables, name)
        spreads = [
            Spread.of([table.bytes / run.seconds / 1e6 for run in series.runs]) for _, table, series in points
        ]
        axes.errorbar(
            [place for place, _, _ in points],
            [each.median for each in spreads],
            yerr=_whiskers(spreads),
            label=name,
            **_style(index),
        )
    labels = ["\n".join(table.conditions.values()) for table in tables]
    axes.set_xticks(range(len(tables)), labels, fontsize=8)
    axes.set_xlabel(", ".join(tables[0].conditions))
    axes.set_ylabel("MB/s")
    axes.set_ylim(bottom=0)
    axes.set_title(tables[0].title, loc="left")
    axes.legend(fontsize=8)


def _work(tables: Sequence[Table]) -> tuple[str, list[float]]:
    """What grows from table to table, with its unit: files or bytes."""
    if len({table.files for table in tables}) > 1:
        return "files", [float(table.files) for table in tables]
    return "MiB", [table.bytes / MIB for table in tables]


def _growth(axes: Axes, tables: Sequence[Table]) -> None:
    unit, work = _work(tables)
    for index, name in enumerate(_names(tables)):
        points = _points(tables, name)
        spreads = [Spread.of(seconds_of(series.runs)) for _, _, series in points]
        axes.errorbar(
            [work[place] for place, _, _ in points],
            [each.median for each in spreads],
            yerr=_whiskers(spreads),
            label=name,
            **_style(index),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(unit)
    axes.set_ylabel("seconds")
    axes.set_title(tables[0].title, loc="left")
    axes.legend(fontsize=8)


def _memory(axes: Axes, tables: Sequence[Table]) -> None:
    unit, work = _work(tables)
    for index, name in enumerate(_names(tables)):
        points = [
            (work[place], run.memory / MIB)
            for place, _, series in _points(tables, name)
            for run in series.runs[:1]
            if run.memory is not None
        ]
        style = {key: value for key, value in _style(index).items() if key != "capsize"}
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(unit)
    axes.set_ylabel("MiB, both ends")
    axes.set_title("Memory", loc="left")
