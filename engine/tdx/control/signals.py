"""Signals that ask a command to stop: the first asks, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Final, NoReturn

from tdx.errors import Interrupted

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

ECHO: Final = 0.5
"""For so many seconds the same signal again is the first one still: ``timeout`` of the GNU core
utilities sends its own to the process and then to the process group, which has it in it, too."""


class StopSignals:
    """What came so far. ``clock`` gives seconds that only grow; ``end`` ends the process with a code."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, end: Callable[[int], NoReturn] | None = None
    ) -> None:
        self._clock = clock
        self._end = end or os._exit
        self._first: tuple[int, float] | None = None

    def is_first(self, number: int) -> bool:
        """Whether this is the first. Does not return for a second one, or another than the first:
        whoever sends that has waited long enough (exit code 75)."""
        if self._first is None:
            self._first = number, self._clock()
            return True
        first, at = self._first
        if number != first or self._clock() - at >= ECHO:
            self._end(Interrupted.exit_code)
        return False
