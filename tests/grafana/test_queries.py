"""Every query of every dashboard, and of every variable, is answered with data by a real Prometheus that has
scraped a real receiver, node_exporter and Pushgateway through pushes that went well, broke off and failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from observe import dashboards
from observe.answers import Answers
from observe.dashboards import Query, chosen, filled, queries, variables
from observe.stack import Stack
from observe.traffic import Traffic
from support.processes import Processes, wait_until

INTERVAL: Final = 0.25

PEER: Final = "nas:8390"
QUIET: Final = {"Waiting for a disk"}
"""Panels that show 0 in all that happens here: test_alerts.py has a disk that hangs."""


def all_queries() -> list[tuple[dict[str, Any], Query]]:
    loaded = [dashboards.load(name) for name in dashboards.names()]
    return [(dashboard, query) for dashboard in loaded for query in queries(dashboard)]


def let_things_happen(stack: Stack, files: Path) -> None:
    with closing(Traffic(stack, files)) as traffic:
        traffic.nightly(outage=True)
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


def test_every_query_and_every_variable_finds_what_happened(processes: Processes, area: Path) -> None:
    start = time.time()
    stack = Stack(processes, area / "stack", interval=f"{INTERVAL * 1000:.0f}ms")
    let_things_happen(stack, area / "files")
    shown = Answers(stack.prometheus, start, time.time(), interval=INTERVAL, step=INTERVAL)

    # With all that there is chosen, everything has data, and shows more than zeros.
    nothing, zeros, nameless = [], [], []
    for dashboard, query in all_queries():
        lines = shown.lines(query, chosen(dashboard))
        if not any(line.values for line in lines):
            nothing.append(str(query))
        elif not any(value for line in lines for value in line.values) and query.panel not in QUIET:
            zeros.append(str(query))
        nameless += [str(query) for line in lines if "" in _labels(query.legend, line.labels)]
    assert "\n".join(nothing) == ""
    assert "\n".join(zeros) == ""
    assert "\n".join(nameless) == ""

    # What can be chosen is what was scraped; tasks of a Pushgateway have an instance, too.
    receiver, node = stack.metrics, stack.exporter.address
    expected = {
        "receiver": {"job": {"tdx"}, "instance": {receiver}},
        "transfers": {"job": {"tdx", "node", "tdx-push"}, "instance": {receiver, node, "pushgateway"}},
        "slow": {"job": {"tdx", "node", "tdx-push"}, "instance": {receiver, node, "pushgateway"}},
        "jobs": {
            "job": {"node", "tdx-push"},
            "instance": {node, "pushgateway"},
            "task": {"nightly", "image", "mailbox", "papers", "offsite"},
            "peer": {PEER},
        },
    }
    for name, choices in expected.items():
        dashboard = dashboards.load(name)
        found = {
            each: offered(shown, variable["query"]["query"], chosen(dashboard))
            for each, variable in variables(dashboard).items()
            if variable["type"] == "query"
        }
        assert found == choices, name

    # And choosing shows what was chosen, and nothing else.
    for name, values in (
        ("receiver", {"job": ["tdx"], "instance": [receiver]}),
        ("jobs", {"job": ["node"], "instance": [node], "task": ["nightly", "mailbox"]}),
        ("jobs", {"job": ["tdx-push"], "instance": ["pushgateway"], "task": ["offsite"], "peer": [PEER]}),
    ):
        dashboard = dashboards.load(name)
        for query in queries(dashboard):
            lines = shown.lines(query, chosen(dashboard, **values))
            tasks = {line.labels["task"] for line in lines if "task" in line.labels}
            assert tasks <= set(values.get("task", [])), query
            # Of a task that never failed, or does not tell its interval, there is less to say.
            assert lines or query.ref == "J", query
        nobody = chosen(dashboard, job=["another"])
        assert [str(query) for query in queries(dashboard) if shown.lines(query, nobody)] == []


def offered(shown: Answers, asked: str, values: Mapping[str, str]) -> set[str]:
    """What can be chosen for a variable that asks for this."""
    found = dashboards.VALUES.match(filled(asked, values))
    assert found, asked
    return shown.choices(found["series"], found["label"])


def _labels(legend: str, labels: Mapping[str, str]) -> list[str]:
    """What stands for each label in the name of a line."""
    return [dashboards.legend(part, labels) for part in legend.split() if part.startswith("{{")]
