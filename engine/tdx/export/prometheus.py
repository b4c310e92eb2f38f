"""Metrics over HTTP for a Prometheus server to scrape, in its text format or OpenMetrics."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from tdx.errors import ConfigError
from tdx.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer


class MetricsServer:
    """A running listener on a thread of its own."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="tdx-metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it is bound to."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Stop listening and free the port; idempotent. Waits for the listener's thread."""
        with contextlib.suppress(OSError):
            # Wakes the thread at once; left alone it looks up twice a second.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve_metrics(metrics: Metrics, host: str, port: int) -> MetricsServer:
    """Serve ``metrics`` at every path of ``http://host:port/``; port 0 picks a free one.

    ConfigError where the address cannot be bound.
    """
    from tdx.export import scrape  # prometheus-client is slow to import, and most runs never need it

    try:
        server = scrape.listen(metrics, host, port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot serve metrics on {host}:{port}: {reason or error}") from error
    return MetricsServer(server)
