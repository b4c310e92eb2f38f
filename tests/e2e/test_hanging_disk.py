"""A disk that stops answering: the receiver says so, lives on, and finishes once the disk is back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.disks import LoopDisk, freezing, small_ext4
from support.processes import PROGRAM, Processes, wait_until
from support.supervisor import Supervisor


@pytest.fixture
def disk(processes: Processes, area: Path) -> LoopDisk:
    return small_ext4(processes, area / "disk", 160 * MIB)


@pytest.fixture
def hold(disk: LoopDisk) -> Iterator[Callable[[bool], None]]:
    with freezing(disk) as freeze:
        yield freeze


def test_a_disk_that_hangs_is_told_of_and_ends_neither_the_receiver_nor_the_push(
    processes: Processes, area: Path, disk: LoopDisk, hold: Callable[[bool], None]
) -> None:
    with Supervisor() as supervisor:
        receiver = processes.receiver(
            disk.path / "inbox",
            area / "state",
            environment={**supervisor.env, "WATCHDOG_USEC": "2000000"},
            program=[*disk.prefix, *PROGRAM],
        )
        supervisor.await_message("READY=1")
        source = random_file(area / "source", 48 * MIB)
        push = processes.push(source, receiver.address, "--limit-rate", "12M", "--stall-timeout", "5m")
        wait_until(lambda: push.events and push.events[-1].get("sent_bytes", 0) > 4 * MIB, "it is sending")
        hold(True)
        supervisor.await_message("STATUS=1 transfer under way; the disk has not answered for")
        supervisor.rest()
        for _ in range(3):
            supervisor.await_message("WATCHDOG=1")
        assert receiver.scrape()["tdx_disk_waiting_seconds"] >= 10
        assert "the disk has not answered for" in receiver.process.stderr
        hold(False)
        push.ends(0, "done")
        wait_until(lambda: "the disk answers again" in receiver.process.stderr, "that is told, too")
        assert receiver.scrape()["tdx_disk_waiting_seconds"] == 0
    assert sha256_of(disk.seen / "inbox" / "source") == sha256_of(source)
    receiver.stop()
