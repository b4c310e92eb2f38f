"""Every alert fires in a real Prometheus because what it tells of has really been made to happen, and none
while all goes well. So that this takes a minute and not hours, the durations in the rules are shortened, and
nothing else of them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
import yaml

from observe.stack import RULES, Stack, jobs
from observe.traffic import Traffic
from support.content import MIB, random_file
from support.disks import small_ext4
from support.observing import Job, Prometheus
from support.processes import PROGRAM, Processes, Receiver, reaped, wait_until
from support.spaces import needs, or_skip

NAMES: Final = {
    rule["alert"]
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
DURATION: Final = re.compile(r"(for: |\[|offset |\], )(\d+)([smhd]?)\b")
ROOM: Final = 160 * MIB


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


def shortened(text: str) -> str:
    """The rules with a second where they have `for`, half a minute where they look back, and four times that
    where they look ahead, as the real ones do."""
    text = re.sub(r"for: \d+[mh]", "for: 1s", text)
    text = re.sub(r"(\[|offset )\d+[mh]", r"\g<1>30s", text)
    return text.replace("], 86400)", "], 120)")


def short_rules(folder: Path) -> Path:
    path = folder / "rules.yml"
    path.write_text(shortened(RULES.read_text()))
    return path


def test_nothing_but_durations_is_shortened() -> None:
    text = RULES.read_text()
    assert DURATION.sub(r"\1", shortened(text)) == DURATION.sub(r"\1", text)
    before, after = DURATION.findall(text), DURATION.findall(shortened(text))
    assert len(before) == len(after) == 12
    assert {each[1:] for each in after} == {("1", "s"), ("30", "s"), ("120", "")}


def firing(prometheus: Prometheus) -> dict[str, list[dict[str, str]]]:
    """The labels of what fires, by the name of the alert."""
    found: dict[str, list[dict[str, str]]] = {}
    for each in prometheus.api("alerts")["alerts"]:
        if each["state"] == "firing":
            found.setdefault(each["labels"]["alertname"], []).append(each["labels"])
    return found


def with_room(processes: Processes, folder: Path, room: int) -> Receiver:
    """A receiver whose reserve leaves only so many bytes to store."""
    folder.mkdir()
    free = os.statvfs(folder)
    reserve = free.f_bavail * free.f_frsize - room
    return processes.receiver(folder / "inbox", folder / "state", config=f"reserve = {reserve}\n")


def test_each_alert_fires_when_what_it_tells_of_happens(processes: Processes, tmp_path: Path) -> None:
    stack = Stack(processes, tmp_path / "stack", interval="250ms", rules=short_rules(tmp_path))
    prometheus = stack.prometheus
    with closing(Traffic(stack, tmp_path / "files")) as traffic:
        # All goes well.
        traffic.sizes()
        traffic.changed()
        traffic.offsite().ends(0, "done")
        wait_until(lambda: prometheus.query("tdx_push_last_exit_code"), "tasks are seen")
        assert prometheus.alerts == {}

        # What takes its time begins first.
        traffic.silent()
        filling = with_room(processes, tmp_path / "filling", ROOM)
        full = with_room(processes, tmp_path / "full", -MIB)
        gone = processes.receiver(tmp_path / "gone", tmp_path / "gone-state")
        others = {":".join(map(str, each.metrics_address)): each for each in (filling, full, gone)}
        tdx, *rest = stack.jobs()
        prometheus.scrape([Job("tdx", [stack.metrics, *others]), *rest])
        prometheus.await_scraped(6)
        name_of = {each: address for address, each in others.items()}

        gone.kill()
        traffic.failing()
        traffic.corrupted()
        traffic.corrupted()
        traffic.refused()
        told = ("--metrics-interval", "1s", "--metrics-task", "often")
        textfile = ("--metrics-textfile", str(stack.textfiles / "often.prom"))
        traffic.push("often", MIB, *told, *textfile, "--metrics-push", f"http://{stack.gateway.address}")
        for number in range(12):
            piece = random_file(tmp_path / f"piece{number}", 6 * MIB)
            processes.push(piece, filling.address).ends(0, "done")
        expected = NAMES - {"TdxDiskHangs"}

        began = time.monotonic()
        seen: dict[str, list[dict[str, str]]] = {}

        def all_seen() -> bool:
            seen.update({name: labels for name, labels in firing(prometheus).items() if name not in seen})
            return set(seen) >= expected

        try:
            wait_until(all_seen, "every alert has fired")
        except AssertionError:
            assert sorted(expected - set(seen)) == [], f"after {time.monotonic() - began:.0f} s"
    assert set(seen) == expected

    # For whom, and for nobody else.
    def of(alert: str, label: str) -> set[str | None]:
        return {labels.get(label) for labels in seen[alert]}

    assert of("TdxReceiverDown", "instance") == {name_of[gone]}
    assert of("TdxDiskReserve", "instance") == {name_of[full]}
    assert name_of[filling] in of("TdxDiskFilling", "instance")
    for alert in ("TdxUploadsFailing", "TdxVerificationFailed", "TdxTransferStalled", "TdxRefused"):
        assert of(alert, "instance") == {stack.metrics}
    assert of("TdxRefused", "reason") == {"forbidden"}
    assert of("TdxJobFailed", "task") == {"papers"}
    missed = {(labels["task"], labels.get("instance")) for labels in firing(prometheus)["TdxJobMissed"]}
    # From node_exporter and from the Pushgateway, and the one that has never succeeded.
    assert missed == {
        ("often", stack.exporter.address),
        ("often", "pushgateway"),
        ("papers", stack.exporter.address),
    }
    assert tdx.name == "tdx"


def test_a_disk_that_hangs_is_told_of(processes: Processes, tmp_path: Path) -> None:
    needs("fsfreeze")
    disk = small_ext4(processes, tmp_path / "disk", 160 * MIB)
    receiver = processes.receiver(disk.path / "inbox", tmp_path / "state", program=[*disk.prefix, *PROGRAM])
    address = ":".join(map(str, receiver.metrics_address))
    prometheus = Prometheus(processes, tmp_path / "prometheus", jobs(tdx=address), [short_rules(tmp_path)])
    prometheus.await_scraped(1)
    source = random_file(tmp_path / "source", 48 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "12M", "--stall-timeout", "5m")
    wait_until(lambda: push.events and push.last.get("sent_bytes", 0) > 4 * MIB, "it is sending")
    try:
        or_skip([*disk.prefix, "fsfreeze", "-f", str(disk.path)])
        prometheus.await_alert("TdxDiskHangs")
        (labels,) = firing(prometheus)["TdxDiskHangs"]
        assert labels["instance"] == address
        assert prometheus.value("tdx_disk_waiting_seconds") >= 10
    finally:
        processes.run("thaw", [*disk.prefix, "fsfreeze", "-u", str(disk.path)]).wait()
    push.ends(0, "done")
    wait_until(lambda: "TdxDiskHangs" not in prometheus.alerts, "that is over")
    receiver.stop()
