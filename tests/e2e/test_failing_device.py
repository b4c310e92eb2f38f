"""Devices that fail when it matters: after the filesystem has taken the bytes. Nothing is acknowledged that
is not on the device, the failure is told in words, and what was acknowledged before stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.disks import await_held, failing_ext4, receiver_on, small_ext4
from support.processes import PROGRAM, Processes, Receiver

DISK = 48 * MIB
ONCE = ("--retries", "1")
FAILED = ("storage", "storage-unusable", "no-space")
"""How it is told: a device that is full underneath may also say so."""

ENDS = {73, 74}


def few_files(area: Path) -> Path:
    folder = area / "few"
    folder.mkdir()
    for number in range(5):
        random_file(folder / f"{number}", 5000)
    return folder


def test_what_cannot_be_synced_is_not_acknowledged_and_can_be_sent_again_once_the_device_works(
    processes: Processes, area: Path
) -> None:
    disk = failing_ext4(processes, area / "disk", DISK)
    receiver = receiver_on(disk, processes, area)
    healthy = processes.receiver(area / "healthy", area / "healthy-state")
    before, large = random_file(area / "before", 2 * MIB), random_file(area / "large", 20 * MIB)
    small, few = random_file(area / "small", 20_000), few_files(area)
    processes.push(before, receiver.address).ends(0, "done")
    with disk.broken():
        beside = processes.push(large, healthy.address, "--limit-rate", "40M")
        error = processes.push(large, receiver.address, *ONCE).ends(74, "failed")["error"]
        assert error["code"] == "storage"
        assert error["message"].startswith("large: the disk failed to make data durable: ")
        # By now ext4 may have found itself in trouble, and gone read-only. Or it takes blocks of the large
        # file that the device still had room for: what is small may be durable all the same.
        alone = processes.push(small, receiver.address, *ONCE)
        assert alone.wait() in {0} | ENDS, alone.log()
        together = processes.push("-r", few, receiver.address, *ONCE)
        assert together.wait() in {0} | ENDS, together.log()
        for push in (alone, together):
            codes = {each["error"]["code"] for each in push.events if each["event"] == "failed"}
            assert codes <= set(FAILED), push.log()
        done = {each["name"] for push in (alone, together) for each in push.events if each["event"] == "done"}
        assert processes.curl("-T", large, f"{receiver.url}/files/put").status in {500, 507}
        with large.open("rb") as content:
            push = processes.push("-", receiver.address, "--name", "stream", *ONCE, stdin=content)
            assert push.wait() in ENDS, push.log()
            assert push.last["error"]["code"] in FAILED
        assert set(receiver.published) - {"few"} == {"before"} | done
        beside.ends(0, "done")
    receiver.stop()
    disk.unmount()
    disk.mount()
    for name in {"before"} | done:
        assert sha256_of(receiver.folder / name) == sha256_of(area / name)
    receiver.restart()
    for source in (large, small):
        processes.push(source, receiver.address, "--resume").ends(0)
        assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    end = processes.push("-r", few, receiver.address).ends(0)
    assert end["done"] + end["identical"] == 5


@pytest.mark.parametrize("errors", ["remount-ro", "continue"])
def test_a_device_that_takes_not_even_the_journal_gets_nothing_acknowledged(
    processes: Processes, area: Path, errors: str
) -> None:
    disk = failing_ext4(processes, area / "disk", DISK, data_only=False, options=f"errors={errors}")
    receiver = receiver_on(disk, processes, area)
    before, large = random_file(area / "before", 2 * MIB), random_file(area / "large", 20 * MIB)
    small = random_file(area / "small", 20_000)
    processes.push(before, receiver.address).ends(0, "done")
    with disk.broken():
        for source in (large, small):
            push = processes.push(source, receiver.address, *ONCE)
            assert push.wait() in ENDS, push.log()
            assert push.last["error"]["code"] in FAILED
        assert processes.curl("-T", large, f"{receiver.url}/files/put").status in {500, 507}
    assert receiver.ask("GET", "/v1/hello")[0] == 200
    receiver.stop()
    disk.unmount()
    disk.mount()
    assert receiver.published == ["before"]
    assert sha256_of(receiver.folder / "before") == sha256_of(before)
    receiver.restart()
    for source in (large, small):
        processes.push(source, receiver.address, "--resume").ends(0, "done")
        assert sha256_of(receiver.folder / source.name) == sha256_of(source)


def test_a_filesystem_that_becomes_read_only_ends_pushes_at_once_and_keeps_their_partials(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    disk = small_ext4(processes, area / "disk", DISK)
    other = processes.receiver(
        disk.path / "inbox", area / "other-state", program=[*disk.prefix, *PROGRAM], config="reserve = 0\n"
    )
    other.folder = disk.seen / "inbox"
    source, small = random_file(area / "source", 24 * MIB), random_file(area / "small", 1000)
    push = processes.push(source, other.address, "--limit-rate", "24M")
    beside = processes.push(source, receiver.address, "--limit-rate", "24M")
    await_held(other)
    disk.trip()
    for ended in (
        push,
        processes.push(small, other.address),
        processes.push(source, other.address, "--resume"),
    ):
        error = ended.ends(74, "failed")["error"]
        assert error["code"] == "storage-unusable"
        assert "the receiver's filesystem is read-only" in error["message"]
    beside.ends(0, "done")
    assert other.published == []
    held = other.held()
    assert 0 < held < 24 * MIB
    other.stop()
    disk.unmount()
    disk.mount()
    other.restart()
    # What no mark covers does not count after a mount: it may not have got to the disk.
    processes.push(source, other.address, "--resume").ends(0, "done")
    assert sha256_of(other.folder / "source") == sha256_of(source)


def test_a_filesystem_that_goes_on_after_an_error_is_used_on(processes: Processes, area: Path) -> None:
    disk = small_ext4(processes, area / "disk", DISK, options="errors=continue")
    receiver = receiver_on(disk, processes, area)
    source = random_file(area / "source", 24 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "24M")
    await_held(receiver)
    disk.trip()
    push.ends(0, "done")
    assert sha256_of(receiver.folder / "source") == sha256_of(source)
