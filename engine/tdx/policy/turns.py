"""Who may go next, where fewer may work at a time than would."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from tdx.model import Owner

Ticket = TypeVar("Ticket")
"""Whatever the caller knows one request by."""


class Turns(Generic[Ticket]):
    """Gives ``places`` to owners in equal shares, however many requests each of them has.

    A place that is free goes to whom of those who wait has the fewest, among equals to whose last turn
    began first; an owner's own requests go in the order in which they came. An owner that is alone may
    have every place, or ``apiece`` of them: fewer where a turn may take so long that somebody who comes
    then must not have to wait for its end. Not thread-safe.
    """

    def __init__(self, places: int, apiece: int | None = None) -> None:
        self._free = places
        self._apiece = places if apiece is None else apiece
        self._working: dict[Owner, int] = {}
        self._waiting: dict[Owner, deque[Ticket]] = {}
        """No empty ones, in the order in which the owners' last turns began."""

    def ask(self, owner: Owner, ticket: Ticket) -> bool:
        """Whether the turn begins at once; else :meth:`done` will tell when it does."""
        if self._free and self._working.get(owner, 0) < self._apiece:
            self._begin(owner)
            return True
        self._waiting.setdefault(owner, deque()).append(ticket)
        return False

    def done(self, owner: Owner) -> Ticket | None:
        """A turn of this owner has ended; the request whose turn begins, if any."""
        self._free += 1
        self._working[owner] -= 1
        if not self._working[owner]:
            del self._working[owner]
        waiting = [each for each in self._waiting if self._working.get(each, 0) < self._apiece]
        if not waiting:
            return None
        chosen = min(waiting, key=lambda each: self._working.get(each, 0))
        queue = self._waiting.pop(chosen)
        ticket = queue.popleft()
        if queue:
            self._waiting[chosen] = queue  # behind the others
        self._begin(chosen)
        return ticket

    def withdraw(self, owner: Owner, ticket: Ticket) -> bool:
        """A request waits no more; False where it does not wait, so that its turn has begun."""
        queue = self._waiting.get(owner)
        if queue is None or ticket not in queue:
            return False
        queue.remove(ticket)
        if not queue:
            del self._waiting[owner]
        return True

    def _begin(self, owner: Owner) -> None:
        self._free -= 1
        self._working[owner] = self._working.get(owner, 0) + 1
