"""Who is inside an upload: many calls at a time, or one that ends it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from enum import Enum

from tdx.errors import NotFound, StorageError, UploadBusy


class Phase(Enum):
    """OPEN takes calls; ENDING belongs to one thread, and leads to ENDED or back to OPEN."""

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"


class Gate:
    """Lets calls in while the upload is open, and lets whoever ends it wait until all are out.

    ``lock`` is the upload's own; the gate shares it. ``poison`` closes the gate for good
    to all but the one who ends: a line that says why.
    """

    def __init__(self, name: str, lock: threading.Lock) -> None:
        self._name = name
        self._lock = lock
        self._idle = threading.Condition(lock)
        self._users = 0
        self.phase = Phase.OPEN
        self.poison: str | None = None

    def check(self) -> None:
        """Under the lock: raise unless calls are let in. NotFound, UploadBusy, StorageError."""
        self._check_phase()
        self.check_poison()

    def check_poison(self) -> None:
        if self.poison is not None:
            raise StorageError(self.poison)

    def _check_phase(self) -> None:
        if self.phase is Phase.ENDED:
            raise NotFound(f"{self._name}: this upload has ended")
        if self.phase is Phase.ENDING:
            raise UploadBusy(f"{self._name}: the upload is being finished")

    @contextlib.contextmanager
    def inside(self) -> Generator[None]:
        with self._lock:
            self.check()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._idle.notify_all()

    @contextlib.contextmanager
    def alone(self, *, wait: bool = False) -> Generator[None]:
        """Nobody else is inside while the block runs. Raises NotFound once ended, and UploadBusy
        while another ends it, unless told to ``wait``. What :meth:`end` has not ended by the
        end of the block is open again."""
        with self._lock:
            while wait and self.phase is Phase.ENDING:
                self._idle.wait()
            self._check_phase()
            self.phase = Phase.ENDING
        try:
            with self._lock:
                while self._users:
                    self._idle.wait()
            yield
        finally:
            with self._lock:
                if self.phase is Phase.ENDING:
                    self.phase = Phase.OPEN
                self._idle.notify_all()

    def end(self) -> None:
        """For whoever is alone."""
        with self._lock:
            self.phase = Phase.ENDED
