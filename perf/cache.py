"""The state of the page cache and of memory before a run, set on purpose."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from perf.content import MIB, data_ranges

QUIET_BYTES: Final = 16 * MIB
"""Dirty or in writeback: what an idle system has."""


def files_of(source: Path) -> Iterator[Path]:
    """The file itself, or every file of a folder."""
    if source.is_dir():
        yield from (path for path in sorted(source.rglob("*")) if path.is_file())
    else:
        yield source


def read_once(source: Path) -> None:
    """Bring a file, or all files of a folder, into the page cache. Holes are not read."""
    buffer = bytearray(MIB)
    for path in files_of(source):
        with path.open("rb", buffering=0) as file:
            for start, end in data_ranges(file.fileno()):
                file.seek(start)
                while file.tell() < end and file.readinto(buffer):
                    pass


def drop(source: Path) -> None:
    """Write a file, or all files of a folder, to the disk and out of the page cache. No effect on a tmpfs."""
    for path in files_of(source):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path, size: int) -> None:
    """Write and unlink a file of ``size`` in ``folder``, which is on a tmpfs, so that the run that follows
    does not pay for pages that a virtual machine had given back to its host."""
    path = folder / f"warm-{os.getpid()}"
    block = bytes(8 * MIB)
    try:
        with path.open("wb", buffering=0) as file:
            left = size
            while left:
                left -= file.write(block[: min(left, len(block))])
    finally:
        path.unlink(missing_ok=True)


def settle(patience: float = 30.0) -> None:
    """Write everything back, so that no run pays for an earlier one's writes. Somebody else who goes on
    writing is not waited for any longer than ``patience`` seconds."""
    os.sync()
    deadline = time.monotonic() + patience
    while _unwritten() > QUIET_BYTES and time.monotonic() < deadline:
        time.sleep(0.1)
        os.sync()


def _unwritten() -> int:
    found = re.findall(r"^(?:Dirty|Writeback):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return sum(int(each) for each in found) * 1024
