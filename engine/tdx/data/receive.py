"""The receiving pump that goes through buffers: works for every body and every sink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from tdx.data.buffers import BUFFERS
from tdx.data.port import Body, Cancel, RawBody, ReceiveHooks, Sink, Slot
from tdx.data.relay import Relay
from tdx.data.slots import SlotLedger
from tdx.integrity import Hasher, new_hasher
from tdx.model import Stages

DEPTH: Final = 4
"""Buffers of one pump."""


@dataclass(slots=True)
class _Part:
    """``data`` belongs at ``offset``, in ``slot``, whose hash state covers it already."""

    slot: Slot
    offset: int
    data: memoryview
    hasher: Hasher


class BufferedReceive:
    """One thread receives into buffers and hashes them, a second one writes: that takes about as long as
    both of the former (docs/decisions/008-one-large-push.md).

    A body that fits one buffer is moved without the second thread.
    """

    @property
    def name(self) -> str:
        return "buffered"

    def receive(
        self, body: Body, sink: Sink, slots: Iterator[Slot], hooks: ReceiveHooks, cancel: Cancel
    ) -> Stages:
        """See :class:`tdx.data.port.ReceivePump`."""
        reader = _Reader(body, slots, hooks, cancel)
        writer = _Writer(sink, hooks, cancel)
        if body.length is not None and body.length <= BUFFERS.size:
            _move_alone(reader, writer)
        else:
            _move_together(reader, writer, body)
        stages = reader.stages
        stages.add(writer.stages)
        return stages


class _Writer:
    """Writes parts as they come."""

    def __init__(self, sink: Sink, hooks: ReceiveHooks, cancel: Cancel) -> None:
        self.stages = Stages()
        self.ledger = SlotLedger(hooks, cancel)
        self._sink = sink
        self._cancel = cancel

    def write(self, part: _Part) -> None:
        self.ledger.begins()
        self._cancel.check()
        started = perf_counter()
        self._sink.write_at(part.data, part.offset)
        self.stages.write += perf_counter() - started
        self.ledger.advanced(part.slot, part.offset + len(part.data), part.hasher)


class _Reader:
    """Reads a body slot by slot into buffers, one part at a time, and hashes what is to be kept."""

    def __init__(self, body: Body, slots: Iterator[Slot], hooks: ReceiveHooks, cancel: Cancel) -> None:
        self.stages = Stages()
        self._body = body
        self._slots = slots
        self._hooks = hooks
        self._cancel = cancel

    def run(self, take: Callable[[], memoryview], put: Callable[[memoryview, _Part | None], None]) -> None:
        """Until the body or the slots end: ``take`` a buffer, fill it, and ``put`` it with its
        part, or with None where there is nothing to write."""
        left = self._body.remaining() if isinstance(self._body, RawBody) else self._body.length
        while left is None or left > 0:
            slot = next(self._slots, None)
            if slot is None:
                return
            hasher = slot.hasher or new_hasher()
            at = slot.span.start
            while at < slot.span.end:
                buffer = take()
                part: _Part | None = None
                try:
                    # An odd start costs one short part; from there on, writes begin on whole pages.
                    size = min(len(buffer) - at % len(buffer), slot.span.end - at)
                    n = self._read(buffer[:size])
                    if n and slot.keep:
                        part = _Part(slot, at, self._hashed(hasher, buffer[:n]), hasher)
                    elif n:
                        self._cancel.check()
                        self._hooks.discarded(n)
                finally:
                    put(buffer, part)
                if not n:
                    return
                at += n
                if left is not None:
                    left -= n

    def _hashed(self, hasher: Hasher, data: memoryview) -> memoryview:
        started = perf_counter()
        hasher.update(data)
        self.stages.hash += perf_counter() - started
        return data

    def _read(self, view: memoryview) -> int:
        started = perf_counter()
        n = self._body.readinto(view)
        self.stages.receive += perf_counter() - started
        if n:
            self._hooks.received(n)
        return n


def _move_alone(reader: _Reader, writer: _Writer) -> None:
    buffer = BUFFERS.take()

    def put(_: memoryview, part: _Part | None) -> None:
        if part is not None:
            writer.write(part)

    try:
        reader.run(lambda: buffer, put)
    finally:
        BUFFERS.give(buffer)
        writer.ledger.break_off()


def _move_together(reader: _Reader, writer: _Writer, body: Body) -> None:
    relay = Relay([BUFFERS.take() for _ in range(DEPTH)], writer.write, body.interrupt, "tdx-write")

    def put(buffer: memoryview, part: _Part | None) -> None:
        if part is None:
            relay.give_back(buffer)
        else:
            relay.put(buffer, part)

    try:
        reader.run(relay.take, put)
    finally:
        for buffer in relay.finish():
            BUFFERS.give(buffer)
        # The reader's own failure is only the echo of the writer's, where there is one.
        if relay.error is not None:
            raise relay.error
        writer.ledger.break_off()
