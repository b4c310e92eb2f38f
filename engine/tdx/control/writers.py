"""Who writes an upload now: the bodies on their way to it, whose extents are whose, and how to stop them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tdx.control.messages import Exchange, FileBody
from tdx.control.parts import Parts, overlap
from tdx.control.received import Received, held_back
from tdx.data.port import Cancel
from tdx.data.sockets import shut
from tdx.errors import Busy, ConnectionLost, Interrupted, TdxError
from tdx.model import Span
from tdx.proto.receiver import Leases

SILENT_SECONDS: Final = 2.0
"""A writer that has brought nothing for this long gives way to another one for its extents."""

APPEND_ENDS_SECONDS: Final = 1.0
"""How long an append that is to end may take to write what has arrived."""


@dataclass(slots=True)
class Writer:
    """A body that is being received, what it has brought, and how to stop it. ``body`` is there while it is
    read."""

    exchange: Exchange
    span: Span
    in_order: bool
    cancel: Cancel = field(default_factory=Cancel)
    received: Received = field(default_factory=Received)
    body: FileBody | None = None
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Writers:
    """The writers of one upload. Used by the loop's thread only; ``parts``, and what only looks, by any."""

    def __init__(self, lost: Callable[[int], None]) -> None:
        """``lost(n)`` is told of bytes of parts that came and do not count any more."""
        self.parts = Parts(lost)
        self._leases = Leases()
        self._writers: dict[int, Writer] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._writers)

    def brought(self) -> Received:
        """What has come so far of the bodies that are on their way."""
        whole = Received()
        for writer in list(self._writers.values()):
            whole.bytes += writer.received.bytes
            whole.stages.add(held_back(writer.received.stages, writer.body))
        return whole

    def silent_for(self) -> float:
        """Seconds for which all bodies that are on their way have been waited for in vain."""
        bodies = [writer.body for writer in list(self._writers.values())]
        return min((body.silent_for for body in bodies if body is not None), default=0.0)

    @contextlib.contextmanager
    def writing(
        self,
        exchange: Exchange,
        span: Span,
        extents: Sequence[range],
        *,
        in_order: bool,
        part_of: int | None = None,
    ) -> Generator[Writer]:
        """Register a writer: what it may write is its own until the block ends, and an extent that it is a
        part of is for other parts only. UploadBusy, Busy."""
        if len(self._writers) >= exchange.limits.streams_per_upload:
            raise Busy(f"this upload has {len(self._writers)} streams already")
        number = next(self._numbers)
        # The parts of an extent hold its lease together.
        holder = number if part_of is None else -1 - part_of
        try:
            for each in extents:
                self._leases.take(holder, each)
            if part_of is not None:
                self.parts.begin(part_of, span)
        except BaseException:
            if part_of is None:
                self._leases.release(holder)
            raise
        writer = self._writers[number] = Writer(exchange, span, in_order)
        try:
            yield writer
        finally:
            if part_of is None or self.parts.end(part_of, span):
                self._leases.release(holder)
            del self._writers[number]
            writer.finished.set()

    async def cut_off_silent(self, span: Span) -> None:
        """Stop the writers of these bytes from which nothing comes any more: a connection
        that died without a word must not keep its sender's next one waiting."""
        reason = ConnectionLost("nothing came on this connection, and its sender has opened another")
        for writer in list(self._writers.values()):
            if not overlap(writer.span, span) or writer.body is None:
                continue
            if writer.body.silent_for >= SILENT_SECONDS:
                writer.cancel.set(reason)
                shut(writer.exchange.connection.sock)
                await writer.finished.wait()

    async def end_appends(self) -> None:
        """Stop the append that is on its way, if any, keeping what it brought: its sender has
        come back on another connection."""
        reason = Interrupted("another request for this upload has ended this append")
        for writer in [writer for writer in self._writers.values() if writer.in_order]:
            writer.exchange.connection.stop_reading()
            try:
                async with asyncio.timeout(APPEND_ENDS_SECONDS):
                    await writer.finished.wait()
            except TimeoutError:
                # It goes on arriving, and the kernel goes on handing it out.
                if writer.body is not None:
                    writer.body.interrupt(reason)
                await writer.finished.wait()

    async def cut_off(self, reason: TdxError) -> None:
        """Stop every body of this upload and wait until none can write any more."""
        while self._writers:
            writers = list(self._writers.values())
            for writer in writers:
                writer.cancel.set(reason)
                shut(writer.exchange.connection.sock)
            for writer in writers:
                await writer.finished.wait()
