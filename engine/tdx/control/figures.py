"""Figures that only the disk knows, for whoever must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

SECONDS: Final = 1.0
"""How long the disk is waited for."""


class Figure:
    """What ``ask``, which may hang, says when it is asked. From any thread; however many want to know, one
    thread waits for the disk."""

    def __init__(self, ask: Callable[[], float], seconds: float = SECONDS) -> None:
        self._ask = ask
        self._seconds = seconds
        self._lock = threading.Lock()
        self._asked: Future[float] | None = None

    def __call__(self) -> float:
        """TimeoutError where there is no answer in time, and what asking raises."""
        with self._lock:
            asked = self._asked
            if asked is None or asked.done():
                asked = self._asked = Future()
                # A daemon: the process must come to its end while the disk does not answer.
                threading.Thread(target=self._look, args=(asked,), name="tdx-figure", daemon=True).start()
        return asked.result(self._seconds)

    def _look(self, asked: Future[float]) -> None:
        try:
            asked.set_result(self._ask())
        except BaseException as error:
            asked.set_exception(error)
