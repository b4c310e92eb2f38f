"""Several jobs at a time, each with a part for each of its peers: a slow peer keeps no other one waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

PATIENCE: Final = 30.0
"""Seconds that the slower peers of a job have in any case, once the first one has its part."""

J = TypeVar("J")


class Lanes(Generic[J]):
    """Works jobs off in their order, ``at_once`` at a time. The parts of one job begin together, one for
    each of its peers, and end each for itself.

    A peer that takes more than twice as long as the first of its job, and :data:`PATIENCE` more, is behind:
    the next job begins without waiting for it. What later jobs have for that peer waits for its own turn,
    at most ``at_once`` parts at a time, and nothing else waits for that.
    """

    def __init__(self, at_once: int, push: Callable[[J, str], Awaitable[bool]]) -> None:
        """``push(job, peer)`` does one part and says whether it ended well. It does not raise."""
        self._at_once = at_once
        self._push = push
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._unfinished: Counter[str] = Counter()
        self._behind: set[str] = set()
        self._stopped = False

    def stop(self) -> None:
        """No further part begins."""
        self._stopped = True

    async def work(self, jobs: Iterable[tuple[J, Iterable[str]]]) -> None:
        """Return when every part that has begun has ended."""
        places = asyncio.Semaphore(self._at_once)
        async with asyncio.TaskGroup() as group:
            for job, peers in jobs:
                await places.acquire()
                if self._stopped:
                    return
                parts: dict[str, asyncio.Task[bool]] = {}
                for peer in peers:
                    self._unfinished[peer] += 1
                    parts[peer] = group.create_task(self._in_turn(job, peer))
                group.create_task(self._keep(places, parts))

    async def _in_turn(self, job: J, peer: str) -> bool:
        try:
            async with self._turns.setdefault(peer, asyncio.Semaphore(self._at_once)):
                return not self._stopped and await self._push(job, peer)
        finally:
            self._unfinished[peer] -= 1
            if not self._unfinished[peer]:
                self._behind.discard(peer)

    async def _keep(self, places: asyncio.Semaphore, parts: Mapping[str, asyncio.Task[bool]]) -> None:
        """Keep the job's place until its parts have ended, but for those whose peers are behind."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        most: float | None = None
        while waiting := {
            task: peer for peer, task in parts.items() if not task.done() and peer not in self._behind
        }:
            left = None if most is None else began + most - loop.time()
            if left is not None and left <= 0:
                self._behind.update(waiting.values())
                break
            await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if most is None and any(task.done() and task.result() for task in parts.values()):
                most = 2 * (loop.time() - began) + PATIENCE
        places.release()
