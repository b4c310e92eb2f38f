"""Results on disk: a JSON document for each scenario, with the machine and the time that it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from perf.model import Outcome, Run, Series, Table, Target

FORMAT: Final = 1
FOLDER: Final = "results"


@dataclass(frozen=True, slots=True)
class Result:
    """An outcome and where it is from. ``measured`` is when it began (ISO 8601, UTC), ``elapsed`` the
    seconds that the whole scenario took."""

    outcome: Outcome
    machine: Mapping[str, str]
    measured: str
    elapsed: float
    rounds: int
    scale: float


def write(result: Result, folder: Path) -> Path:
    """Write a result below ``folder``, in place of the same scenario's last one."""
    path = folder / FOLDER / f"{result.outcome.scenario}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(result))
    return path


def read_all(folder: Path) -> list[Result]:
    """All results below ``folder``."""
    return [loads(path.read_text()) for path in sorted((folder / FOLDER).glob("*.json"))]


def dumps(result: Result) -> str:
    document = {
        "format": FORMAT,
        "measured": result.measured,
        "elapsed": round(result.elapsed, 1),
        "rounds": result.rounds,
        "scale": result.scale,
        "machine": dict(result.machine),
        "outcome": asdict(result.outcome),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def loads(text: str) -> Result:
    """ValueError where it is no result of this format."""
    document = json.loads(text)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"not a result of format {FORMAT}")
    return Result(
        _outcome(document["outcome"]),
        document["machine"],
        document["measured"],
        document["elapsed"],
        document["rounds"],
        document["scale"],
    )


def _outcome(found: dict[str, Any]) -> Outcome:
    return Outcome(
        found["scenario"],
        found["title"],
        tuple(found["notes"]),
        tuple(_table(each) for each in found["tables"]),
        tuple(Target(**each) for each in found["targets"]),
    )


def _table(found: dict[str, Any]) -> Table:
    return Table(**{**found, "series": tuple(_series(each) for each in found["series"])})


def _series(found: dict[str, Any]) -> Series:
    return Series(**{**found, "runs": tuple(Run(**each) for each in found["runs"])})
