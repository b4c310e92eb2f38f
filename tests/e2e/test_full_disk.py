"""Disks that are full, or become so, on real filesystems: refused early where that can be known, a clean end
where it cannot, and nothing lost of what was there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.disks import LoopDisk, await_held, receiver_on, small_btrfs, small_ext4
from support.processes import PROGRAM, Curl, Processes, Push, Receiver, wait_until
from support.spaces import SmallDisk, small_disk

DISK = 64 * MIB
ONCE = ("--retries", "1")


@pytest.fixture
def ext4(processes: Processes, area: Path) -> LoopDisk:
    return small_ext4(processes, area / "disk", DISK)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, processes: Processes, area: Path) -> SmallDisk:
    if request.param == "tmpfs":
        return small_disk(processes, area / "disk", DISK)
    return small_ext4(processes, area / "disk", DISK)


def some_files(area: Path, count: int = 20) -> Path:
    folder = area / "many"
    folder.mkdir()
    for number in range(count):
        random_file(folder / f"{number}", 500)
    return folder


def take_inodes(disk: SmallDisk) -> list[Path]:
    """Empty files until there can be no more."""
    fillers: list[Path] = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            filler = disk.seen / f"filler{number}"
            filler.touch()
            fillers.append(filler)
    return fillers


def test_a_disk_that_is_full_takes_nothing_says_so_and_is_left_as_it_was(
    processes: Processes, area: Path, disk: SmallDisk
) -> None:
    receiver = receiver_on(disk, processes, area)
    filler = disk.fill()
    large, small = random_file(area / "large", 12 * MIB), random_file(area / "small", 1000)
    for source in (large, small):
        end = processes.push(source, receiver.address).ends(73, "failed")
        assert (end["error"]["code"], end["sent_bytes"]) == ("no-space", 0)
        size = source.stat().st_size
        assert end["error"]["message"] == f"{source.name}: needs {size} bytes, and 0 may be used"
        put = processes.curl("-T", source, f"{receiver.url}/files/{source.name}")
        assert (put.status, put.body["needed"], put.body["free"]) == (507, size, 0)
        assert put.fields["connection"] == "close"
    assert processes.push("-r", some_files(area), receiver.address).ends(73)["failed"] == 20
    with large.open("rb") as content:
        stream = processes.push("-", receiver.address, "--name", "stream", stdin=content)
        assert stream.ends(73)["error"]["code"] == "no-space"
    # A folder of a tree takes no content, and a tmpfs has room for it.
    assert set(receiver.published) <= {"many"}
    assert receiver.partials == []
    assert not any("received_bytes" in name and value for name, value in receiver.scrape().items())
    filler.unlink()
    processes.push(large, receiver.address).ends(0, "done")
    assert processes.push("-r", area / "many", receiver.address).ends(0)["done"] == 20
    assert sha256_of(receiver.folder / "large") == sha256_of(large)


def test_an_upload_goes_on_in_the_space_set_aside_for_it_while_others_fill_the_disk(
    processes: Processes, area: Path, ext4: LoopDisk
) -> None:
    receiver = receiver_on(ext4, processes, area)
    source = random_file(area / "source", 24 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "24M", *ONCE)
    await_held(receiver)
    push.signal(signal.SIGSTOP)
    filler = ext4.fill()
    push.signal(signal.SIGCONT)
    code = push.wait()
    assert push.last["sent_bytes"] == 24 * MIB, "every byte had its place"
    if code:  # ext4 had not even the block left that publishing takes
        message = push.ends(73, "failed")["error"]["message"]
        assert message.startswith("source: cannot be published: no space left")
        assert receiver.published == []
        assert receiver.held() == 24 * MIB
        filler.unlink()
        assert processes.push(source, receiver.address, "--resume").ends(0, "done")["sent_bytes"] == 0
    assert sha256_of(receiver.folder / "source") == sha256_of(source)
    assert receiver.partials == []


@pytest.mark.parametrize("sender", ["tdx", "curl"])
def test_a_stream_that_meets_a_disk_that_others_have_filled_ends_and_leaves_nothing(
    processes: Processes, area: Path, ext4: LoopDisk, sender: str
) -> None:
    receiver = receiver_on(ext4, processes, area)
    source = random_file(area / "source", 32 * MIB)
    reading, writing = os.pipe()
    started: Push | Curl
    if sender == "tdx":
        started = processes.push("-", receiver.address, "--name", "stream", *ONCE, stdin=reading)
    else:
        started = processes.curl("-T", "-", f"{receiver.url}/files/stream", stdin=reading)
    os.close(reading)
    content = source.read_bytes()
    with open(writing, "wb", buffering=0) as pipe:
        pipe.write(content[: 17 * MIB])
        wait_until(lambda: receiver.staged > 0, "the stream is under way")
        filler = ext4.fill()
        with contextlib.suppress(BrokenPipeError):
            pipe.writelines(content for _ in range(4))
    if isinstance(started, Curl):
        assert started.status == 507
    else:
        started.ends(73, "failed")
    wait_until(lambda: receiver.partials == [], "nothing of it is kept")
    assert receiver.published == []
    filler.unlink()
    with source.open("rb") as again:
        processes.push("-", receiver.address, "--name", "stream", stdin=again).ends(0, "done")
    assert sha256_of(receiver.folder / "stream") == sha256_of(source)


def test_the_reserve_is_left_alone(processes: Processes, area: Path, ext4: LoopDisk) -> None:
    reserve = 24 * MIB
    receiver = receiver_on(ext4, processes, area, reserve=reserve)
    room = ext4.free - reserve
    end = processes.push(random_file(area / "over", room + MIB), receiver.address).ends(73)
    assert end["sent_bytes"] == 0
    processes.push(random_file(area / "fits", room - 8 * MIB), receiver.address).ends(0, "done")
    assert ext4.free >= reserve
    with random_file(area / "endless", 48 * MIB).open("rb") as content:
        push = processes.push("-", receiver.address, "--name", "endless", stdin=content)
        lowest = ext4.free
        while push.running:
            lowest = min(lowest, ext4.free)
    assert push.ends(73)["error"]["code"] == "no-space"
    assert lowest >= reserve - 16 * MIB, "a stream is held against it every 16 MiB"
    assert receiver.published == ["fits"]


@pytest.mark.parametrize("left", [0, 4])
def test_a_disk_without_inodes_is_a_full_one(processes: Processes, area: Path, left: int) -> None:
    disk = small_ext4(processes, area / "disk", DISK, "-N", "48")
    receiver = receiver_on(disk, processes, area)
    fillers = take_inodes(disk)
    for _ in range(left):  # four are enough to gather an upload, and none is left to publish it
        fillers.pop().unlink()
    source = random_file(area / "source", 12 * MIB)
    end = processes.push(source, receiver.address, *ONCE).ends(73, "failed")
    assert end["error"]["code"] == "no-space"
    assert "(or no inodes)" in end["error"]["message"]
    assert (receiver.published, len(receiver.partials)) == ([], 1 if left else 0)
    assert end["sent_bytes"] == (12 * MIB if left else 0)
    if not left:
        assert processes.push("-r", some_files(area), receiver.address, *ONCE).ends(73)["failed"] == 20
        assert processes.curl("-T", source, f"{receiver.url}/files/put").status == 507
    while fillers:
        fillers.pop().unlink()
    end = processes.push(source, receiver.address, "--resume").ends(0, "done")
    assert end["resumed_bytes"] == (12 * MIB if left else 0)
    assert sha256_of(receiver.folder / "source") == sha256_of(source)


def test_space_that_was_set_aside_is_given_back_by_whoever_cancels_or_gives_up(
    processes: Processes, area: Path, ext4: LoopDisk
) -> None:
    receiver = receiver_on(ext4, processes, area)
    before = ext4.free

    def given_back() -> bool:
        ext4.sync()
        return ext4.free >= before - 64 * 1024

    def create(name: str) -> str:
        fields = {"Upload-Complete": "?0", "Upload-Length": str(32 * MIB)}
        status, answer, _ = receiver.ask("POST", f"/files/{name}", fields)
        assert status == 201
        assert ext4.free <= before - 32 * MIB
        return answer["location"]

    assert receiver.ask("DELETE", create("cancelled"))[0] == 204
    wait_until(given_back, "a cancelled upload takes no space")
    create("abandoned")
    receiver.stop()
    gc = processes.run("gc", [*ext4.prefix, *PROGRAM, "gc", "--dir", str(ext4.path / "inbox")])
    assert gc.wait() == 0
    assert not given_back(), "an upload of this moment is kept"
    gc = processes.run(
        "gc", [*ext4.prefix, *PROGRAM, "gc", "--older-than", "0", "--dir", str(ext4.path / "inbox")]
    )
    assert gc.wait() == 0
    wait_until(given_back, "an expired upload takes no space")


def test_a_quota_of_the_filesystem_ends_a_push_with_its_name_and_keeps_what_is_there(
    processes: Processes, area: Path
) -> None:
    disk = small_btrfs(processes, area / "disk", 2 * DISK)
    inbox = str(disk.path / "inbox")
    for command in (
        ["subvolume", "create", inbox],
        ["quota", "enable", str(disk.path)],
        ["qgroup", "limit", str(16 * MIB), inbox],
    ):
        done = subprocess.run([*disk.prefix, "btrfs", *command], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no quotas: {done.stderr.strip()}")
    receiver = receiver_on(disk, processes, area)
    source = random_file(area / "source", 24 * MIB)
    end = processes.push(source, receiver.address, *ONCE).ends(73, "failed")
    assert end["error"]["code"] == "no-space"
    assert end["error"]["message"].endswith("the receiver's quota on its disk is used up")
    assert receiver.published == []
    held = receiver.held()
    assert 0 < held < 24 * MIB
    subprocess.run([*disk.prefix, "btrfs", "qgroup", "limit", "none", inbox], check=True)
    end = processes.push(source, receiver.address, "--resume").ends(0, "done")
    assert end["resumed_bytes"] == held
    assert sha256_of(receiver.folder / "source") == sha256_of(source)


@pytest.mark.parametrize("pump", ["splice", "buffered"])
def test_a_file_larger_than_the_receiver_may_write_is_refused_for_good(
    processes: Processes, area: Path, pump: str
) -> None:
    receiver = processes.receiver(
        area / "inbox",
        area / "receiver-state",
        *("--pump", pump),
        program=["prlimit", f"--fsize={10 * MIB}", "--", *PROGRAM],
    )
    source = random_file(area / "large", 24 * MIB)
    end = processes.push(source, receiver.address).ends(73, "failed")
    assert end["error"]["code"] == "too-large"
    assert "so large a file is not taken" in end["error"]["message"]
    assert processes.curl("-T", source, f"{receiver.url}/files/put").status == 413
    assert receiver.published == []
    processes.push(random_file(area / "small", 4 * MIB), receiver.address).ends(0, "done")
    assert receiver.published == ["small"]


def test_a_folder_that_is_removed_under_a_push_ends_both(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    source = random_file(area / "source", 24 * MIB)
    push = processes.push(source, receiver.address, "--limit-rate", "8M", "--retries", "0")
    wait_until(lambda: receiver.staged > 0, "the push is under way")
    subprocess.run(["rm", "-rf", str(receiver.folder)], check=True)
    assert push.wait() in (69, 73, 74, 75), push.log()
    assert receiver.process.wait() == 78
    assert "has been removed; make it again and restart the receiver" in receiver.process.stderr
    assert not receiver.folder.exists()
