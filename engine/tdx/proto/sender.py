"""One push of one file as the sender sees it: one table of states.

Temporary failures are not events: whatever is on its way is tried again without leaving
its state. An error that ends a push is raised through it and needs no state either.
``docs/states.md`` is drawn from :data:`PUSH_TABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from tdx.errors import IllegalTransition
from tdx.model import MAX_REPAIR_ROUNDS


class PushState(StrEnum):
    NEW = "new"
    OPENING = "opening"
    """The upload is being created or looked up; a file of one extent goes as a whole here."""
    CHECKING = "checking"
    """Asking whether the file already published under this name is the same one."""
    SENDING = "sending"
    COMMITTING = "committing"
    REPAIRING = "repairing"
    """Sending again just the extents that the commit named."""
    DONE = "done"
    FAILED = "failed"


class PushEvent(StrEnum):
    OPEN = "open"
    OPENED = "opened"
    """The receiver told epoch and held ranges; what is missing is known."""
    SAME_NAME = "same-name"
    """The same, and a file of this name and size is already there."""
    DIFFERENT = "different"
    """The file already there is another one."""
    SENT = "sent"
    """Every missing extent is acknowledged, and every digest known."""
    DIFFER = "differ"
    """The commit was answered with extents to send again."""
    RECEIPT = "receipt"
    """The receiver's record arrived: published, identical or skipped."""
    FAIL = "fail"
    """The receiver still asks for repairs after the last of them."""


_S, _E = PushState, PushEvent

PUSH_TABLE: Final[Mapping[tuple[PushState, PushEvent], PushState]] = MappingProxyType(
    {
        (_S.NEW, _E.OPEN): _S.OPENING,
        (_S.OPENING, _E.OPENED): _S.SENDING,
        (_S.OPENING, _E.SAME_NAME): _S.CHECKING,
        (_S.OPENING, _E.RECEIPT): _S.DONE,
        (_S.CHECKING, _E.DIFFERENT): _S.SENDING,
        (_S.CHECKING, _E.RECEIPT): _S.DONE,
        (_S.SENDING, _E.SENT): _S.COMMITTING,
        (_S.COMMITTING, _E.DIFFER): _S.REPAIRING,
        (_S.COMMITTING, _E.RECEIPT): _S.DONE,
        (_S.COMMITTING, _E.FAIL): _S.FAILED,
        (_S.REPAIRING, _E.SENT): _S.COMMITTING,
    }
)
"""Every legal transition."""


class PushMachine:
    """The state of one push. Not thread-safe: events are handled in one thread."""

    def __init__(self) -> None:
        self._state = PushState.NEW
        self._rounds = 0

    @property
    def state(self) -> PushState:
        return self._state

    @property
    def rounds(self) -> int:
        """Repair rounds begun, at most ``MAX_REPAIR_ROUNDS``."""
        return self._rounds

    def handle(self, event: PushEvent) -> PushState:
        """Make the transition and return the new state; IllegalTransition otherwise.

        A DIFFER when the repair rounds are used up is a FAIL, so that a receiver that
        never gives up cannot keep a sender for ever: look at the returned state.
        """
        if event is _E.DIFFER and self._rounds == MAX_REPAIR_ROUNDS:
            event = _E.FAIL
        following = PUSH_TABLE.get((self._state, event))
        if following is None:
            raise IllegalTransition(f"a push that is {self._state.value} takes no {event.value}")
        if event is _E.DIFFER:
            self._rounds += 1
        self._state = following
        return following
