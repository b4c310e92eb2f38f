from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Generator

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.observing import program
from tdx.errors import ConfigError
from tdx.export.prometheus import MetricsServer, serve_metrics
from tdx.export.scrape import MOST_AT_ONCE
from tdx.metrics import Metrics

# DESIGN section 10: what a receiver or a running sender has.
SERIES = {
    "tdx_build_info": ("gauge", {"version"}),
    "tdx_http_requests_total": ("counter", {"method", "route", "code"}),
    "tdx_uploads_total": ("counter", {"protocol", "result"}),
    "tdx_uploads_active": ("gauge", set[str]()),
    "tdx_connections_active": ("gauge", set[str]()),
    "tdx_received_bytes_total": ("counter", {"protocol"}),
    "tdx_sent_bytes_total": ("counter", set[str]()),
    "tdx_discarded_bytes_total": ("counter", {"reason"}),
    "tdx_published_bytes_total": ("counter", set[str]()),
    "tdx_resumes_total": ("counter", set[str]()),
    "tdx_resumed_bytes_total": ("counter", set[str]()),
    "tdx_reused_bytes_total": ("counter", set[str]()),
    "tdx_retries_total": ("counter", {"reason"}),
    "tdx_digest_failures_total": ("counter", set[str]()),
    "tdx_refused_total": ("counter", {"reason"}),
    "tdx_transfer_duration_seconds": ("histogram", {"le"}),
    "tdx_transfer_throughput_bytes_per_second": ("histogram", {"le"}),
    "tdx_stage_seconds_total": ("counter", {"stage"}),
    "tdx_bottleneck_seconds_total": ("counter", {"bottleneck"}),
    "tdx_transfers_active": ("gauge", set[str]()),
    "tdx_transfers_stalled": ("gauge", set[str]()),
    "tdx_staging_bytes": ("gauge", set[str]()),
    "tdx_storage_free_bytes": ("gauge", set[str]()),
    "tdx_storage_reserve_bytes": ("gauge", set[str]()),
    "tdx_disk_waiting_seconds": ("gauge", set[str]()),
    "tdx_hooks_total": ("counter", {"result"}),
    "process_cpu_seconds_total": ("counter", set[str]()),
    "process_resident_memory_bytes": ("gauge", set[str]()),
    "process_virtual_memory_bytes": ("gauge", set[str]()),
    "process_start_time_seconds": ("gauge", set[str]()),
    "process_open_fds": ("gauge", set[str]()),
    "process_max_fds": ("gauge", set[str]()),
}

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def parse_openmetrics(text: str) -> list[Metric]:
    return list(parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics("1.2.3")
    metrics.requests.add(1, ("PUT", "files", "201"))
    metrics.uploads.add(1, ("tdx", "published"))
    metrics.received_bytes.add(5 << 30, ("tdx",))
    metrics.discarded_bytes.add(7, ("held",))
    metrics.retries.add(2, ("connection-lost",))
    metrics.refused.add(3, ("forbidden",))
    metrics.hooks.add(1, ("ok",))
    metrics.transfer_duration.observe(1.5)
    metrics.transfer_throughput.observe(2e9)
    metrics.storage_free_bytes.follow(lambda: 123456789)
    return metrics


@pytest.fixture
def server(metrics: Metrics) -> Generator[MetricsServer]:
    server = serve_metrics(metrics, "127.0.0.1", 0)
    yield server
    server.close()


def scrape(server: MetricsServer, accept: str = "") -> tuple[str, str]:
    """The content type and the text."""
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def series_of(families: list[Metric]) -> dict[str, tuple[str, set[str]]]:
    # The parsers name a counter's family without its suffix.
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels},
        )
        for family in families
    }


def test_the_text_format_has_every_series_with_its_type_and_labels(server: MetricsServer) -> None:
    content_type, text = scrape(server)
    assert content_type.startswith("text/plain; version=")
    families = list(parse_text(text))
    assert series_of(families) == SERIES
    assert all(family.documentation for family in families)


def test_openmetrics_is_negotiated_and_has_the_same(server: MetricsServer) -> None:
    content_type, text = scrape(server, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=")
    assert text.endswith("# EOF\n")
    families = parse_openmetrics(text)
    assert series_of(families) == SERIES
    assert all(family.documentation for family in families)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_values_are_those_of_the_moment(server: MetricsServer, metrics: Metrics, accept: str) -> None:
    def values() -> dict[tuple[str, tuple[str, ...]], float]:
        families = (
            parse_openmetrics(scrape(server, accept)[1]) if accept else list(parse_text(scrape(server)[1]))
        )
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }

    before = values()
    assert before["tdx_received_bytes_total", ("tdx",)] == 5 << 30
    assert before["tdx_storage_free_bytes", ()] == 123456789
    assert before["tdx_build_info", ("1.2.3",)] == 1
    assert before["tdx_transfer_duration_seconds_bucket", ("1.0",)] == 0
    assert before["tdx_transfer_duration_seconds_bucket", ("2.5",)] == 1
    assert before["tdx_transfer_duration_seconds_bucket", ("+Inf",)] == 1
    assert before["tdx_transfer_duration_seconds_sum", ()] == 1.5
    metrics.received_bytes.add(1, ("tdx",))
    metrics.uploads_active.add()
    after = values()
    assert after["tdx_received_bytes_total", ("tdx",)] == (5 << 30) + 1
    assert after["tdx_uploads_active", ()] == 1


def test_a_gauge_whose_source_fails_does_not_spoil_the_scrape(
    server: MetricsServer, metrics: Metrics
) -> None:
    def gone() -> float:
        raise OSError("disk gone")

    metrics.storage_free_bytes.follow(gone)
    families = {family.name: family for family in parse_text(scrape(server)[1])}
    assert families["tdx_storage_free_bytes"].samples == []
    assert families["tdx_uploads_active"].samples != []


def test_every_bucket_bound_is_a_number_that_prometheus_reads(server: MetricsServer) -> None:
    bounds = [
        float(sample.labels["le"])
        for family in parse_openmetrics(scrape(server, OPENMETRICS)[1])
        for sample in family.samples
        if sample.name == "tdx_transfer_throughput_bytes_per_second_bucket"
    ]
    assert bounds[0] == 1e6
    assert bounds[-2:] == [1e10, float("inf")]


def test_those_who_dawdle_have_to_go_when_too_many_others_come(server: MetricsServer) -> None:
    with contextlib.ExitStack() as stack:

        def begins() -> socket.socket:
            sock = stack.enter_context(socket.create_connection(server.address, timeout=30))
            sock.sendall(b"GET /metr")
            return sock

        oldest, *_ = [begins() for _ in range(MOST_AT_ONCE)]
        newest = begins()
        assert oldest.recv(1) == b""
        newest.sendall(b"ics HTTP/1.0\r\n\r\n")
        assert newest.recv(12) == b"HTTP/1.0 200"


def test_closing_frees_the_port_and_may_be_repeated(metrics: Metrics) -> None:
    server = serve_metrics(metrics, "127.0.0.1", 0)
    address = server.address
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=30)
    again = serve_metrics(metrics, *address)
    assert again.address == address
    again.close()


def test_a_port_in_use_is_an_error_of_the_configuration(server: MetricsServer, metrics: Metrics) -> None:
    host, port = server.address
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use$"):
        serve_metrics(metrics, host, port)


@pytest.mark.parametrize(("host", "port"), [("198.51.100.1", 0), ("127.0.0.1", 1 << 20), ("not a host", 0)])
def test_an_address_that_cannot_be_bound_is_an_error_of_the_configuration(
    metrics: Metrics, host: str, port: int
) -> None:
    with pytest.raises(ConfigError, match="cannot serve metrics"):
        serve_metrics(metrics, host, port)


def test_ipv6_is_served(metrics: Metrics) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    server = serve_metrics(metrics, "::1", 0)
    try:
        assert "tdx_build_info" in scrape(server)[1]
    finally:
        server.close()


def test_a_scraper_that_goes_away_or_talks_garbage_disturbs_nobody(
    server: MetricsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for said in (b"", b"GET / HTT", b"\x16\x03\x01\0\xff" * 50 + b"\r\n\r\n"):
        with socket.create_connection(server.address, timeout=30) as scraper:
            scraper.sendall(said)
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert "tdx_build_info" in scrape(server)[1]
    assert capfd.readouterr() == ("", "")


def test_prometheus_client_is_not_imported_before_it_is_needed() -> None:
    script = (
        "import sys, tdx.export.prometheus, tdx.metrics\n"
        "print([name for name in ('prometheus_client', 'http.server') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "[]\n"


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize("accept", [OPENMETRICS, PROMETHEUS_2, PROMETHEUS_3])
def test_whoever_knows_openmetrics_is_told_that_it_is(server: MetricsServer, accept: str) -> None:
    content_type, text = scrape(server, accept)
    kind, *parameters = (part.strip() for part in content_type.split(";"))
    assert kind == "application/openmetrics-text"
    assert {"version=1.0.0", "charset=utf-8"} <= set(parameters)
    assert series_of(parse_openmetrics(text)) == SERIES


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4"])
def test_everybody_else_gets_the_text_format_that_prometheus_3_accepts(
    server: MetricsServer, accept: str
) -> None:
    content_type, text = scrape(server, accept)
    assert content_type.startswith(("text/plain; version=0.0.4", "text/plain; version=1.0.0"))
    assert series_of(list(parse_text(text))) == SERIES


def test_prometheus_own_checker_finds_nothing_to_say(server: MetricsServer) -> None:
    page = scrape(server)[1]
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
