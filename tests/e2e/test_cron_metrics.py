"""What pushes of cron leave, as node_exporter and the Pushgateway serve it to Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.batches import write_batch
from support.content import random_file
from support.observing import NodeExporter, Pushgateway, promtool
from support.processes import Processes, Receiver

ODD = 'dumps/of "all" \\ süß.v2'
TASKS = ["nightly", ODD, "..", "a b+c%2F"]
SUCCESS = "tdx_push_last_success_timestamp_seconds"
EXIT_CODE = "tdx_push_last_exit_code"


def values(page: str, name: str, task: str) -> list[float]:
    return [
        sample.value
        for metric in text_string_to_metric_families(page)
        for sample in metric.samples
        if sample.name == name and sample.labels.get("task", task) == task
    ]


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "backup.tar", 3 << 20)


def fail_after_success(
    processes: Processes, receiver: Receiver, source: Path, page: Callable[[], str], task: str, *flags: str
) -> None:
    """Push, take the receiver away, push again: what is served keeps the success and has the failure."""
    given: list[str | Path] = [source, receiver.address, "--metrics-task", task, *flags]
    processes.push(*given).ends(0)
    (success,) = values(page(), SUCCESS, task)
    assert values(page(), EXIT_CODE, task) == [0]
    assert values(page(), "tdx_push_last_size_bytes", task) == [3 << 20]
    receiver.stop()
    processes.push(*given, "--retries", "0").ends(69)
    assert values(page(), SUCCESS, task) == [success]
    assert values(page(), EXIT_CODE, task) == [69]
    (completion,) = values(page(), "tdx_push_last_completion_timestamp_seconds", task)
    assert completion > success


@pytest.mark.parametrize("task", TASKS)
def test_node_exporter_serves_a_success_and_keeps_it_through_a_failure(
    processes: Processes, receiver: Receiver, source: Path, area: Path, task: str
) -> None:
    folder = area / "textfiles"
    folder.mkdir()
    exporter = NodeExporter(processes, folder)
    file = folder / "backup.prom"
    fail_after_success(
        *(processes, receiver, source, exporter.page, task),
        *("--metrics-textfile", str(file), "--metrics-interval", "1d"),
    )
    page = exporter.page()
    assert values(page, "node_textfile_scrape_error", task) == [0]
    assert values(page, "tdx_push_interval_seconds", task) == [86400]
    assert promtool(processes, "check", "metrics", stdin=file) == ""


@pytest.mark.parametrize("task", TASKS)
def test_a_pushgateway_has_a_group_and_keeps_its_success_through_a_failure(
    processes: Processes, receiver: Receiver, source: Path, task: str
) -> None:
    gateway = Pushgateway(processes)
    url = f"http://{gateway.address}/"
    fail_after_success(processes, receiver, source, gateway.page, task, "--metrics-push", url)
    (group,) = gateway.groups
    assert group["labels"] == {"job": "tdx-push", "task": task, "peer": receiver.address}
    assert group["last_push_successful"]


def test_the_items_of_a_batch_are_in_one_file_and_in_groups_of_their_own(
    processes: Processes, receiver: Receiver, source: Path, area: Path
) -> None:
    folder = area / "textfiles"
    folder.mkdir()
    exporter, gateway = NodeExporter(processes, folder), Pushgateway(processes)
    items = [{"name": "one", "sources": [str(source)]}, {"name": ODD, "sources": ["none"]}]
    top = f'metrics_textfile = "{folder}/batch.prom"\nmetrics_push = "http://{gateway.address}"'
    batch = write_batch(area / "b.toml", items, top, peer=receiver.address, conflict="overwrite")
    processes.batch(batch).ends(66)
    for page in (exporter.page(), gateway.page()):
        assert (values(page, EXIT_CODE, "one"), values(page, EXIT_CODE, ODD)) == ([0], [66])
        assert len(values(page, SUCCESS, "one")) == 1
        assert values(page, SUCCESS, ODD) == []
    assert {each["labels"]["task"] for each in gateway.groups} == {"one", ODD}
    assert values(exporter.page(), "node_textfile_scrape_error", "") == [0]


def test_node_exporter_never_meets_a_half_written_file(
    processes: Processes, receiver: Receiver, source: Path, area: Path
) -> None:
    folder = area / "textfiles"
    folder.mkdir()
    exporter = NodeExporter(processes, folder)
    file = folder / "backup.prom"
    given = (source, receiver.address, "--metrics-task", "nightly", "--metrics-textfile", file)
    processes.push(*given).ends(0)
    stop, seen = threading.Event(), list[tuple[list[float], int]]()

    def look() -> None:
        while not stop.is_set():
            page = exporter.page()
            seen.append((values(page, "node_textfile_scrape_error", ""), page.count("\ntdx_push_")))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(5):
            processes.push(*given).ends(0)
        for _ in range(3):
            push = processes.push(*given)
            push.kill()
    finally:
        stop.set()
        reader.join()
    assert {tuple(errors) for errors, _ in seen} == {(0,)}
    assert len({count for _, count in seen}) == 1
    assert len(seen) > 3
