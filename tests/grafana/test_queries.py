"""Every query of every dashboard, and of every variable, is answered with data by a real Prometheus that has
scraped a real receiver, node_exporter and Pushgateway through pushes that went well, broke off and failed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from observe import dashboards
from observe.dashboards import Query, chosen, filled, queries, timing, variables
from observe.stack import Stack
from observe.traffic import Traffic
from support.observing import Prometheus
from support.processes import Processes, reaped, wait_until

INTERVAL: Final = 0.25

QUIET: Final = {"Waiting for a disk"}
"""Panels that show 0 in all that happens here: test_alerts.py has a disk that hangs."""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


class Shown:
    """What Prometheus has about a span of time, asked as Grafana asks."""

    def __init__(self, prometheus: Prometheus, start: float, end: float) -> None:
        self._prometheus = prometheus
        self._start, self._end = start, end
        self._timing = timing(INTERVAL, INTERVAL, end - start)

    def series(self, query: Query, values: Mapping[str, str]) -> list[tuple[dict[str, str], list[float]]]:
        """The lines of a query with these values of the variables; what is no number is left out."""
        expression = filled(query.expression, {**values, **self._timing})
        if query.instant:
            found = self._prometheus.api("query", query=expression, time=str(self._end))["result"]
            points = [(each["metric"], [each["value"]]) for each in found]
        else:
            span = {"start": str(self._start), "end": str(self._end), "step": f"{INTERVAL}s"}
            found = self._prometheus.api("query_range", query=expression, **span)["result"]
            points = [(each["metric"], each["values"]) for each in found]
        numbers = [(labels, [float(value) for _, value in line]) for labels, line in points]
        return [(labels, [v for v in line if math.isfinite(v)]) for labels, line in numbers]

    def choices(self, variable: Mapping[str, Any], values: Mapping[str, str]) -> set[str]:
        """What can be chosen for a variable."""
        found = dashboards.VALUES.match(filled(variable["query"]["query"], values))
        assert found, variable
        return set(self._prometheus.api(f"label/{found['label']}/values", **{"match[]": found["series"]}))


def all_queries() -> list[tuple[dict[str, Any], Query]]:
    loaded = [dashboards.load(name) for name in dashboards.names()]
    return [(dashboard, query) for dashboard in loaded for query in queries(dashboard)]


def let_things_happen(stack: Stack, files: Path) -> None:
    with closing(Traffic(stack, files)) as traffic:
        traffic.nightly()  # here the receiver dies
        traffic.silent()
        offsite = traffic.offsite()
        began = time.monotonic()
        traffic.sizes()
        traffic.resumed()
        traffic.changed()
        traffic.failing()
        traffic.corrupted()
        traffic.refused()
        offsite.ends(0, "done")
        wait_until(
            lambda: stack.prometheus.query("max_over_time(tdx_transfers_stalled[1m]) > 0"),
            "somebody who is silent is seen",
            60 - (time.monotonic() - began),
        )
        ended = stack.prometheus.value("sum(tdx_uploads_total)")
        time.sleep(4 * INTERVAL)  # all that there is now has been scraped
        assert ended > 0


def test_every_query_and_every_variable_finds_what_happened(processes: Processes, tmp_path: Path) -> None:
    start = time.time()
    stack = Stack(processes, tmp_path / "stack", interval=f"{INTERVAL * 1000:.0f}ms")
    let_things_happen(stack, tmp_path / "files")
    shown = Shown(stack.prometheus, start, time.time())

    # With all that there is chosen, everything has data, and shows more than zeros.
    nothing, zeros, nameless = [], [], []
    for dashboard, query in all_queries():
        lines = shown.series(query, chosen(dashboard))
        if not any(line for _, line in lines):
            nothing.append(str(query))
        elif not any(value for _, line in lines for value in line) and query.panel not in QUIET:
            zeros.append(str(query))
        nameless += [str(query) for labels, _ in lines if "" in _labels(query.legend, labels)]
    assert nothing == []
    assert zeros == []
    assert nameless == []

    # What can be chosen is what was scraped; tasks of a Pushgateway have an instance, too.
    receiver, node = stack.metrics, stack.exporter.address
    expected = {
        "receiver": {"job": {"tdx"}, "instance": {receiver}},
        "transfers": {"job": {"tdx", "node", "tdx-push"}, "instance": {receiver, node, "pushgateway"}},
        "slow": {"job": {"tdx", "node", "tdx-push"}, "instance": {receiver, node, "pushgateway"}},
        "jobs": {
            "job": {"node", "tdx-push"},
            "instance": {node, "pushgateway"},
            "task": {"nightly", "mailbox", "papers", "offsite"},
            "peer": {"nas"},
        },
    }
    for name, choices in expected.items():
        dashboard = dashboards.load(name)
        found = {
            each: shown.choices(variable, chosen(dashboard))
            for each, variable in variables(dashboard).items()
            if variable["type"] == "query"
        }
        assert found == choices, name

    # And choosing shows what was chosen, and nothing else.
    for name, values in (
        ("receiver", {"job": ["tdx"], "instance": [receiver]}),
        ("jobs", {"job": ["node"], "instance": [node], "task": ["nightly", "mailbox"]}),
        ("jobs", {"job": ["tdx-push"], "instance": ["pushgateway"], "task": ["offsite"], "peer": ["nas"]}),
    ):
        dashboard = dashboards.load(name)
        for query in queries(dashboard):
            lines = shown.series(query, chosen(dashboard, **values))
            tasks = {labels["task"] for labels, _ in lines if "task" in labels}
            assert tasks <= set(values.get("task", [])), query
            # Of a task that never failed, or does not tell its interval, there is less to say.
            assert lines or query.ref == "J", query
        nobody = chosen(dashboard, job=["another"])
        assert [str(query) for query in queries(dashboard) if shown.series(query, nobody)] == []


def _labels(legend: str, labels: Mapping[str, str]) -> list[str]:
    """What stands for each label in the name of a line."""
    return [dashboards.legend(part, labels) for part in legend.split() if part.startswith("{{")]
