"""What every filesystem that people receive into has to give, on the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.disks import await_held, receiver_on, small_btrfs, small_ext4
from support.processes import PROGRAM, Processes
from support.spaces import small_disk

MAKE = {"tmpfs": small_disk, "ext4": small_ext4, "btrfs": small_btrfs}


@pytest.mark.parametrize("kind", MAKE)
def test_a_partial_is_found_again_by_its_sender_and_by_gc(
    processes: Processes, area: Path, kind: str
) -> None:
    disk = MAKE[kind](processes, area / "disk", 160 * MIB)
    receiver = receiver_on(disk, processes, area)
    source = random_file(area / "source", 24 * MIB)

    def interrupted() -> None:
        push = processes.push(source, receiver.address, "--limit-rate", "24M")
        await_held(receiver)
        push.kill()

    interrupted()
    end = processes.push(source, receiver.address, "--resume").ends(0, "done")
    assert end["resumed_bytes"] > 0
    assert end["resumed_bytes"] + end["sent_bytes"] == 24 * MIB
    assert sha256_of(receiver.folder / "source") == sha256_of(source)
    (receiver.folder / "source").unlink()
    interrupted()
    receiver.kill()
    gc = [*PROGRAM, "gc", "--json", "--older-than", "0", "--dir", str(disk.path / "inbox")]
    removed = processes.run("gc", [*disk.prefix, *gc])
    assert removed.wait() == 0
    assert json.loads(removed.stdout.splitlines()[-1])["uploads"] == 1
    assert receiver.partials == []
