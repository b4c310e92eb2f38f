"""One push of one file as the sender sees it: one table of states.

``docs/states.md`` is drawn from :data:`PUSH_TABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from tdx.errors import IllegalTransition
from tdx.proto.receiver import MAX_REPAIR_ROUNDS


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
    RETRY = "retry"
    """A temporary failure: the same is tried again from what the receiver holds."""
    REOPEN = "reopen"
    """The receiver no longer knows the upload: a new one is opened."""
    FAIL = "fail"


_S, _E = PushState, PushEvent

PUSH_TABLE: Final[Mapping[tuple[PushState, PushEvent], PushState]] = MappingProxyType(
    {
        (_S.NEW, _E.OPEN): _S.OPENING,
        (_S.NEW, _E.FAIL): _S.FAILED,
        (_S.OPENING, _E.OPENED): _S.SENDING,
        (_S.OPENING, _E.SAME_NAME): _S.CHECKING,
        (_S.OPENING, _E.RECEIPT): _S.DONE,
        (_S.OPENING, _E.RETRY): _S.OPENING,
        (_S.OPENING, _E.FAIL): _S.FAILED,
        (_S.CHECKING, _E.DIFFERENT): _S.SENDING,
        (_S.CHECKING, _E.RECEIPT): _S.DONE,
        (_S.CHECKING, _E.RETRY): _S.CHECKING,
        (_S.CHECKING, _E.REOPEN): _S.OPENING,
        (_S.CHECKING, _E.FAIL): _S.FAILED,
        (_S.SENDING, _E.SENT): _S.COMMITTING,
        (_S.SENDING, _E.RETRY): _S.SENDING,
        (_S.SENDING, _E.REOPEN): _S.OPENING,
        (_S.SENDING, _E.FAIL): _S.FAILED,
        (_S.COMMITTING, _E.DIFFER): _S.REPAIRING,
        (_S.COMMITTING, _E.RECEIPT): _S.DONE,
        (_S.COMMITTING, _E.RETRY): _S.COMMITTING,
        (_S.COMMITTING, _E.REOPEN): _S.OPENING,
        (_S.COMMITTING, _E.FAIL): _S.FAILED,
        (_S.REPAIRING, _E.SENT): _S.COMMITTING,
        (_S.REPAIRING, _E.RETRY): _S.REPAIRING,
        (_S.REPAIRING, _E.REOPEN): _S.OPENING,
        (_S.REPAIRING, _E.FAIL): _S.FAILED,
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
        """Repair rounds begun for the upload that is open, at most ``MAX_REPAIR_ROUNDS``."""
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
        elif event is _E.REOPEN:
            self._rounds = 0
        self._state = following
        return following
