"""The receiver's rate limit: over all bodies together, shared by owners in equal parts."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from tdx.control.pace import Clockwork, time_of_day
from tdx.data.port import TICK, Cancel
from tdx.data.sockets import tell
from tdx.model import Owner
from tdx.policy.bandwidth import UNLIMITED, RateSchedule, SharedRate
from tdx.policy.pacing import piece_of
from tdx.proto.head import PROCESSING

SMALLEST_PIECE: Final = 1024
"""Bytes that are taken off a socket at a time, however low the rate is."""

ALIVE_SECONDS: Final = 2.0
"""A sender that is held back for so long is told that it goes on."""


class Throttle:
    """Hands out the time that bytes take, to worker threads."""

    def __init__(
        self,
        schedule: RateSchedule = UNLIMITED,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time_of_day,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._shared: SharedRate[_Waiter] = SharedRate()
        self._lock = threading.Lock()
        self._clockwork = Clockwork(schedule, clock, wall)
        self._limited = schedule.slowest is not None

    def change(self, schedule: RateSchedule) -> None:
        """Another schedule from now on, for bodies that are on their way, too."""
        with self._lock:
            self._clockwork = Clockwork(schedule, self._clock, self._wall)
            # Those who wait are let go by the next look, within a TICK.
            self._limited = True

    def piece(self, n: int) -> int:
        """How many of the next ``n`` bytes to take at a time."""
        if not self._limited:
            return n
        with self._lock:
            rate = self._clockwork.rate()
        return min(n, max(SMALLEST_PIECE, piece_of(rate, n)))

    def took(self, owner: Owner, n: int, cancel: Cancel, waiting: Callable[[float], None]) -> float:
        """Wait until the time of these ``n`` bytes has come; the seconds that took. ``waiting`` is called
        with the seconds so far, once a TICK at least, and may raise; so does a cancel, at once."""
        if not self._limited:
            return 0.0
        mine, began = _Waiter(), self._clock()
        with self._lock:
            self._shared.ask(owner, n, mine)
            pause = self._look(mine)
        if mine.is_granted():
            return 0.0
        try:
            with cancel.waking(mine.wake):
                while not mine.is_granted():
                    mine.sleep(min(pause, TICK))
                    cancel.check()
                    waiting(self._clock() - began)
                    with self._lock:
                        pause = self._look(mine)
        finally:
            with self._lock:
                if not mine.is_granted():
                    self._shared.withdraw(owner, mine)
                self._look(mine)
        return self._clock() - began

    def _look(self, mine: _Waiter) -> float:
        """Let those go whose time has come; how long ``mine`` may sleep. Who is next sleeps until its time,
        so somebody always does."""
        now = self._clock()
        rate = self._clockwork.rate()
        self._shared.set_rate(rate, now)
        for each in self._shared.granted(now):
            each.grant()
        following = self._shared.next()
        if following is None:
            self._limited = self._clockwork.schedule.slowest is not None
            return TICK
        first, pause = following
        if first is mine:
            return pause
        first.wake()
        return TICK


class _Waiter:
    """A thread that waits. ``wake`` makes its sleep, or the next one, end; from any thread."""

    def __init__(self) -> None:
        self._granted = False
        self._lock = threading.Lock()
        self._lock.acquire()
        self._guard = threading.Lock()

    def is_granted(self) -> bool:
        return self._granted

    def grant(self) -> None:
        self._granted = True
        self.wake()

    def sleep(self, seconds: float) -> None:
        self._lock.acquire(timeout=seconds)

    def wake(self) -> None:
        with self._guard:
            if self._lock.locked():
                self._lock.release()


class BodyBrake:
    """What holds back one body of an owner (:class:`tdx.data.port.Brake`). On the socket ``told``, where
    there is one, its sender is told from time to time that it goes on: nobody else writes there meanwhile."""

    def __init__(self, throttle: Throttle, owner: Owner, cancel: Cancel, told: socket.socket | None) -> None:
        self.piece = throttle.piece
        self._throttle = throttle
        self._owner = owner
        self._cancel = cancel
        self._socket = told
        self._held = 0.0

    def took(self, n: int, check: Callable[[], None]) -> float:
        """See :class:`tdx.data.port.Brake`."""
        told = 0.0

        def waiting(seconds: float) -> None:
            nonlocal told
            check()
            if self._held + seconds - told >= ALIVE_SECONDS:
                self._held, told = 0.0, seconds
                if self._socket is not None:
                    tell(self._socket, PROCESSING)

        seconds = self._throttle.took(self._owner, n, self._cancel, waiting)
        self._held += seconds - told
        return seconds
