"""The plots of the report: SVG that is the same for the same figures, legible on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from perf.content import MIB
from perf.figures import Spread, number
from perf.model import Outcome, Series, Table
from perf.tables import grouped, seconds_of

INK: Final = "#808890"
OWN: Final = "#2f81f7"
OTHERS: Final = "#8b949e"
LINES: Final = ("#2f81f7", "#d29922", "#3fb950", "#db61a2", "#a371f7", "#f0883e", "#39c5cf", "#8b949e")
MARKS: Final = "osD^vPX*"
GROWING: Final = {"size", "files"}
"""Conditions that are the work itself."""

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
    """Draw a scenario's tables: bars for one that stands alone, lines for those that differ in nothing but
    their conditions. Returns the file names, relative to the folder that ``folder`` is in."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{outcome.scenario}*.svg"):
        old.unlink()
    names: list[str] = []
    with mpl.rc_context(SETTINGS):
        for figure in _figures(outcome):
            name = f"{outcome.scenario}-{len(names) + 1}.svg"
            figure.savefig(
                folder / name, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
            )
            names.append(f"{folder.name}/{name}")
    return names


def _figures(outcome: Outcome) -> Iterator[Figure]:
    measured = [table for table in outcome.tables if any(series.runs for series in table.series)]
    several = [table for table in measured if len(table.conditions) > 1]
    if several:
        yield _throughput(outcome.title, several)
    for title, tables in grouped([table for table in measured if table not in several]):
        if len(tables) == 1:
            yield _bars(tables[0])
        elif set(tables[0].conditions) & GROWING:
            yield _growth(title, tables)
        else:
            yield _throughput(title, tables)


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


def _style(index: int) -> dict[str, Any]:
    return {"color": LINES[index % len(LINES)], "marker": MARKS[index % len(MARKS)], "ms": 4.5, "lw": 1.4}


def _throughput(title: str, tables: Sequence[Table]) -> Figure:
    """Megabytes per second, or the share of what was possible where the runs say so. Where there are several
    conditions, the first is part of a line's name, and the others are where it has its points."""
    lines: dict[str, dict[tuple[str, ...], Spread]] = {}
    shared = _share(tables)
    for table in tables:
        values = tuple(table.conditions.values())
        apart = 1 if len(values) > 1 else 0
        for series in table.series:
            if series.runs:
                label = ", ".join([series.contestant, *values[:apart]])
                lines.setdefault(label, {})[values[apart:]] = Spread.of(_heights(table, series, shared))
    places = list(dict.fromkeys(place for line in lines.values() for place in line))
    figure = Figure(figsize=(max(6.5, 1.2 + 0.62 * len(places)), 3.6))
    axes = figure.add_subplot()
    for index, (label, line) in enumerate(lines.items()):
        axes.errorbar(
            [places.index(place) for place in line],
            [each.median for each in line.values()],
            yerr=_whiskers(list(line.values())),
            label=label,
            capsize=2.5,
            **_style(index),
        )
    axes.set_xticks(range(len(places)), ["\n".join(place) for place in places], fontsize=8)
    axes.set_xlabel(", ".join(list(tables[0].conditions)[-len(places[0]) :]))
    axes.set_ylabel(shared.replace("_", " ") if shared else "MB/s")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left")
    axes.legend(fontsize=8)
    return figure


def _share(tables: Sequence[Table]) -> str | None:
    """The name of the figure that all runs have and that is a share of something."""
    runs = [run for table in tables for series in table.series for run in series.runs]
    common = set.intersection(*(set(run.figures) for run in runs))
    return next((name for name in sorted(common) if name.startswith("share_of_")), None)


def _heights(table: Table, series: Series, shared: str | None) -> list[float]:
    if shared is not None:
        return [run.figures[shared] for run in series.runs]
    return [table.bytes / run.seconds / 1e6 for run in series.runs]


def _growth(title: str, tables: Sequence[Table]) -> Figure:
    """Seconds, on logarithmic axes, and memory by the work."""
    files = "files" in tables[0].conditions
    lines: dict[str, list[tuple[float, Series]]] = {}
    for table in tables:
        for series in table.series:
            if series.runs:
                work = float(table.files) if files else table.bytes / MIB
                lines.setdefault(series.contestant, []).append((work, series))
    figure = Figure(figsize=(9.5, 3.4))
    time_axes, memory_axes = figure.subplots(1, 2)
    for index, (label, points) in enumerate(lines.items()):
        spreads = [Spread.of(seconds_of(series.runs)) for _, series in points]
        time_axes.errorbar(
            [work for work, _ in points],
            [each.median for each in spreads],
            yerr=_whiskers(spreads),
            label=label,
            capsize=2.5,
            **_style(index),
        )
        sampled = [(work, series.runs[0].memory) for work, series in points]
        held = [(work, memory / MIB) for work, memory in sampled if memory is not None]
        memory_axes.plot([work for work, _ in held], [memory for _, memory in held], **_style(index))
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log")
        axes.set_xlabel("files" if files else "MiB")
    time_axes.set_yscale("log")
    time_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    time_axes.yaxis.set_minor_formatter(NullFormatter())
    time_axes.set_ylim(*_whole_decades(time_axes.get_ylim()))
    time_axes.set_ylabel("seconds")
    time_axes.set_title(title, loc="left")
    time_axes.legend(fontsize=8)
    memory_axes.set_ylim(bottom=0)
    memory_axes.set_ylabel("MiB, both ends")
    memory_axes.set_title("Memory", loc="left")
    figure.tight_layout()
    return figure


def _whole_decades(limits: tuple[float, float]) -> tuple[float, float]:
    """So that a logarithmic axis has at least two numbers on it."""
    low, high = limits
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
