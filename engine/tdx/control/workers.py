"""The threads beside the loop: one pool for bodies, one for the disk's small work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """``bodies`` is as large as the most bodies that may move at once, so that a lent
    socket never waits for a thread; the disk pool may queue."""

    def __init__(self, bodies: int, disk: int = 8) -> None:
        self.bodies = ThreadPoolExecutor(bodies, thread_name_prefix="tdx-body")
        self._disk = ThreadPoolExecutor(disk, thread_name_prefix="tdx-disk")

    async def on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work that is not a body: store calls, lookups, hashing."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._disk, lambda: work(*args, **kwargs))

    def close(self) -> None:
        self.bodies.shutdown(wait=True, cancel_futures=True)
        self._disk.shutdown(wait=True, cancel_futures=True)
