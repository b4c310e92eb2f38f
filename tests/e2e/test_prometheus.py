"""A real Prometheus scrapes a real receiver while it receives."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from support.content import random_file
from support.observing import Job, Prometheus, promtool
from support.processes import Processes, Receiver, wait_until

SIZE = 48 << 20


def page(receiver: Receiver, accept: str) -> tuple[str, str]:
    """The content type of what a scraper with this Accept field gets, and the text."""
    connection = http.client.HTTPConnection(*receiver.metrics_address, timeout=60)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.getheader("Content-Type") or "", answer.read().decode()
    finally:
        connection.close()


def test_prometheus_sees_the_bytes_grow_and_in_the_end_exactly_those_of_the_file(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = random_file(area / "large.bin", SIZE)
    address = ":".join(map(str, receiver.metrics_address))
    prometheus = Prometheus(processes, area / "prometheus", [Job("tdx", [address])])
    prometheus.await_scraped(1)
    push = processes.push(source, receiver.address, "--limit-rate", "16M")

    def received() -> float:
        return prometheus.value("sum(tdx_received_bytes_total) or vector(0)")

    wait_until(lambda: 0 < received() < SIZE, "Prometheus has seen some of the bytes")
    assert prometheus.value("tdx_connections_active") > 0
    push.ends(0, "done")
    wait_until(lambda: received() == SIZE, "Prometheus has seen all of the bytes")
    samples = prometheus.query('tdx_uploads_total{result="published"} > 0')
    assert [(labels["job"], labels["protocol"], value) for labels, value in samples] == [("tdx", "tdx", 1)]


def test_what_a_receiver_serves_has_nothing_that_promtool_objects_to(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = random_file(area / "small.bin", 1 << 20)
    processes.push(source, receiver.address).ends(0, "done")
    text = area / "metrics.txt"
    text.write_text(page(receiver, "*/*")[1])
    assert "tdx_received_bytes_total" in text.read_text()
    promtool(processes, "check", "metrics", stdin=text)


@pytest.mark.parametrize(
    ("accept", "kind", "end"),
    [
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
            "# EOF\n",
        ),
    ],
)
def test_a_scraper_gets_the_format_that_it_asks_for(
    receiver: Receiver, accept: str, kind: str, end: str
) -> None:
    content_type, text = page(receiver, accept)
    assert content_type == kind
    assert text.endswith(end)
    assert text.count("# EOF") == bool(end)
