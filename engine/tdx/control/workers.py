"""The threads beside the loop: for bodies, for the disk's small work, and for its long work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from tdx.control.turns import TaskTurns, ThreadTurns
from tdx.errors import Busy
from tdx.model import Owner

BODY: Final = "tdx-body"
DISK: Final = "tdx-disk"
LONG: Final = "tdx-long"
"""What the names of the threads begin with."""

P = ParamSpec("P")
T = TypeVar("T")


async def run_joined(executor: Executor, work: Callable[[], T], wake: Callable[[], None]) -> T:
    """Run ``work`` in a thread and never leave it behind: a task that is cancelled meanwhile,
    however often, calls ``wake`` once and goes on being cancelled when the thread is done.

    What the work uses (a socket, a descriptor, a claim) may so be closed by its owner as
    soon as this has returned or raised. Busy where no thread can be started for it.
    """
    future = asyncio.wrap_future(_submitted(executor, work))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        wake()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # looked at: nobody else will
        raise


def _submitted(executor: Executor, work: Callable[[], T]) -> Future[T]:
    """The future of ``work``, which is given to a thread or, where this raises, never done. (An executor that
    cannot start a thread says so and keeps the work in its queue, for whichever thread comes by later.)"""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        executor.submit(run).add_done_callback(lambda submitted: submitted.cancelled() and future.cancel())
    except RuntimeError as error:
        if future.cancel():
            raise Busy(f"no thread is free for this: {error}; try again later") from error
    return future


class Workers:
    """``bodies`` is as large as the most bodies that may move at once, so that a lent
    socket never waits for a thread; the other pools may queue. Long work has its own, so
    that commits on a slow disk do not keep the next caller from being let in; and so has
    asking who is who, which may wait for a service that hangs.

    At a receiver owners take turns (docs/decisions/016-owners-take-turns.md): at what its bodies
    have brought (``turns``), and at long work (:meth:`in_turn`), of which one never has all threads."""

    def __init__(self, bodies: int, disk: int = 8, long: int = 8, asking: int = 8) -> None:
        self.turns = ThreadTurns(max(2, os.cpu_count() or 1))
        self._long_turns = TaskTurns(long, apiece=max(1, long * 3 // 4))
        self.bodies = ThreadPoolExecutor(bodies, thread_name_prefix=BODY)
        self._disk = ThreadPoolExecutor(disk, thread_name_prefix=DISK)
        self._long = ThreadPoolExecutor(long, thread_name_prefix=LONG)
        self._asking = ThreadPoolExecutor(asking, thread_name_prefix="tdx-ask")

    async def on_disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run short blocking work: store calls, small files."""
        return await run_joined(self._disk, lambda: work(*args, **kwargs), _just_wait)

    async def asked(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a question to an identity provider, which bounds it to a few seconds."""
        return await run_joined(self._asking, lambda: work(*args, **kwargs), _just_wait)

    async def at_length(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work that may take as long as reading or syncing a whole file."""
        return await run_joined(self._long, lambda: work(*args, **kwargs), _just_wait)

    async def in_turn(self, owner: Owner, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As :meth:`at_length`, for one of several owners."""
        async with self._long_turns.turn(owner):
            return await self.at_length(work, *args, **kwargs)

    async def until(self, wake: Callable[[], None], work: Callable[[], T]) -> T:
        """As :meth:`at_length`, for work that ``wake`` makes end early."""
        return await run_joined(self._long, work, wake)

    def pulse(self) -> Future[None]:
        """Done as soon as a thread for the disk's small work is free. Busy where none can be started."""
        return _submitted(self._disk, _just_wait)

    def close(self) -> None:
        for pool in (self.bodies, self._disk, self._long, self._asking):
            pool.shutdown(wait=True, cancel_futures=True)


def _just_wait() -> None:
    """Short work ends by itself."""
