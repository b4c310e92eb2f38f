from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from support.processes import wait_until
from tdx.config import ServeConfig
from tdx.control.figures import Figure
from tdx.control.serve import assemble
from tdx.export.prometheus import serve_metrics
from tdx.store.memory import MemoryStore


class Hanging:
    """A disk that answers once it is let."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        assert self.goes_on.wait(30)
        return 7


def test_a_disk_that_hangs_is_not_waited_for_and_holds_one_thread() -> None:
    disk = Hanging()
    figure, before = Figure(disk, 0.01), threading.active_count()
    try:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                figure()
        assert (disk.asked, threading.active_count() - before) == (1, 1)
    finally:
        disk.goes_on.set()
    wait_until(lambda: threading.active_count() == before, "the disk has answered")
    assert Figure(disk)() == 7


def test_it_is_asked_anew_and_what_it_raises_is_told() -> None:
    answers = [1.0, 2.0]
    figure = Figure(lambda: answers.pop(0))
    assert [figure(), figure()] == [1.0, 2.0]
    with pytest.raises(IndexError):
        figure()


def test_a_receiver_whose_disk_hangs_still_tells_its_metrics(tmp_path: Path) -> None:
    disk = Hanging()

    class Store(MemoryStore):
        def free_bytes(self) -> int:
            return int(disk())

        def staged_bytes(self) -> int:
            return int(disk())

    receiver = assemble(ServeConfig(tmp_path / "inbox", tmp_path / "state"), Store(), None)
    server = serve_metrics(receiver.metrics, "127.0.0.1", 0)
    try:
        receiver.metrics.disk_waiting.set(42)
        connection = http.client.HTTPConnection(*server.address, timeout=15)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        assert "tdx_disk_waiting_seconds 42.0" in lines
        assert not any(line.startswith(("tdx_storage_free_bytes ", "tdx_staging_bytes ")) for line in lines)
    finally:
        disk.goes_on.set()
        server.close()
        receiver.workers.close()
