"""Two runs of one push at once, and what dies or comes while a commit is under way."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from support import slow_disk
from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver, wait_until

EXTENT = 4 * MIB
SIZE = 40 * MIB + 4321
SMALL = 1000


class SlowDisk:
    """The gate of :mod:`support.slow_disk`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reached = path.with_name(path.name + ".reached")

    @property
    def program(self) -> list[str]:
        return [sys.executable, slow_disk.__file__, str(self._path)]

    def shut(self) -> None:
        self._path.touch()

    def open(self) -> None:
        self._path.unlink()

    def await_commit(self) -> None:
        """Wait until a commit is held up."""
        wait_until(self._reached.exists, "a commit has begun")


@pytest.fixture
def disk(area: Path) -> SlowDisk:
    return SlowDisk(area / "gate")


@pytest.fixture
def slow(processes: Processes, area: Path, disk: SlowDisk) -> Receiver:
    """A receiver on a slow disk."""
    return processes.receiver(area / "inbox", area / "receiver-state", program=disk.program)


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", SIZE)


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_of_two_overlapping_runs_the_newer_finishes_and_the_older_exits_with_75(
    processes: Processes, receiver: Receiver, source: Path, flags: tuple[str, ...]
) -> None:
    older = processes.push(source, receiver.address, *flags, "--limit-rate", "4M")
    wait_until(lambda: receiver.staged > EXTENT + MIB, "the older run is under way")
    newer = processes.push(source, receiver.address, *flags)
    assert older.ends(75, "failed")["error"]["code"] == "superseded"
    end = newer.ends(0, "done")
    assert end["resumed_bytes"] + end["sent_bytes"] == SIZE
    assert (end["resumed_bytes"] > 0) == bool(flags)
    assert receiver.published == [source.name]
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    assert receiver.partials == []


def test_many_overlapping_runs_leave_one_winner_and_one_file(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    runs = [processes.push(source, receiver.address, "--resume", "--limit-rate", "64M") for _ in range(4)]
    codes = [run.wait() for run in runs]
    assert set(codes) <= {0, 75}, codes
    assert 0 in codes
    # Who comes when the file is there already finds it identical.
    assert [run.last["event"] for run in runs].count("done") == 1, codes
    assert receiver.published == [source.name]
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    assert receiver.partials == []


@pytest.mark.parametrize("size", [SMALL, EXTENT, SIZE])
@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_second_run_that_comes_during_the_commit_makes_no_second_file(
    processes: Processes,
    slow: Receiver,
    disk: SlowDisk,
    area: Path,
    size: int,
    flags: tuple[str, ...],
) -> None:
    source = random_file(area / "source", size)
    disk.shut()
    first = processes.push(source, slow.address, *flags)
    disk.await_commit()
    second = processes.push(source, slow.address, *flags)
    wait_until(lambda: slow.scrape()["tdx_connections_active"] == 2, "the second run has connected")
    for _ in range(20):  # the second's first request is dealt with before the last of these
        slow.ask("GET", "/v1/hello")
    disk.open()
    codes = sorted([first.wait(), second.wait()])
    assert codes in ([0, 0], [0, 75]), (first.log(), second.log())
    assert slow.published == [source.name]
    assert sha256_of(slow.folder / source.name) == sha256_of(source)
    assert slow.partials == []


@pytest.mark.parametrize("size", [SMALL, SIZE])
def test_a_sender_that_dies_during_the_commit_finds_the_file_there(
    processes: Processes, slow: Receiver, disk: SlowDisk, area: Path, size: int
) -> None:
    source = random_file(area / "source", size)
    disk.shut()
    first = processes.push(source, slow.address, "--resume")
    disk.await_commit()
    first.kill()
    again = processes.push(source, slow.address, "--resume")
    wait_until(lambda: slow.scrape()["tdx_connections_active"] == 2, "the second run has connected")
    assert slow.published == []
    disk.open()
    end = again.ends(0)
    assert end["event"] in {"done", "identical"}
    assert slow.published == [source.name]
    assert sha256_of(slow.folder / source.name) == sha256_of(source)
    assert slow.partials == []


@pytest.mark.parametrize("size", [SMALL, SIZE])
def test_a_receiver_that_dies_during_the_commit_ends_it_after_its_restart(
    processes: Processes, slow: Receiver, disk: SlowDisk, area: Path, size: int
) -> None:
    source = random_file(area / "source", size)
    disk.shut()
    push = processes.push(source, slow.address)
    disk.await_commit()
    slow.kill()
    assert slow.published == []
    disk.open()
    slow.restart()
    end = push.ends(0, "done")
    assert end["sent_bytes"] <= size + SMALL
    assert slow.published == [source.name]
    assert sha256_of(slow.folder / source.name) == sha256_of(source)
    assert slow.partials == []


@pytest.mark.parametrize("size", [SMALL, SIZE])
def test_a_receiver_that_is_stopped_during_the_commit_finishes_it_first(
    processes: Processes, slow: Receiver, disk: SlowDisk, area: Path, size: int
) -> None:
    source = random_file(area / "source", size)
    disk.shut()
    push = processes.push(source, slow.address)
    disk.await_commit()
    slow.process.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in slow.process.stderr, "the receiver stops")
    disk.open()
    assert slow.process.wait() == 0, slow.process.log()
    slow.restart()
    assert push.ends(0)["event"] in {"done", "identical"}
    assert slow.published == [source.name]
    assert sha256_of(slow.folder / source.name) == sha256_of(source)
    assert slow.partials == []
