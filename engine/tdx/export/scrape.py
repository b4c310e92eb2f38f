"""The heavy half of :mod:`tdx.export.prometheus`: prometheus-client and an HTTP listener."""

from __future__ import annotations

import contextlib
import math
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CollectorRegistry,
    ProcessCollector,
    make_wsgi_app,  # pyright: ignore[reportUnknownVariableType]
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tdx.metrics import Family, Kind, Metrics

IDLE_TIMEOUT: Final = 10.0
"""Seconds a scraper may keep the listener waiting."""

MOST_AT_ONCE: Final = 32
"""Connections that are open. Where one more comes, the oldest has to go: who sends a byte now and then would
keep a thread and a descriptor for ever, and descriptors are what transfers need."""


def translate(family: Family) -> Metric:
    """A family in prometheus-client's words."""
    if family.distribution is not None:
        histogram = HistogramMetricFamily(family.name, family.help)
        buckets = [
            ("+Inf" if bound == math.inf else repr(bound), count)
            for bound, count in family.distribution.buckets
        ]
        histogram.add_metric([], buckets, family.distribution.sum)
        return histogram
    metric: CounterMetricFamily | GaugeMetricFamily
    if family.kind is Kind.COUNTER:
        metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for sample in family.samples:
        metric.add_metric(sample.labels, sample.value)
    return metric


class MetricsCollector(Collector):
    """Pulls from ``metrics`` at every scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return map(translate, self._metrics.families())


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._lock = threading.Lock()
        self._talking: dict[socket.socket, None] = {}
        """Connections, in the order in which they came."""
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self._lock:
            if len(self._talking) >= MOST_AT_ONCE:
                oldest = next(iter(self._talking))
                del self._talking[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread ends, and closes it
            self._talking[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._talking.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this machine's full name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that goes away is its own affair."""


def listen(metrics: Metrics, host: str, port: int) -> WSGIServer:
    """A bound, listening server; OSError where that fails. Not yet serving."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MetricsCollector(metrics))
    ProcessCollector(registry=registry)
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]

    class Server(_Server):
        address_family = family

    server = Server((str(address[0]), port), _Handler)
    server.set_app(make_wsgi_app(registry))  # pyright: ignore[reportUnknownArgumentType]
    return server
