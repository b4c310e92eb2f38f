"""A file far larger than its data: only the data travels, also after a kill."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from support.content import MIB
from support.processes import Processes, Receiver, wait_until

GIB = 1024 * MIB
LENGTH = 100 * GIB + 12345
EXTENT = 64 * MIB
FRONT = 3 * EXTENT
"""Bytes of data at the beginning; the last two extents, of which one is short, are data too."""

BACK = LENGTH - (LENGTH // EXTENT - 1) * EXTENT
DATA = FRONT + BACK


def data_in(file: BinaryIO) -> list[range]:
    """Where the file has data, in whole blocks of 1 MiB."""
    found: list[range] = []
    size = os.fstat(file.fileno()).st_size
    at = 0
    while at < size:
        try:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        found.append(range(start // MIB, -(-at // MIB)))
    return found


def assert_same(one: Path, other: Path) -> None:
    """Byte for byte, without reading what is a hole in both."""
    with one.open("rb") as left, other.open("rb") as right:
        assert os.fstat(left.fileno()).st_size == os.fstat(right.fileno()).st_size
        blocks = {block for file in (left, right) for stretch in data_in(file) for block in stretch}
        for block in sorted(blocks):
            at = block * MIB
            assert os.pread(left.fileno(), MIB, at) == os.pread(right.fileno(), MIB, at), f"differ at {at}"


@pytest.fixture
def source(area: Path) -> Path:
    path = area / "sparse.img"
    with path.open("wb") as file:
        file.truncate(LENGTH)
        for start, size in ((0, FRONT), (LENGTH - BACK, BACK)):
            file.seek(start)
            for _ in range(0, size - MIB, MIB):
                file.write(os.urandom(MIB))
            file.write(os.urandom(size % MIB or MIB))
        # A megabyte in the middle of nowhere.
        file.seek(50 * GIB + 3 * MIB)
        file.write(os.urandom(MIB))
    if path.stat().st_blocks * 512 > 2 * DATA:
        pytest.skip("this filesystem has no sparse files")
    return path


def test_holes_smaller_than_an_extent_survive_a_kill_and_a_resume(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    path = area / "disk.img"
    with path.open("wb") as file:
        file.truncate(96 * MIB)
        for at in range(0, 96 * MIB, MIB):
            file.seek(at)
            file.write(os.urandom(64 << 10))
    taken = path.stat().st_blocks
    if taken * 512 > 12 * MIB:
        pytest.skip("this filesystem has no sparse files")
    push = processes.push(path, receiver.address, "--resume", "--limit-rate", "40M")
    wait_until(lambda: receiver.staged > 30 * MIB or not push.running, "a third has arrived")
    push.kill()
    receiver.kill()
    receiver.restart()
    receiver.await_silence()
    end = processes.push(path, receiver.address, "--resume").ends(0, "done")
    assert end["resumed_bytes"] > 0
    arrived = receiver.folder / path.name
    assert arrived.stat().st_blocks <= taken + 64
    assert_same(path, arrived)


@pytest.mark.parametrize("victim", ["sender", "receiver"])
def test_the_partial_of_a_100_gib_sparse_file_is_continued_for_no_more_than_its_data(
    processes: Processes, receiver: Receiver, source: Path, victim: str
) -> None:
    arguments = (source, receiver.address, "--resume", "--streams", "2")
    push = processes.push(*arguments, "--limit-rate", "400M")
    wait_until(lambda: receiver.staged > FRONT - EXTENT // 2 or not push.running, "half has arrived")
    push.kill()
    if victim == "receiver":
        receiver.kill()
        receiver.restart()
    receiver.await_silence()
    missing = LENGTH - receiver.held()
    sent = EXTENT + DATA  # the megabyte in the middle travels with its extent
    assert EXTENT <= missing < sent
    # Of what had arrived, at most one extent a stream was not whole.
    assert receiver.staged <= sent - missing + 2 * EXTENT
    end = processes.push(*arguments).ends(0, "done")
    assert end["size"] == LENGTH
    assert end["resumed_bytes"] == LENGTH - missing
    assert end["sent_bytes"] == missing
    assert receiver.published == [source.name]
    assert receiver.partials == []
    arrived = receiver.folder / source.name
    assert arrived.stat().st_blocks * 512 <= sent + MIB
    assert_same(source, arrived)
