"""Where to look, and what Prometheus says meanwhile, in a table: of the last minute, or of now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from observe.stack import Stack
from support.observing import Prometheus
from tdx_cli.text import columns, size_of

HEADING: Final = (
    "time",
    "received/s",
    "ended",
    "failed",
    "active",
    "stalled",
    "resumes",
    "waited for",
    "alerts",
)
EACH: Final = 15
"""Lines between headings."""

QUERIES: Final = {
    "received/s": "sum(rate(tdx_received_bytes_total[10s]))",
    "ended": "sum(increase(tdx_uploads_total[1m]))",
    "failed": 'sum(increase(tdx_uploads_total{result="failed"}[1m]))',
    "active": "sum(tdx_transfers_active)",
    "stalled": "sum(tdx_transfers_stalled)",
    "resumes": "sum(increase(tdx_resumes_total[1m]))",
}
WAITED: Final = "topk(1, sum by (bottleneck) (increase(tdx_bottleneck_seconds_total[1m])) > 0)"


def where(stack: Stack, folder: Path) -> Iterator[str]:
    """What has been started, and where to look at it."""
    yield "observe: all of it is on this machine only, and ends with Ctrl-C"
    for what, address in (
        ("Prometheus", f"http://{stack.prometheus.address}/"),
        ("the receiver's metrics", f"http://{stack.metrics}/metrics"),
        ("node_exporter", f"http://{stack.exporter.address}/metrics"),
        ("Pushgateway", f"http://{stack.gateway.address}/metrics"),
        ("the receiver", f"http://{stack.receiver.address}"),
        ("logs and files", str(folder)),
    ):
        yield f"  {what:24}{address}"
    yield "  a Grafana takes Prometheus' address as its data source, and grafana/dashboards/*.json"


class Table:
    """Lines of what Prometheus says, with a heading now and then."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus
        self._told = 0

    def lines(self) -> list[str]:
        """One more."""
        values = {name: self._value(query) for name, query in QUERIES.items()}
        waited = self._prometheus.query(WAITED)
        row = (
            time.strftime("%H:%M:%S"),
            size_of(int(values["received/s"])),
            *(f"{values[name]:.0f}" for name in HEADING[2:7]),
            waited[0][0]["bottleneck"] if waited else "",
            ", ".join(sorted(name for name, state in self._prometheus.alerts.items() if state == "firing")),
        )
        width = (8, 10, 6, 6, 6, 7, 7, 18, 0)
        heading, line = columns(
            [tuple(t.ljust(w) for t, w in zip(each, width, strict=True)) for each in (HEADING, row)]
        )
        self._told += 1
        return [line] if self._told % EACH != 1 else [heading, line]

    def _value(self, query: str) -> float:
        found = self._prometheus.query(query)
        return found[0][1] if found else 0.0
