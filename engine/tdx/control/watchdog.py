"""Telling whoever supervises a receiver that it lives, and what it is doing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from tdx.control.receiver import Receiver
from tdx.control.threads import Threads
from tdx.control.workers import BODY, DISK, LONG
from tdx.errors import Busy

log = logging.getLogger(__name__)

SECONDS: Final = 10.0
"""Between two looks, where nobody asks for them to come sooner."""

SLOW: Final = 10.0
"""A call to the disk that has not returned for so many seconds is told of."""


class Watchdog:
    """Looks at the loop, by being on it, and at the threads for the disk.

    A receiver is alive while the loop turns and a thread for the disk's small work is free from time to
    time. That all of them are held by the kernel, in calls to a disk that does not answer, is told, but it
    is no reason to end the receiver: the kernel would not let those threads go, the next receiver would wait
    for the same disk, and what is on its way goes on by itself once the disk answers. Threads that wait for
    nothing but each other, or run without end, are a defect of this process, and only its end mends that.
    """

    def __init__(
        self,
        receiver: Receiver,
        alive: Callable[[], None],
        status: Callable[[str], None],
        patience: float | None,
        threads: Threads | None = None,
    ) -> None:
        """``alive`` is to be called at least every ``patience`` seconds (None: never); ``status`` with a
        line for people, when it changes."""
        self._receiver = receiver
        self._alive = alive
        self._status = status
        self._watched = patience is not None
        self._interval = SECONDS if patience is None else min(SECONDS, patience / 2)
        self._threads = threads or Threads((BODY, DISK, LONG))
        self._pulse: Future[None] | None = None
        self._told = ""
        self._was_stuck = False

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            answered = await self._feel_pulse()
            self._threads.look(loop.time())
            stuck = self._threads.stuck(loop.time(), SLOW)
            self._note(stuck)
            if answered or self._threads.all_stuck(DISK):
                if self._watched:
                    self._alive()
            else:
                log.error("the threads for the disk wait for each other: not telling that this is alive")
            self._say(self._line(stuck))
            await asyncio.sleep(max(0.0, begun + self._interval - loop.time()))

    async def _feel_pulse(self) -> bool:
        """Whether a thread for the disk is free before it is time to look again."""
        if self._pulse is None or self._pulse.done():
            try:
                self._pulse = self._receiver.workers.pulse()
            except Busy:  # no thread can be started: others are alive
                return True
        await asyncio.wait([asyncio.wrap_future(self._pulse)], timeout=self._interval)
        return self._pulse.done()

    def _note(self, stuck: list[float]) -> None:
        self._receiver.metrics.disk_waiting.set(stuck[0] if stuck else 0.0)
        if stuck and not self._was_stuck:
            log.warning("the disk has not answered for %.0f s (calls that wait: %d)", stuck[0], len(stuck))
        elif self._was_stuck and not stuck:
            log.warning("the disk answers again")
        self._was_stuck = bool(stuck)

    def _line(self, stuck: list[float]) -> str:
        count = self._receiver.sessions.busy()
        line = f"{count} transfer{'' if count == 1 else 's'} under way" if count else "no transfer under way"
        return f"{line}; the disk has not answered for {stuck[0]:.0f} s" if stuck else line

    def _say(self, line: str) -> None:
        if line != self._told:
            self._told = line
            self._status(line)
