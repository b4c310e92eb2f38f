"""What both receiving pumps do with slots: report each one once, when it is hashed and written."""

from __future__ import annotations

from tdx.data.port import Cancel, ReceiveHooks, Slot
from tdx.integrity import Hasher
from tdx.model import Span


class SlotLedger:
    """Follows the slots of one body, in order. What is hashed last is never more than what is written."""

    def __init__(self, hooks: ReceiveHooks, cancel: Cancel) -> None:
        self._hooks = hooks
        self._cancel = cancel
        self._written: tuple[Span, Hasher] | None = None

    def advanced(self, slot: Slot, at: int, hasher: Hasher) -> None:
        """Every byte of ``slot`` up to ``at`` is written and then hashed: ``hasher`` covers those."""
        self._written = None
        if at < slot.span.end:
            self._written = Span(slot.span.start, at), hasher
            return
        self._cancel.check()
        self._hooks.completed(slot.span, hasher.digest())

    def break_off(self) -> None:
        """The body has ended: report the slot that it ended in, if any."""
        written, self._written = self._written, None
        if written is not None and self._cancel.reason is None:
            span, hasher = written
            self._hooks.broke_off(span, hasher.digest())
