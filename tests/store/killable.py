"""A store that is killed and started again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Self

from store.conformance import visible
from store.faulty import FaultySystem
from tdx.model import Receipt
from tdx.store.local import LocalStore


class KillableStore:
    """One receiver after another on the same folder. As a context manager, it is healthy and closed at the
    end, with no descriptor left open."""

    FOLDER: ClassVar[str]
    running: ClassVar[FaultySystem]
    """The newest one's."""

    def __init__(self, folder: Path, kind: type[FaultySystem] = FaultySystem) -> None:
        self.kind = kind
        folder.mkdir(exist_ok=True)
        self.inbox = folder / "inbox"
        self.state = folder / "state"
        self.start()

    def start(self) -> None:
        self.system = KillableStore.running = self.kind()
        self.store = LocalStore(self.inbox, self.state, reserve=0, system=self.system)

    def kill(self) -> None:
        self.system.die()
        self.store._receipts.close()

    def restart(self) -> list[Receipt]:
        self.kill()
        self.start()
        return self.store.recover()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.system.heal()
        self.store.close()
        assert self.system.fds == set()

    def visible(self) -> dict[str, bytes]:
        return visible(self.inbox)

    def left(self) -> list[str]:
        """What is on its way."""
        return os.listdir(self.inbox / ".tdx" / self.FOLDER)
