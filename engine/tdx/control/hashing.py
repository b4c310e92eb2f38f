"""The roots of files that the receiver may have already: they are read, and nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tdx.control.items import Item
from tdx.control.workers import Workers
from tdx.data.port import Cancel
from tdx.data.source import Source, settled
from tdx.errors import Interrupted, TdxError
from tdx.integrity import Root, extent_count, extent_size_for, extent_span, extents_of, zero_digest
from tdx.store.digestlog import DigestLog

LANES: Final = 2
"""Files that are read at a time."""


@dataclass(frozen=True, slots=True)
class Hashed:
    """What was read of a file: its ``status`` all the while, and its written ``root``. ``settled``: any
    change since shows in the status."""

    status: os.stat_result
    root: str
    settled: bool


async def hash_all(
    workers: Workers, items: Sequence[Item], state: Path, read: Callable[[int], None]
) -> dict[Item, Hashed]:
    """Read these files; those that could not be read, or changed meanwhile, are missing. ``state`` is
    the folder with the digest logs; ``read(n)`` is told of bytes, in a worker's thread."""
    cancel, lock = Cancel(), threading.Lock()
    left: Iterator[Item] = iter(items)
    hashed: dict[Item, Hashed] = {}

    def lane() -> None:
        while True:
            with lock:
                item = next(left, None)
            if item is None:
                return
            try:
                hashed[item] = _hash(item.path, state, cancel, read)
            except Interrupted:
                raise
            except TdxError:
                continue

    async with asyncio.TaskGroup() as group:
        for _ in range(min(LANES, len(items))):
            group.create_task(workers.until(cancel.stop, lane))
    return hashed


def _hash(path: str, state: Path, cancel: Cancel, read: Callable[[int], None]) -> Hashed:
    now = time.time()
    with Source.open(path) as source:
        size = extent_size_for(source.length)
        count = extent_count(source.length, size)
        digests: dict[int, bytes] = {}
        # What is found out of a large file is known to the push, too, should it have to be sent.
        with _log_of(source, size, state, now) if count > 1 else contextlib.nullcontext() as log:
            if log is not None:
                for hole in source.holes(size):
                    for index in extents_of(hole, size):
                        digests[index] = zero_digest(len(extent_span(index, source.length, size)))
                digests.update(log.digests())
            cancel.check()
            unknown = [index for index in range(count) if index not in digests]
            for index, digest in source.hash_extents(unknown, size):
                cancel.check()
                digests[index] = digest
                if log is not None:
                    log.append(index, digest, trusted=not source.young(now))
                read(len(extent_span(index, source.length, size)))
        ordered = [digests[index] for index in range(count)]
        source.check_unchanged(ordered, size, cancel.check)
        root = str(Root.over(ordered, source.length, size))
        return Hashed(source.status, root, settled(source.status, now))


def _log_of(source: Source, size: int, state: Path, now: float) -> DigestLog:
    return DigestLog.open(
        state / "digests", source.source_id, source.stat_key, size, trustworthy=not source.young(now)
    )
