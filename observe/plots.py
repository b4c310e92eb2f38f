"""The main panels of the dashboards as pictures: their own queries, asked of a Prometheus, in the colours of
the plots of ``perf/``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from observe.answers import Answers, Line
from observe.dashboards import chosen, load, panels, queries
from perf.plots import INK, LINES, SETTINGS

SHOWN: Final = {
    "receiver": (
        "Throughput",
        "Uploads that ended, by result",
        "Uploads and transfers",
        "Requests by code",
        "Room",
        "Processor time",
    ),
    "transfers": (
        "Duration of a transfer",
        "Throughput of a transfer",
        "Durations",
        "Throughputs",
        "Bytes that were not sent again",
        "Discarded bytes, by reason",
    ),
    "jobs": ("How the runs ended", "Since the last success", "Duration of the runs", "Bytes of the runs"),
    "slow": (
        "What transfers waited for",
        "Stages as shares",
        "Stages of the last pushes, at the sender",
        "Stages of the last pushes, at the receiver",
    ),
}
"""The panels of each dashboard that are drawn."""

COLOURS: Final = {"red": "#f85149", "green": "#3fb950", "orange": "#d29922", "blue": "#2f81f7"}
KEPT: Final = 12
"""Lines of one panel, beyond which a legend is no help."""


def draw(answers: Answers, folder: Path) -> list[Path]:
    """Draw each dashboard into ``folder``; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context(SETTINGS):
        for name, titles in SHOWN.items():
            path = folder / f"{name}.svg"
            figure = _figure(answers, name, titles)
            figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
            written.append(path)
    return written


def _figure(answers: Answers, name: str, titles: Sequence[str]) -> Figure:
    dashboard = load(name)
    by_title = {panel["title"]: panel for panel in panels(dashboard)}
    rows = math.ceil(len(titles) / 2)
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    figure.suptitle(dashboard["title"], x=0.01, ha="left", color=INK, fontsize=12)
    places = figure.subplots(rows, 2, squeeze=False).flat
    for axes, title in zip(places, titles, strict=False):
        asked = [each for each in queries(dashboard) if each.panel == title]
        lines = [line for query in asked for line in answers.lines(query, chosen(dashboard)) if line.values]
        kind = by_title[title]["type"]
        shown = lines if kind == "state-timeline" else _in_order(lines)
        KINDS[kind](axes, by_title[title], shown, answers)
        axes.set_title(title, loc="left")
    return figure


def _in_order(lines: Sequence[Line]) -> list[Line]:
    """What is 0 all the time is left out where something is not."""
    there = [line for line in lines if any(line.values)]
    return sorted(there or lines, key=lambda line: -max(line.values))[:KEPT]


# --- kinds of panels -----------------------------------------------------------


def _timeseries(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line], answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    colours = dict(_colours(panel, lines))
    if custom.get("stacking", {}).get("mode") == "normal":
        _stacked(axes, custom, lines, colours, answers)
    else:
        for line in lines:
            steps = "steps-post" if custom.get("lineInterpolation") == "stepAfter" else "default"
            marks = "o" if custom["showPoints"] == "auto" else ""
            style: dict[str, Any] = {"drawstyle": steps, "marker": marks, "ms": 2.5, "lw": 1.3}
            axes.plot(*_with_gaps(line, answers), label=line.name, color=colours[line.name], **style)
            if custom["fillOpacity"] and steps == "default":
                axes.fill_between(*_with_gaps(line, answers), color=colours[line.name], alpha=0.08, lw=0)
    _time_axis(axes, answers)
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    axes.yaxis.set_major_formatter(_unit(defaults["unit"]))
    if defaults["unit"] == "bytes":
        axes.yaxis.set_major_locator(MultipleLocator(_binary_step(axes.get_ylim()[1])))
    if lines:
        columns = 3 if max(len(line.name) for line in lines) < 18 else 2
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=columns)


def _stacked(
    axes: Axes,
    custom: Mapping[str, Any],
    lines: Sequence[Line],
    colours: Mapping[str, str],
    answers: Answers,
) -> None:
    count = round((answers.end - answers.start) / answers.step) + 1
    below = [0.0] * count
    times = [answers.start + index * answers.step for index in range(count)]
    for line in lines:
        there = {
            round((at - answers.start) / answers.step): v
            for at, v in zip(line.times, line.values, strict=True)
        }
        above = [low + there.get(index, 0.0) for index, low in enumerate(below)]
        style: dict[str, Any] = {"color": colours[line.name], "label": line.name, "lw": 0}
        alpha = 0.8 if custom["drawStyle"] == "bars" else 0.6
        axes.fill_between(times, below, above, step="mid", alpha=alpha, **style)
        below = above


def _with_gaps(line: Line, answers: Answers) -> tuple[list[float], list[float]]:
    """Where nothing was told for more than a few steps there is no line."""
    times, values = [line.times[0]], [line.values[0]]
    for at, value in zip(line.times[1:], line.values[1:], strict=True):
        if at - times[-1] > 1.5 * answers.step:
            times.append(at)
            values.append(math.nan)
        times.append(at)
        values.append(value)
    return times, values


def _heatmap(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line], answers: Answers) -> None:
    """Grafana takes the buckets, of which each counts those below it, too, apart."""
    bounds = sorted(lines, key=lambda line: float(line.labels["le"]))
    count = round((answers.end - answers.start) / answers.step) + 1
    rows: list[list[float]] = []
    before = [0.0] * count
    for line in bounds:
        row = [0.0] * count
        for at, value in zip(line.times, line.values, strict=True):
            row[round((at - answers.start) / answers.step)] = value
        rows.append([max(0.0, high - low) for high, low in zip(row, before, strict=True)])
        before = row
    used = [index for index, row in enumerate(rows) if any(row)] or [0]
    first, last = max(0, used[0] - 1), min(len(rows) - 1, used[-1] + 1)
    shown = [[value or math.nan for value in row] for row in rows[first : last + 1]]
    scheme = panel["options"]["color"]["scheme"]
    extent = (answers.start, answers.end, -0.5, last - first + 0.5)
    axes.imshow(
        shown, aspect="auto", origin="lower", extent=extent, cmap=f"{scheme}", vmin=0, interpolation="none"
    )
    unit = _unit(panel["options"]["yAxis"]["unit"])
    names = [f"≤ {unit(float(line.labels['le']), 0)}" for line in bounds[first : last + 1]]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.grid(visible=False)
    _time_axis(axes, answers)


def _timeline(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line], answers: Answers) -> None:
    lines = sorted(lines, key=lambda line: line.name, reverse=True)
    done = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]["0"]["text"]
    for place, line in enumerate(lines):
        for begin, end, value in _states(line, answers):
            colour = COLOURS["red" if value else "green"]
            axes.barh(place, end - begin, left=begin, height=0.7, color=colour, alpha=0.8)
            text = f"{value:.0f}" if value else done
            if end - begin > (answers.end - answers.start) / 20:
                axes.annotate(
                    text,
                    (begin, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    color="white",
                )
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.grid(visible=False, axis="y")
    _time_axis(axes, answers)


def _states(line: Line, answers: Answers) -> Iterator[tuple[float, float, float]]:
    """When each state began and ended."""
    began = 0
    for index in range(1, len(line.values) + 1):
        if index == len(line.values) or line.values[index] != line.values[began]:
            until = line.times[index] if index < len(line.times) else answers.end
            yield line.times[began], until, line.values[began]
            began = index


def _bars(axes: Axes, panel: Mapping[str, Any], lines: Sequence[Line], _answers: Answers) -> None:
    lines = sorted(lines, key=lambda line: line.name, reverse=True)
    unit = _unit(panel["fieldConfig"]["defaults"]["unit"])
    values = [line.values[-1] for line in lines]
    axes.barh(range(len(lines)), values, height=0.62, color=LINES[0])
    for place, value in enumerate(values):
        axes.annotate(
            unit(value, 0), (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.xaxis.set_major_formatter(unit)
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")


KINDS: Final[Mapping[str, Callable[[Axes, Mapping[str, Any], Sequence[Line], Answers], None]]] = {
    "timeseries": _timeseries,
    "heatmap": _heatmap,
    "state-timeline": _timeline,
    "bargauge": _bars,
}


# --- what they share -----------------------------------------------------------


def _colours(panel: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Those that the panel asks for, and for the others one after the other."""
    fixed = {
        override["matcher"]["options"]: COLOURS[each["value"]["fixedColor"]]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "color"
    }
    free = [colour for colour in LINES if colour not in fixed.values()]
    names = sorted({line.name for line in lines} - set(fixed))
    yield from ((line.name, fixed[line.name]) for line in lines if line.name in fixed)
    yield from ((name, free[index % len(free)]) for index, name in enumerate(names))


def _time_axis(axes: Axes, answers: Answers) -> None:
    axes.set_xlim(answers.start, answers.end)
    seconds = FuncFormatter(
        lambda at, _: f"{(at - answers.start) // 60:.0f}:{(at - answers.start) % 60:02.0f}"
    )
    axes.xaxis.set_major_formatter(seconds)
    step = 30 if answers.end - answers.start > 100 else 15
    axes.set_xticks([answers.start + each for each in range(0, int(answers.end - answers.start) + 1, step)])


def _unit(unit: str) -> FuncFormatter:
    """The numbers of an axis in one of Grafana's units."""
    if unit == "percentunit":
        return FuncFormatter(lambda value, _: f"{value * 100:.0f} %")
    if unit in {"bytes", "Bps"}:
        base, after = (1024, "iB") if unit == "bytes" else (1000, "B/s")
        return FuncFormatter(lambda value, _: _scaled(value, base, after))
    if unit == "s":
        return FuncFormatter(lambda value, _: _seconds(value))
    return FuncFormatter(lambda value, _: f"{value:.3g}")


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 or not value else f"{value * 1000:.2g} ms"


def _binary_step(top: float) -> float:
    """Between the lines of an axis of bytes, so that there are four to eight of them."""
    return 2.0 ** math.floor(math.log2(max(top, 8) / 4))


def _scaled(value: float, base: int, after: str) -> str:
    steps = ("", "K" if base == 1024 else "k", "M", "G", "T")
    power = 0
    while abs(value) >= base and power < len(steps) - 1:
        value /= base
        power += 1
    return f"{value:.3g} {steps[power]}{after if power or base == 1000 else 'B'}"
