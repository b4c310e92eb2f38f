"""Bundles on their way at the same time: a file that comes again waits for what became of it before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from tdx.data.port import TICK, Cancel
from tdx.errors import Superseded
from tdx.model import Owner

REPLAYS_REMEMBERED: Final = 16

_AGAIN: Final = "the same files have come again"


class Incoming:
    """One bundle on its way, from ``owner``; ``replay``: its sender says that it was sent before.
    ``cancel`` ends the receiving of it."""

    def __init__(self, owner: Owner, *, replay: bool) -> None:
        self.owner = owner
        self.replay = replay
        self.cancel = Cancel()
        self.keys: set[str] = set()
        """Of the entries that have come."""
        self._left = threading.Event()

    def leave(self) -> None:
        self._left.set()

    def wait(self, waiting: Cancel) -> None:
        """Have it end, receiving at once and publishing when it is done, and wait for that. Raises the
        reason of ``waiting``."""
        self.cancel.set(Superseded(_AGAIN))
        while not self._left.wait(TICK):
            waiting.check()


class Replays:
    """Who has which key of the bundles that are coming in, and had it of late. Several threads at once."""

    def __init__(self) -> None:
        self._keys: dict[tuple[Owner, str], Incoming] = {}
        self._replays: deque[Incoming] = deque(maxlen=REPLAYS_REMEMBERED)
        """The newest that have ended: what lay unread in some buffer may come after its own replay."""

    def claim(
        self, bundle: Incoming, key: str, aside: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> bool:
        """Make this key of its owner the ``bundle``'s own, once nobody else has it; whether what it stands
        for may have been published before. Who has it is waited for within ``aside()``."""
        before = bundle.replay
        bundle.keys.add(key)
        while (other := self._keys.setdefault((bundle.owner, key), bundle)) is not bundle:
            with aside():
                other.wait(bundle.cancel)
            before = True
        return before or any(key in each.keys and each.owner == bundle.owner for each in list(self._replays))

    def leave(self, bundle: Incoming) -> None:
        """Whatever was to be published of it is, with its receipts."""
        if bundle.replay:
            self._replays.append(bundle)
        for key in bundle.keys:
            if self._keys.get((bundle.owner, key)) is bundle:
                del self._keys[bundle.owner, key]
        bundle.leave()
