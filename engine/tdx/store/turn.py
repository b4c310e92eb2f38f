"""One thread at a time for the many small files of bundles, as long as that makes all of them faster."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

PATIENCE: Final = 0.25
"""Seconds that a turn is waited for. Who has it may be held up by a disk, which is no reason for others to
stand still, or to pay with more than that."""


class Turn:
    """Work on small files is a few microseconds of Python between two calls of the system, and each call
    gives up the interpreter's lock. A second thread takes it then, and to get it back costs more than most
    of the calls (docs/decisions/014-taking-turns.md). So those who enter the turns of one ``lock`` work one
    after the other, and step :meth:`aside` for what takes its time without the interpreter.

    It is about speed alone, and nothing may rely on it: after :data:`PATIENCE` one goes on all the same.
    An object is for one thread at a time.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._held = False

    def __enter__(self) -> Self:
        self._held = self._lock.acquire(timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:
            self._held = False
            self._lock.release()

    @contextmanager
    def aside(self) -> Generator[None]:
        """Let others have their turn meanwhile. Outside a turn it does nothing."""
        held = self._held
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            if held:
                self.__enter__()
