"""The report: Markdown from results, and nothing but results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from perf.content import MIB
from perf.figures import Spread, interval_of_median, number, ratios
from perf.model import Run, Series, Table, Target
from perf.results import Result
from perf.tables import grouped, moved, seconds_of
from perf.targets import GOALS, Goal, verdict

REPORT: Final = "REPORT.md"
PLOTS: Final = "plots"

HOW: Final = """\
Every figure is a whole process, from exec to exit, with the receiving side already up. The contestants
of a table take turns (A B C, B C A, …), so that whatever else the machine does meets them all; a ratio
is the median of the ratios within one round. Before each run the source is read into the page cache and
memory as large as the copy is written and freed, since a virtual machine pays for pages that it had
given back to its host; before runs to a disk everything is written back. After each run, outside the
clock, what arrived is compared with the source byte by byte and removed. CPU seconds are user plus
system time of the processes at each end with their children; memory is the highest sum of the
proportional set sizes (PSS) of both ends, sampled in a run of its own that counts for nothing else.

Figures are medians, with the lowest and the highest run in brackets. Where those lie more than a fifth
of the median apart, the 95 % interval of the median is given as well (bootstrap): what lies within each
other's interval is not told apart by these runs. In all figures of tdx, verification at both ends, the
journal and fsync are on.
"""

EMPTY: Final = "–"


def render(results: Sequence[Result], plots: dict[str, list[str]]) -> str:
    """The whole report; ``plots`` has the file names of each scenario's plots, relative to it."""
    parts = [
        "# How fast tdx is\n",
        "Made by `make perf` from the results in `results/`; do not edit.\n",
        *_origin(results),
        "## How it was measured\n",
        HOW,
        "## Targets\n",
        *_targets(results),
    ]
    for result in results:
        parts += _scenario(result, _newest(results), plots.get(result.outcome.scenario, []))
    return "\n".join(parts)


# --- where it is from ----------------------------------------------------------


def _origin(results: Sequence[Result]) -> Iterator[str]:
    yield "## The machine\n"
    if not results:
        yield "Nothing has been measured yet.\n"
        return
    newest = _newest(results)
    yield f"As of the latest scenario, `{newest.outcome.scenario}`; another one's differences are with it.\n"
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in newest.machine.items())
    yield ""


def _newest(results: Sequence[Result]) -> Result:
    return max(results, key=lambda result: result.measured)


def _differences(result: Result, newest: Result) -> str:
    """In what the machine was different from that of the report, but for what each scenario tells anyhow."""
    return "; ".join(
        f"{name}: {value}"
        for name, value in result.machine.items()
        if newest.machine.get(name) != value and name not in {"tdx", "load before"}
    )


# --- targets -------------------------------------------------------------------


def _targets(results: Sequence[Result]) -> Iterator[str]:
    yield "| | what | goal | gate | median (range) | |\n|---|---|--:|--:|--:|---|"
    measured = [(target, result) for result in results for target in result.outcome.targets]
    order = list(dict.fromkeys(goal.id for goal in GOALS))
    for id in order:
        of_this = [(target, result) for target, result in measured if target.id.partition(" ")[0] == id]
        for target, result in of_this:
            yield _target(target, result.scale)
        for goal in _missing(id, [target for target, _ in of_this]):
            yield f"| {goal.id} | {goal.what} | {_bars(goal)} | {EMPTY} | not measured |"
    yield ""


def _missing(id: str, found: Sequence[Target]) -> list[Goal]:
    """The goals of this id without a figure; none where a scenario has worded its targets itself."""
    goals = [goal for goal in GOALS if goal.id == id]
    whats = {target.what for target in found}
    if whats - {goal.what for goal in goals}:
        return []
    return [goal for goal in goals if goal.what not in whats]


def _target(target: Target, scale: float) -> str:
    value = Spread(target.value, target.low, target.high)
    note = verdict(target) + (f" (at {scale:g} of the size)" if scale != 1 else "")
    return f"| {target.id} | {target.what} | {_bars(target)} | {value} {target.unit} | {note} |"


def _bars(of: Goal | Target) -> str:
    sign = "≤" if of.better == "lower" else "≥"
    return f"{sign} {of.goal:g} {of.unit} | {sign} {of.gate:g} {of.unit}"


# --- scenarios -----------------------------------------------------------------


def _scenario(result: Result, newest: Result, plots: Sequence[str]) -> Iterator[str]:
    outcome = result.outcome
    yield f"## {outcome.title}\n"
    scale = (
        "" if result.scale == 1 else f", sizes scaled by {result.scale:g}: **not the sizes of the targets**"
    )
    yield (
        f"`python -m perf {outcome.scenario}`, measured {result.measured}, {result.rounds} rounds, "
        f"{result.elapsed:.0f} s in all{scale}. {result.machine.get('tdx', '')}, load before: "
        f"{result.machine.get('load before', 'unknown')}.\n"
    )
    if differences := _differences(result, newest):
        yield f"The machine differed: {differences}.\n"
    yield from (f"- {note}" for note in outcome.notes)
    yield ""
    for title, tables in grouped(outcome.tables):
        yield from _table(title, tables)
    yield from (f"![{outcome.title}]({plot})\n" for plot in plots)


def _table(title: str, tables: Sequence[Table]) -> Iterator[str]:
    """One table for all conditions: a column for each of them comes first."""
    first = tables[0]
    sizes = {(table.bytes, table.files) for table in tables}
    yield f"### {title}\n"
    if len(sizes) == 1:
        yield f"Moved: {moved(first)}.\n"
    figures = list(
        dict.fromkeys(
            name for table in tables for series in table.series for run in series.runs for name in run.figures
        )
    )
    heads = [*first.conditions, "contestant", "does", "s", "MB/s", "× tdx", "sender CPU s"]
    heads += ["receiver CPU s", "memory MiB", *(figure_head(name) for name in figures), "runs"]
    plain = len(first.conditions) + 2
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * plain + "--:|" * (len(heads) - plain)
    missing: dict[str, str] = {}
    for table in tables:
        own = own_series(table)
        for series in sorted(table.series, key=_median_or_last):
            if series.missing is not None:
                missing[series.contestant] = series.missing
            if series.runs:
                cells = [*table.conditions.values(), *_cells(table, series, own, figures)]
                yield "| " + " | ".join(cells) + " |"
    yield ""
    yield from (f"Missing: {name} ({why}).\n" for name, why in missing.items())


def own_series(table: Table) -> Series | None:
    """What everybody is compared with: the first contestant of the table that is tdx."""
    return next((each for each in table.series if each.runs and each.contestant.startswith("tdx")), None)


def _median_or_last(series: Series) -> float:
    return Spread.of(seconds_of(series.runs)).median if series.runs else float("inf")


def _cells(table: Table, series: Series, own: Series | None, figures: Sequence[str]) -> list[str]:
    seconds = seconds_of(series.runs)
    spread = Spread.of(seconds)
    memory = [run.memory for run in series.runs if run.memory is not None]
    return [
        series.contestant,
        series.does,
        _seconds(seconds, spread),
        number(table.bytes / spread.median / 1e6),
        _times(series, own),
        number(Spread.of([run.sender_cpu for run in series.runs]).median),
        number(Spread.of([run.receiver_cpu for run in series.runs]).median),
        number(max(memory) / MIB) if memory else EMPTY,
        *(_figure(series.runs, name) for name in figures),
        str(len(series.runs)),
    ]


def _seconds(seconds: Sequence[float], spread: Spread) -> str:
    if not spread.wide or len(seconds) < 3:
        return str(spread)
    low, high = interval_of_median(seconds)
    return f"{spread}; 95 %: {number(low)}–{number(high)}"


def _times(series: Series, own: Series | None) -> str:
    """How many times as long it takes as tdx, round by round."""
    if own is None or own is series:
        return EMPTY if own is None else "1"
    rounds = min(len(series.runs), len(own.runs))
    found = ratios(seconds_of(series.runs[:rounds]), seconds_of(own.runs[:rounds]))
    return str(Spread.of(found))


# --- what a scenario measures besides -----------------------------------------


def figure_head(name: str) -> str:
    """``first_byte_seconds`` as ``first byte s``."""
    words, _, unit = name.rpartition("_")
    return f"{words} {_UNITS[unit][0]}".replace("_", " ") if unit in _UNITS else name.replace("_", " ")


def _figure(runs: Sequence[Run], name: str) -> str:
    divisor = _UNITS.get(name.rpartition("_")[2], ("", 1.0))[1]
    values = [run.figures[name] / divisor for run in runs if name in run.figures]
    return str(Spread.of(values)) if values else EMPTY


_UNITS: Final = {"seconds": ("s", 1.0), "bytes": ("MiB", float(MIB))}


def write(results: Sequence[Result], folder: Path, *, plots: bool) -> Path:
    """Write the report below ``folder``, in the order of the scenarios, with plots where they are wanted."""
    made: dict[str, list[str]] = {}
    if plots:
        from perf.plots import draw

        for result in results:
            made[result.outcome.scenario] = draw(result.outcome, folder / PLOTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT
    path.write_text(render(results, made))
    return path
