"""The dashboards in ``grafana/``, as far as their queries go, and what Grafana makes of those."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "grafana" / "dashboards"

VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")
VALUES: Final = re.compile(r"label_values\((?:(?P<series>.+),\s*)?(?P<label>\w+)\)$")


@dataclass(frozen=True, slots=True)
class Query:
    """What a panel asks for, or a variable: ``instant`` at the end of the time that is shown."""

    dashboard: str
    panel: str
    ref: str
    expression: str
    legend: str
    instant: bool

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel} ({self.ref})"


def load(name: str) -> dict[str, Any]:
    """A dashboard by the name of its file, without ``.json``."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def names() -> list[str]:
    """The names of all of them."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels, those in rows, too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panels({"panels": panel.get("panels", [])})


def queries(dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """What its panels ask for."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield Query(
                dashboard["title"],
                panel["title"],
                target["refId"],
                target["expr"],
                target.get("legendFormat", ""),
                bool(target.get("instant")),
            )


def variables(dashboard: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Its variables by their names."""
    return {each["name"]: each for each in dashboard["templating"]["list"]}


def chosen(dashboard: Mapping[str, Any], **values: list[str]) -> dict[str, str]:
    """What stands for each variable in a query: what is ``chosen`` of several values, as a regular
    expression that matches any of them, and of the others all there are."""
    found: dict[str, str] = {}
    for name, variable in variables(dashboard).items():
        if name in values:
            escaped = [re.sub(r"([\\^$*+?.()|\[\]{}/])", r"\\\\\1", value) for value in values[name]]
            found[name] = escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        elif variable["type"] == "query":
            found[name] = variable["allValue"]
    return found


def timing(interval: float, step: float, span: float) -> dict[str, str]:
    """Grafana's own variables where Prometheus scrapes each ``interval``, and ``span`` is shown with a point
    each ``step``. All in seconds."""
    rate = max(step + interval, 4 * interval)
    return {
        "__interval": _duration(step),
        "__rate_interval": _duration(rate),
        "__range": _duration(span),
    }


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


def filled(expression: str, values: Mapping[str, str]) -> str:
    """An expression with its variables replaced. KeyError names one that nobody knows."""
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], expression)


def legend(template: str, labels: Mapping[str, str]) -> str:
    """What a line is called: ``{{label}}`` is the label's value."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), template)
