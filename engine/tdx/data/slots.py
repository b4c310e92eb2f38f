"""What both receiving pumps do with slots: hash along, and report each one once."""

from __future__ import annotations

from tdx.data.port import Cancel, ReceiveHooks, Slot
from tdx.integrity import Hasher, new_hasher
from tdx.model import Span


class SlotLedger:
    """Follows the slots of one body through writing and hashing, in order, in one thread."""

    def __init__(self, hooks: ReceiveHooks, cancel: Cancel) -> None:
        self._hooks = hooks
        self._cancel = cancel
        self._slot: Slot | None = None
        self._hasher: Hasher = new_hasher()
        self._written: Span | None = None

    def hasher(self, slot: Slot) -> Hasher:
        """The hash state of ``slot``, so far."""
        if slot is not self._slot:
            self._slot = slot
            self._hasher = slot.hasher or new_hasher()
        # Set again only by advanced(): after a failed write the state may cover bytes that are not there.
        self._written = None
        return self._hasher

    def advanced(self, slot: Slot, at: int) -> None:
        """Every byte of ``slot`` up to ``at`` is written and hashed."""
        if at < slot.span.end:
            self._written = Span(slot.span.start, at)
            return
        self._cancel.check()
        self._hooks.completed(slot.span, self._hasher.digest())

    def break_off(self) -> None:
        """The body has ended: report the slot that it ended in, if any."""
        written, self._written = self._written, None
        if written is not None and self._cancel.reason is None:
            self._hooks.broke_off(written, self._hasher.digest())
