"""Holes for zeros: what a sparse source had no blocks for shall take no blocks here either."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final

from tdx.model import Span
from tdx.store.reading import BUFFER, data_in, read_full
from tdx.store.syscalls import System

BLOCK: Final = 4096
"""Bytes of the smallest hole, and what it is aligned to: a block of most filesystems."""

_ZEROS: Final = bytearray(BLOCK)


def punch_zeros(system: System, fd: int) -> None:
    """Turn every run of whole, aligned blocks of zeros into a hole. What is a hole already is not even read.

    Nothing that can be read in the file changes. It is a favour: where the filesystem has no holes, or
    anything else goes wrong, the file just takes more room, and what is wrong with the disk its next
    sync tells.
    """
    with contextlib.suppress(OSError):
        size = system.fstat(fd).st_size
        if size < BLOCK:
            return
        for data in data_in(system, fd, Span(0, size)):
            start, end = -(-data.start // BLOCK) * BLOCK, data.end // BLOCK * BLOCK
            if start < end:
                for first, last in _runs_of_zeros(system, fd, start, end):
                    _punch(system, fd, first, last - first)


def _runs_of_zeros(system: System, fd: int, start: int, end: int) -> Generator[tuple[int, int]]:
    """The runs of blocks of zeros between two boundaries of blocks. OSError."""
    buffer = bytearray(min(BUFFER, end - start))
    run = -1
    for at in range(start, end, BUFFER):
        view = memoryview(buffer)[: min(BUFFER, end - at)]
        if read_full(system, fd, view, at) < len(view):
            return
        for block in range(0, len(view), BLOCK):
            if buffer[block : block + BLOCK] == _ZEROS:
                if run < 0:
                    run = at + block
            elif run >= 0:
                yield run, at + block
                run = -1
    if run >= 0:
        yield run, end


def _punch(system: System, fd: int, offset: int, length: int) -> None:
    while True:
        try:
            return system.punch_hole(fd, offset, length)
        except InterruptedError:
            continue
