"""A full disk: refused before the first byte where that can be known, a clean end where it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.spaces import SmallDisk, small_disk

DISK = 32 * MIB


@pytest.fixture
def disk(processes: Processes, area: Path) -> SmallDisk:
    return small_disk(processes, area / "disk", DISK)


@pytest.fixture
def full(processes: Processes, area: Path, disk: SmallDisk) -> Receiver:
    """A receiver on the small disk."""
    return receiver_on(disk, processes, area)


def receiver_on(disk: SmallDisk, processes: Processes, area: Path, *arguments: str) -> Receiver:
    receiver = processes.receiver(
        disk.path / "inbox",
        area / "receiver-state",
        *arguments,
        program=[*disk.prefix, *PROGRAM],
        config="reserve = 0\n",
    )
    receiver.folder = disk.seen / "inbox"
    return receiver


def test_what_does_not_fit_is_refused_before_its_first_byte(
    processes: Processes, full: Receiver, area: Path
) -> None:
    source = random_file(area / "large", 40 * MIB)
    end = processes.push(source, full.address).ends(73, "failed")
    assert end["error"]["code"] == "no-space"
    assert end["sent_bytes"] == 0
    put = processes.curl("-T", source, f"{full.url}/files/large")
    assert put.status == 507
    assert put.body["type"] == "urn:tdx:problem:no-space"
    assert full.published == []
    assert full.partials == []
    assert not any("received_bytes" in name and value for name, value in full.scrape().items())
    small = random_file(area / "small", 5 * MIB)
    processes.push(small, full.address).ends(0, "done")
    assert full.published == ["small"]


@pytest.mark.parametrize("pump", ["splice", "buffered"])
def test_a_disk_that_fills_in_the_middle_ends_the_push_and_keeps_what_is_there(
    processes: Processes, area: Path, disk: SmallDisk, pump: str
) -> None:
    receiver = receiver_on(disk, processes, area, "--pump", pump)
    source = random_file(area / "source", 24 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "32M")
    wait_until(lambda: receiver.staged > 9 * MIB, "the push is under way")
    filler = disk.fill()
    assert push.ends(73, "failed")["error"]["code"] == "no-space"
    assert receiver.published == []
    assert len(receiver.partials) == 1
    held = receiver.held()
    assert 8 * MIB <= held < 24 * MIB
    filler.unlink()
    end = processes.push(source, receiver.address, "--resume").ends(0, "done")
    assert (end["resumed_bytes"], end["sent_bytes"]) == (held, 24 * MIB - held)
    assert receiver.published == ["source"]
    assert receiver.partials == []
    assert sha256_of(receiver.folder / "source") == sha256_of(source)


def test_a_stream_that_outgrows_the_disk_ends_with_73_and_the_receiver_lives_on(
    processes: Processes, full: Receiver, area: Path
) -> None:
    source = random_file(area / "endless", 48 * MIB)
    with source.open("rb") as content:
        push = processes.push("-", full.address, "--name", "endless", stdin=content)
        assert push.ends(73, "failed")["error"]["code"] == "no-space"
    with source.open("rb") as content:
        put = processes.curl("-T", "-", f"{full.url}/files/endless", stdin=content)
        assert put.status == 507
    assert full.published == []
    assert full.process.running
    assert full.ask("GET", "/v1/hello")[0] == 200


def test_two_pushes_that_fit_only_one_by_one_are_not_both_begun(
    processes: Processes, full: Receiver, area: Path
) -> None:
    first, second = (random_file(area / name, 20 * MIB) for name in ("first", "second"))
    push = processes.push(first, full.address, "--limit-rate", "16M")
    wait_until(lambda: full.staged > 0, "the first is under way")
    assert processes.push(second, full.address).ends(73)["error"]["code"] == "no-space"
    push.ends(0, "done")
    assert full.published == ["first"]
    assert os.path.getsize(full.folder / "first") == 20 * MIB
