"""The receiving pump that goes through a buffer: works for every body and every sink."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from tdx.data.buffers import BUFFERS
from tdx.data.port import Body, Cancel, RawBody, ReceiveHooks, Sink, Slot
from tdx.data.slots import SlotLedger
from tdx.integrity import Hasher, new_hasher


class BufferedReceive:
    """Receives into a buffer, writes what is in it and hashes it, all in the caller's thread.

    So the bytes stay in one core's cache. More cores are put to work by more streams, not by a second
    thread for one of them (docs/decisions/012-thread-for-each-stream.md).
    """

    @property
    def name(self) -> str:
        return "buffered"

    def receive(
        self, body: Body, sink: Sink, slots: Iterator[Slot], hooks: ReceiveHooks, cancel: Cancel
    ) -> None:
        """See :class:`tdx.data.port.ReceivePump`."""
        buffer = BUFFERS.take()
        run = _Run(body, sink, hooks, cancel, buffer)
        try:
            run.move(slots)
        finally:
            BUFFERS.give(buffer)
            run.ledger.break_off()


class _Run:
    """One body on its way through the buffer, slot by slot."""

    def __init__(
        self, body: Body, sink: Sink, hooks: ReceiveHooks, cancel: Cancel, buffer: memoryview
    ) -> None:
        self._stages = hooks.stages
        self.ledger = SlotLedger(hooks, cancel)
        self._body = body
        self._sink = sink
        self._hooks = hooks
        self._cancel = cancel
        self._buffer = buffer

    def move(self, slots: Iterator[Slot]) -> None:
        """Until the body or the slots end."""
        left = self._body.remaining() if isinstance(self._body, RawBody) else self._body.length
        while left is None or left > 0:
            slot = next(slots, None)
            if slot is None:
                return
            hasher = slot.hasher or new_hasher()
            at = slot.span.start
            while at < slot.span.end:
                # An odd start costs one short part; from there on, writes begin on whole pages.
                size = min(len(self._buffer) - at % len(self._buffer), slot.span.end - at)
                n = self._read(self._buffer[:size])
                if not n:
                    return
                self._cancel.check()
                if slot.keep:
                    self._keep(slot, at, self._buffer[:n], hasher)
                else:
                    self._hooks.discarded(n)
                at += n
                if left is not None:
                    left -= n

    def _read(self, view: memoryview) -> int:
        started = perf_counter()
        n = self._body.readinto(view)
        self._stages.receive += perf_counter() - started
        if n:
            self._hooks.received(n)
        return n

    def _keep(self, slot: Slot, at: int, data: memoryview, hasher: Hasher) -> None:
        with self._hooks.turn():
            # In this order a write that fails leaves the hash state at what is there.
            started = perf_counter()
            self._sink.write_at(data, at)
            written = perf_counter()
            hasher.update(data)
            self._stages.write += written - started
            self._stages.hash += perf_counter() - written
        self.ledger.advanced(slot, at + len(data), hasher)
