"""Owners take turns at what wears a receiver out: the work on bodies, and the disk's long work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from tdx.data.port import TICK, Cancel
from tdx.model import Owner
from tdx.policy.turns import Turns


class ThreadTurns:
    """Turns of worker threads."""

    def __init__(self, places: int) -> None:
        self._turns: Turns[threading.Lock] = Turns(places)
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, owner: Owner, cancel: Cancel) -> Generator[None]:
        """Wait for a turn, and have it until the block ends. Raises the cancel's reason instead, if it has
        one before the turn begins."""
        ticket = threading.Lock()
        ticket.acquire()
        with self._lock:
            begun = self._turns.ask(owner, ticket)
        try:
            while not begun:
                begun = ticket.acquire(timeout=TICK)
                cancel.check()
            yield
        finally:
            with self._lock:
                if begun or not self._turns.withdraw(owner, ticket):
                    following = self._turns.done(owner)
                    if following is not None:
                        following.release()


class TaskTurns:
    """Turns of the loop's tasks."""

    def __init__(self, places: int, apiece: int) -> None:
        self._turns: Turns[asyncio.Future[None]] = Turns(places, apiece)

    @asynccontextmanager
    async def turn(self, owner: Owner) -> AsyncGenerator[None]:
        """Wait for a turn, and have it until the block ends."""
        ticket = asyncio.get_running_loop().create_future()
        begun = self._turns.ask(owner, ticket)
        try:
            if not begun:
                await ticket
            yield
        finally:
            if begun or not self._turns.withdraw(owner, ticket):
                following = self._turns.done(owner)
                # One whose task was cancelled just now passes the turn on.
                if following is not None and not following.cancelled():
                    following.set_result(None)
