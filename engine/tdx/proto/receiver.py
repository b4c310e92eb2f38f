"""An upload as the receiver sees it: one table of states, and the leases on its extents.

Epochs are not states: whether a request names the current epoch is checked before
any event is handled. ``docs/states.md`` is drawn from :data:`UPLOAD_TABLE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from tdx.errors import IllegalTransition, NotFound, Superseded, TdxError, UploadBusy, VerificationFailed
from tdx.model import MAX_REPAIR_ROUNDS


class UploadState(StrEnum):
    OPEN = "open"
    COMMITTING = "committing"
    PUBLISHED = "published"
    FAILED = "failed"
    """Verification failed for good; nothing was published."""
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    """A fresh upload of the same name has replaced this partial."""


class UploadEvent(StrEnum):
    BODY = "body"
    """A body wants to start."""
    TAKEOVER = "takeover"
    """A new run opens the upload and raises its epoch; its repair rounds start at 0."""
    COMMIT = "commit"
    DIFFER = "differ"
    """The commit's digests name extents that are missing or different."""
    PUBLISH = "publish"
    """The commit ended with a receipt: published, identical or skipped."""
    GIVE_UP = "give-up"
    """The bytes still differ after every repair round."""
    ABORT = "abort"
    """The commit ended without judging the upload's bytes: a temporary failure, or a
    check that found the published file to be another one."""
    CANCEL = "cancel"
    SUPERSEDE = "supersede"


_S, _E = UploadState, UploadEvent

UPLOAD_TABLE: Final[Mapping[tuple[UploadState, UploadEvent], UploadState]] = MappingProxyType(
    {
        (_S.OPEN, _E.BODY): _S.OPEN,
        (_S.OPEN, _E.TAKEOVER): _S.OPEN,
        (_S.OPEN, _E.COMMIT): _S.COMMITTING,
        (_S.OPEN, _E.CANCEL): _S.CANCELLED,
        (_S.OPEN, _E.SUPERSEDE): _S.SUPERSEDED,
        (_S.COMMITTING, _E.DIFFER): _S.OPEN,
        (_S.COMMITTING, _E.ABORT): _S.OPEN,
        (_S.COMMITTING, _E.PUBLISH): _S.PUBLISHED,
        (_S.COMMITTING, _E.GIVE_UP): _S.FAILED,
    }
)
"""Every legal transition. What is not here is refused with :func:`refusal`."""


def refusal(state: UploadState, event: UploadEvent) -> TdxError:
    """The error that the caller of an illegal ``event`` is to see."""
    if state is _S.SUPERSEDED:
        return Superseded("a newer push of this file has replaced this upload; only the newer one goes on")
    if state is _S.CANCELLED:
        return NotFound("this upload is cancelled; start a new one")
    if state is _S.COMMITTING:
        return UploadBusy("this upload is being committed; ask again when that has ended")
    if state is _S.FAILED and event is _E.COMMIT:
        return VerificationFailed("the bytes still differed after every repair; nothing was published")
    return IllegalTransition(f"an upload that is {state.value} takes no {event.value}")


class UploadMachine:
    """The state of one upload. Not thread-safe: events are handled in one thread."""

    def __init__(self, state: UploadState = UploadState.OPEN) -> None:
        self._state = state
        self._rounds = 0

    @property
    def state(self) -> UploadState:
        return self._state

    @property
    def rounds(self) -> int:
        """Repair rounds asked for in this run, at most :data:`MAX_REPAIR_ROUNDS`."""
        return self._rounds

    def handle(self, event: UploadEvent) -> UploadState:
        """Make the transition and return the new state, or raise :func:`refusal` and stay.

        A DIFFER when the repair rounds are used up is a GIVE_UP: look at the returned
        state to know whether to answer ExtentsDiffer or VerificationFailed.
        """
        if event is _E.DIFFER and self._rounds == MAX_REPAIR_ROUNDS:
            event = _E.GIVE_UP
        following = UPLOAD_TABLE.get((self._state, event))
        if following is None:
            raise refusal(self._state, event)
        if event is _E.DIFFER:
            self._rounds += 1
        elif event is _E.TAKEOVER:
            self._rounds = 0
        self._state = following
        return following


class Leases:
    """Which writer may write which extents: one writer per extent.

    Kept as ranges, so that a lease costs the same for one extent and for millions.
    Ranges have step 1; writers are numbers that the caller makes up. Not thread-safe.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[range]] = {}

    def take(self, writer: int, extents: range) -> None:
        """Lease ``extents`` to ``writer`` in addition to what it holds; all of them or,
        with UploadBusy naming the first that another writer holds, none."""
        conflicts = self.held_by_others(writer, extents)
        if conflicts:
            first = conflicts[0].start
            raise UploadBusy(f"extent {first} is being written by another connection", extent=first)
        if not extents:
            return
        mine = self._held.setdefault(writer, [])
        if mine and mine[-1].start <= extents.start <= mine[-1].stop:
            mine[-1] = range(mine[-1].start, max(mine[-1].stop, extents.stop))
        else:
            mine.append(extents)

    def release(self, writer: int) -> None:
        """Give back everything ``writer`` holds; nothing held is no error."""
        self._held.pop(writer, None)

    def held_by_others(self, writer: int, extents: range) -> list[range]:
        """The stretches of ``extents`` leased to writers other than ``writer``, ascending."""
        found: list[range] = []
        for other, ranges in self._held.items():
            if other == writer:
                continue
            for held in ranges:
                overlap = range(max(held.start, extents.start), min(held.stop, extents.stop))
                if overlap:
                    found.append(overlap)
        return sorted(found, key=lambda stretch: stretch.start)
