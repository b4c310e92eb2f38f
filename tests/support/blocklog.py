"""What reached a disk, in order, and what a power cut at any moment of that leaves of it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

DISK: Final = "disk"
"""The only file of the filesystem that records."""

WRITE: Final = 1
FLUSH: Final = 2
_HEAD: Final = struct.Struct("<BQQ")
HEAD_SIZE: Final = _HEAD.size


def encode(kind: int, offset: int, length: int) -> bytes:
    """What stands in the log before the ``length`` bytes of a write at ``offset``; a flush has none."""
    return _HEAD.pack(kind, offset, length)


class Manner(Enum):
    """What becomes of the writes that no flush has followed. A disk's cache may do any of these."""

    NONE = "lost"
    ALL = "kept"
    SOME = "some kept"
    TORN = "torn"


class Entry(NamedTuple):
    """A write, or a flush; its bytes are those of the log from ``start`` to ``end``."""

    kind: int
    offset: int
    start: int
    end: int


@dataclass(frozen=True)
class Cut:
    """The power is cut after the first ``moment`` entries of a log."""

    moment: int
    manner: Manner
    seed: int


class Log:
    """The log that :mod:`support.recording_disk` wrote."""

    def __init__(self, path: Path) -> None:
        self._bytes = path.read_bytes()
        self.entries = list(self._read())
        self._ends = [entry.end for entry in self.entries]

    def _read(self) -> Iterator[Entry]:
        at = 0
        while at < len(self._bytes):
            kind, offset, length = _HEAD.unpack_from(self._bytes, at)
            start = at + HEAD_SIZE
            at = start + length
            yield Entry(kind, offset, start, at)

    def moment_at(self, size: int) -> int:
        """How many entries there were when the log had this many bytes."""
        return bisect_right(self._ends, size)

    def position(self, moment: int) -> int:
        """The opposite: how many bytes the log had then."""
        return self._ends[moment - 1] if moment else 0

    def volatile(self, moment: int) -> list[Entry]:
        """The writes that no flush has followed until then."""
        first = moment
        while first and self.entries[first - 1].kind != FLUSH:
            first -= 1
        return self.entries[first:moment]

    def image(self, base: Path, path: Path, cut: Cut) -> None:
        """Make of the disk that was ``base`` at first what it is after the cut."""
        subprocess.run(["cp", "--sparse=always", base, path], check=True)
        volatile = self.volatile(cut.moment)
        with path.open("r+b", buffering=0) as image:
            for entry in self.entries[: cut.moment - len(volatile)]:
                self._write(image.fileno(), entry.offset, entry.start, entry.end)
            for offset, start, end in _survivors(volatile, cut.manner, random.Random(cut.seed)):
                self._write(image.fileno(), offset, start, end)

    def _write(self, fd: int, offset: int, start: int, end: int) -> None:
        with memoryview(self._bytes) as view:
            os.pwrite(fd, view[start:end], offset)


def _survivors(volatile: list[Entry], manner: Manner, dice: random.Random) -> Iterator[tuple[int, int, int]]:
    """Where on the disk, and from where to where in the log."""
    if manner is Manner.NONE:
        return
    luck = 1.0 if manner is Manner.ALL else dice.choice([0.1, 0.5, 0.9])
    sector = dice.choice([512, 4096])
    for entry in volatile:
        if dice.random() >= luck:
            continue
        if manner is not Manner.TORN or dice.random() < 0.5:
            yield entry.offset, entry.start, entry.end
            continue
        for start in range(entry.start, entry.end, sector):
            if dice.random() < 0.5:
                yield entry.offset + start - entry.start, start, min(start + sector, entry.end)
