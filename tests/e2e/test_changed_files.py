"""The real command, and a receiver that has an earlier version: every byte on the wire is counted."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.disks import receiver_on, small_btrfs
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.proxy import CuttingProxy, mistreating
from support.soak import Soak

PAGE = 4096
SMALL = 64 * MIB
LARGE = 3072 * MIB
ARRIVED = 'tdx_received_bytes_total{protocol="tdx"}'

Change = Callable[[Path, random.Random], None]


def in_one_run(path: Path, dice: random.Random) -> None:
    size = path.stat().st_size
    write(path, dice.randrange(size - size // 100), size // 100, dice)


def in_pages(path: Path, dice: random.Random) -> None:
    pages = path.stat().st_size // PAGE
    for page in dice.sample(range(pages), pages // 100):
        write(path, page * PAGE, PAGE, dice)


def appended(path: Path, dice: random.Random) -> None:
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(dice.randbytes(size // 100))


def cut(path: Path, _dice: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 99 // 100)


def write(path: Path, offset: int, size: int, dice: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(dice.randbytes(size))


CHANGES = [in_one_run, in_pages, appended, cut]


def both_versions(area: Path, receiver: Receiver, size: int) -> Path:
    """A file that the receiver has, too."""
    source = random_file(area / "disk.img", size)
    shutil.copyfile(source, receiver.folder / "disk.img")
    return source


def on_the_wire(proxy: CuttingProxy) -> int:
    return proxy.forwarded + proxy.returned


def pushed_over(
    processes: Processes, receiver: Receiver, source: Path, *flags: str
) -> tuple[dict[str, object], float]:
    """The result of a push, and what share of the file was on the wire, in both directions."""
    with mistreating(receiver.port, lambda _: None) as proxy:
        push = processes.push(source, str(proxy.peer), "--conflict", "overwrite", *flags)
        assert push.wait(600) == 0, push.log()
        assert on_the_wire(proxy) > push.last["sent_bytes"]
        return push.last, on_the_wire(proxy) / source.stat().st_size


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_hundredth_that_changed_at_most_two_hundredths_travel(
    processes: Processes, receiver: Receiver, area: Path, change: Change, soak: Soak
) -> None:
    size = soak.rounds(SMALL, LARGE)
    source = both_versions(area, receiver, size)
    change(source, soak.dice)
    end, share = pushed_over(processes, receiver, source)
    soak.tell(f"{size // MIB} MiB, {change.__name__}: {share:.3%} on the wire")
    assert end["event"] == "done"
    assert share <= 0.02
    assert sha256_of(receiver.folder / "disk.img") == sha256_of(source)
    assert receiver.scrape()["tdx_reused_bytes_total"] == end["reused_bytes"]
    assert receiver.partials == []


def test_what_has_not_changed_costs_next_to_nothing(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = both_versions(area, receiver, SMALL)
    end, share = pushed_over(processes, receiver, source)
    assert (end["event"], end["sent_bytes"]) == ("identical", 0)
    assert share < 0.001


def test_the_whole_of_it_is_sent_on_request(processes: Processes, receiver: Receiver, area: Path) -> None:
    source = both_versions(area, receiver, SMALL)
    in_pages(source, random.Random(1))
    end, share = pushed_over(processes, receiver, source, "--whole")
    assert (end["sent_bytes"], end["reused_bytes"]) == (SMALL, 0)
    assert share > 1


def test_people_are_told_what_was_sent_and_what_was_there(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = both_versions(area, receiver, SMALL)
    write(source, 5 * MIB, MIB, random.Random(1))
    push = processes.run("push", [*PROGRAM, "push", str(source), receiver.address, "--conflict", "overwrite"])
    assert push.wait() == 0, push.log()
    assert push.stdout.endswith(", 1.0 MiB sent, 63.0 MiB taken from the earlier version\n")


@pytest.mark.parametrize("victim", ["receiver", "sender"])
def test_a_kill_leaves_the_old_file_and_a_resume_sends_what_is_left(
    processes: Processes, receiver: Receiver, area: Path, victim: str
) -> None:
    source = both_versions(area, receiver, SMALL)
    old = sha256_of(source)
    in_pages(source, random.Random(1))
    flags = ("--conflict", "overwrite", "--limit-rate", "200K")
    push = processes.push(source, receiver.address, *flags, "--retries", "0")
    wait_until(lambda: receiver.scrape().get(ARRIVED, 0) > 0, "blocks arrive")
    if victim == "receiver":
        receiver.kill()
        assert push.wait() == 75, push.log()
        receiver.restart()
    else:
        push.signal(signal.SIGKILL)
        push.wait()
        receiver.await_silence()
    assert sha256_of(receiver.folder / "disk.img") == old
    end, share = pushed_over(processes, receiver, source, "--resume")
    assert end["event"] == "done"
    assert share <= 0.02
    assert sha256_of(receiver.folder / "disk.img") == sha256_of(source)
    assert receiver.partials == []


def test_on_a_filesystem_that_shares_blocks_only_what_changed_takes_room(
    processes: Processes, area: Path
) -> None:
    disk = small_btrfs(processes, area / "disk", 320 * MIB)
    receiver = receiver_on(disk, processes, area)
    source = both_versions(area, receiver, 96 * MIB)
    disk.sync()
    # For the space that another copy would take there is a promise; for what shares its blocks, no need.
    before = disk.free
    in_pages(source, random.Random(1))
    keep = receiver.folder / "kept.img"
    keep.hardlink_to(receiver.folder / "disk.img")
    end, share = pushed_over(processes, receiver, source)
    disk.sync()
    assert share <= 0.02, json.dumps(end)
    assert sha256_of(receiver.folder / "disk.img") == sha256_of(source)
    assert before - disk.free < 24 * MIB
