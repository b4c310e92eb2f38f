"""The benchmarks: `python -m perf [SCENARIO ...]`, `python -m perf list`, `python -m perf report`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Final

from perf import machine, report, results, scenarios
from perf.figures import Spread
from perf.lineup import versions
from perf.model import Missing, Outcome, Settings
from perf.tables import moved, seconds_of
from perf.targets import verdict

ORDER: Final = (
    "single",
    "disk",
    "tls",
    "resume",
    "growth",
    "small",
    "again",
    "many",
    "scraped",
    "start",
    "sweep",
    "wan",
    "mesh",
)
"""That of the targets; a scenario that is not named here comes last."""

HERE: Final = Path(__file__).resolve().parent


def names() -> list[str]:
    found = sorted(module.name for module in pkgutil.iter_modules(scenarios.__path__))
    return sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.what == ["list"]:
        for name in names():
            print(f"{name:8} {(_module(name).__doc__ or '').splitlines()[0]}")
        return 0
    if given.what == ["report"]:
        return _report(given.out, plots=not given.no_plots)
    unknown = sorted(set(given.what) - set(names()))
    if unknown:
        print(f"perf: there is no {', '.join(unknown)}; `python -m perf list` tells what is", file=sys.stderr)
        return 64
    settings = Settings(given.disk, given.memory, given.rounds, given.scale)
    began = time.monotonic()
    failed = [name for name in given.what or names() if not measure(name, settings, given.out)]
    print(f"perf: {(time.monotonic() - began) / 60:.1f} min in all")
    status = 0 if given.no_report else _report(given.out, plots=not given.no_plots)
    for name in failed:
        print(f"perf: {name} failed", file=sys.stderr)
    return 1 if failed else status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    parser.add_argument("what", nargs="*", help="scenarios, all unless given; or list; or report")
    parser.add_argument("--rounds", type=_at_least_one, default=5, help="runs of each contestant")
    parser.add_argument("--scale", type=_share, default=1.0, help="share of the sizes of the targets")
    parser.add_argument("--disk", type=Path, default=Path("/var/tmp"), help="a folder on a disk")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a folder on a tmpfs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results, plots and report go")
    parser.add_argument("--no-report", action="store_true", help="write the results alone")
    parser.add_argument("--no-plots", action="store_true", help="make the report without plots")
    return parser


def _at_least_one(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("has to be at least 1")
    return value


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError("has to be above 0 and at most 1")
    return value


def measure(name: str, settings: Settings, out: Path) -> bool:
    """Run a scenario, print what it found, and write it down at once. False where it failed or cannot be
    run here; its last result stays then."""
    print(f"{name} ...", flush=True)
    described = machine.describe(settings, versions())
    measured = datetime.now(UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    try:
        outcome = _module(name).run(settings)
    except Missing as missing:
        print(f"  cannot be run here: {missing}", file=sys.stderr)
        return False
    except Exception:
        # Whatever went wrong, the other scenarios are still worth their time.
        traceback.print_exc()
        return False
    elapsed = time.monotonic() - began
    result = results.Result(outcome, described, measured, elapsed, settings.rounds, settings.scale)
    path = results.write(result, out)
    _tell(outcome)
    print(f"{name}: {elapsed:.0f} s in all, {path}", flush=True)
    return True


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{scenarios.__name__}.{name}")


def _tell(outcome: Outcome) -> None:
    for table in outcome.tables:
        conditions = "".join(f", {key} {value}" for key, value in table.conditions.items())
        print(f"  {table.title}{conditions}: {moved(table)}")
        for series in table.series:
            said = f"missing: {series.missing}"
            if series.runs:
                said = f"{Spread.of(seconds_of(series.runs))} s"
            print(f"    {series.contestant:24} {said}")
    for target in outcome.targets:
        value = Spread(target.value, target.low, target.high)
        print(f"  {target.id} {target.what}: {value} {target.unit}, {verdict(target)}")


def _report(out: Path, *, plots: bool) -> int:
    order = names()
    found = [result for result in results.read_all(out) if result.outcome.scenario in order]
    found.sort(key=lambda result: order.index(result.outcome.scenario))
    if plots and importlib.util.find_spec("matplotlib") is None:
        print("perf: a report without plots: they need matplotlib, of the extra `perf`", file=sys.stderr)
        plots = False
    print(f"perf: {report.write(found, out, plots=plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
