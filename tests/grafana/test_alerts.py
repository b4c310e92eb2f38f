"""Every alert fires in a real Prometheus because what it tells of has really been made to happen, and none
while all goes well. So that this takes a minute and not hours, the durations in the rules are shortened, and
nothing else of them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import yaml

from observe.stack import RULES, Stack, jobs
from observe.traffic import Traffic
from support.content import MIB, random_file
from support.disks import freezing, small_ext4
from support.observing import Job, Prometheus
from support.processes import PROGRAM, Processes, Receiver, wait_until

ROOM: Final = 2 << 30
NAMES: Final = {
    rule["alert"]
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
DURATION: Final = re.compile(r"(for: |\[|offset |\], )(\d+)([smhd]?)\b")


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
    assert len(before) == len(after) == 13
    assert {each[1:] for each in after} == {("1", "s"), ("30", "s"), ("120", "")}


def firing(prometheus: Prometheus) -> dict[str, list[dict[str, str]]]:
    """The labels of what fires, by the name of the alert."""
    found: dict[str, list[dict[str, str]]] = {}
    for each in prometheus.api("alerts")["alerts"]:
        if each["state"] == "firing":
            found.setdefault(each["labels"]["alertname"], []).append(each["labels"])
    return found


def with_room(processes: Processes, folder: Path, room: int) -> Receiver:
    """A receiver whose reserve leaves only so much of what is free."""
    folder.mkdir()
    found = os.statvfs(folder)
    reserve = found.f_bavail * found.f_frsize - room
    assert reserve > 0, f"{folder}: there is too little room on this disk"
    return processes.receiver(folder / "inbox", folder / "state", config=f"reserve = {reserve}\n")


def promise(receiver: Receiver, length: int) -> socket.socket:
    """Begin an upload of so many bytes: at once they are not free any more."""
    connection = socket.create_connection(("127.0.0.1", receiver.port))
    head = (f"PUT /files/promised-{length} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}")
    connection.sendall("\r\n".join((*head, "", "begins")).encode())
    return connection


def test_each_alert_fires_when_what_it_tells_of_happens(processes: Processes, area: Path) -> None:
    stack = Stack(processes, area / "stack", interval="250ms", rules=short_rules(area))
    prometheus = stack.prometheus
    with closing(Traffic(stack, area / "files")) as traffic:
        # All goes well.
        traffic.sizes()
        traffic.changed()
        traffic.offsite().ends(0, "done")
        wait_until(lambda: prometheus.query("tdx_push_last_exit_code"), "tasks are seen")
        assert prometheus.alerts == {}

        # What takes its time begins first.
        traffic.silent()
        filling = with_room(processes, area / "filling", ROOM)
        full = with_room(processes, area / "full", -ROOM)
        gone = processes.receiver(area / "gone", area / "gone-state")
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
        # A tenth of the room each half second; what others do on the same disk makes no difference.
        promised = contextlib.ExitStack()
        processes.resources.enter_context(promised)
        for number in range(6):
            promised.enter_context(promise(filling, ROOM // 10 + number))
            time.sleep(0.5)
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
    assert of("TdxDiskFilling", "instance") >= {name_of[filling]}
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


def test_a_disk_that_hangs_is_told_of(processes: Processes, area: Path) -> None:
    disk = small_ext4(processes, area / "disk", 160 * MIB)
    receiver = processes.receiver(disk.path / "inbox", area / "state", program=[*disk.prefix, *PROGRAM])
    address = ":".join(map(str, receiver.metrics_address))
    prometheus = Prometheus(processes, area / "prometheus", jobs(tdx=address), [short_rules(area)])
    prometheus.await_scraped(1)
    source = random_file(area / "source", 48 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "12M", "--stall-timeout", "5m")
    wait_until(lambda: push.events and push.last.get("sent_bytes", 0) > 4 * MIB, "it is sending")
    with freezing(disk) as freeze:
        freeze(True)
        prometheus.await_alert("TdxDiskHangs")
        (labels,) = firing(prometheus)["TdxDiskHangs"]
        assert labels["instance"] == address
        assert prometheus.value("tdx_disk_waiting_seconds") >= 10
    push.ends(0, "done")
    wait_until(lambda: "TdxDiskHangs" not in prometheus.alerts, "that is over")
    receiver.stop()
