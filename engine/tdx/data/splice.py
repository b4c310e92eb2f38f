"""The receiving pump that never copies into the process: socket, pipe, file.

The digest is taken from the file itself, read back while its pages are hot: what is
vouched for is what the page cache holds, not what the network brought.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from time import perf_counter
from typing import Final

from tdx.data.buffers import BUFFERS
from tdx.data.port import BUFFER, Body, Cancel, DescriptorSink, RawBody, ReceiveHooks, Sink, Slot
from tdx.data.receive import BufferedReceive
from tdx.data.slots import SlotLedger
from tdx.errors import ConnectionLost, StorageError, disk_failure
from tdx.integrity import Hasher, new_hasher

UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a kernel or a filesystem without the call says."""


class SpliceReceive:
    """Splices from the socket into the file, then reads back and hashes.

    Where the kernel or the filesystem refuses, the rest of the body is copied through a buffer
    without losing a byte; where the body or the sink is not a descriptor, all of it
    goes through :class:`tdx.data.receive.BufferedReceive`.
    """

    @property
    def name(self) -> str:
        return "splice"

    def receive(
        self, body: Body, sink: Sink, slots: Iterator[Slot], hooks: ReceiveHooks, cancel: Cancel
    ) -> None:
        """See :class:`tdx.data.port.ReceivePump`."""
        if not isinstance(body, RawBody) or not isinstance(sink, DescriptorSink):
            BufferedReceive().receive(body, sink, slots, hooks, cancel)
        else:
            _Run(body, sink, hooks, cancel).move(slots)


class _Run:
    """One body on its way through the pipe."""

    def __init__(self, body: RawBody, sink: DescriptorSink, hooks: ReceiveHooks, cancel: Cancel) -> None:
        self._stages = hooks.stages
        self._ledger = SlotLedger(hooks, cancel)
        self._body = body
        self._sink = sink
        self._hooks = hooks
        self._cancel = cancel
        self._prefix = b""
        self._spliceable = True
        self._scratch = BUFFERS.take()
        self._outlet, self._inlet = os.pipe()
        with contextlib.suppress(OSError):
            # Above the user's limit the pipe stays small, which is slower and nothing else.
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, BUFFER)

    def move(self, slots: Iterator[Slot]) -> None:
        try:
            self._prefix = self._body.take_prefix()
            self._move_slots(slots)
        finally:
            os.close(self._outlet)
            os.close(self._inlet)
            BUFFERS.give(self._scratch)
            self._ledger.break_off()

    def _move_slots(self, slots: Iterator[Slot]) -> None:
        while self._prefix or self._body.remaining():
            slot = next(slots, None)
            if slot is None:
                return
            hasher = slot.hasher or new_hasher()
            at = slot.span.start
            while at < slot.span.end and (self._prefix or self._body.remaining()):
                at += self._step(slot, at, hasher) if slot.keep else self._discard(slot.span.end - at)

    def _discard(self, limit: int) -> int:
        n = len(self._cut_prefix(limit)) if self._prefix else self._read(limit)
        self._hooks.received(n)
        self._cancel.check()
        self._hooks.discarded(n)
        return n

    def _step(self, slot: Slot, at: int, hasher: Hasher) -> int:
        """Bring the next bytes of ``slot`` into the file at ``at``; how many, 0 where splice
        has just turned out not to work."""
        size = min(slot.span.end - at, BUFFER)
        if self._prefix:
            data = memoryview(self._cut_prefix(size))
            n = len(data)
        elif self._spliceable:
            n = self._fill_pipe(self._body.piece(min(size, self._body.remaining())))
            data = None
        else:
            n = self._read(size)
            data = self._scratch[:n]
        if n:
            self._hooks.received(n)
            self._cancel.check()
            with self._hooks.turn():
                started = perf_counter()
                if data is None:
                    self._empty_pipe(at, n)
                    self._body.consumed(0)
                else:
                    self._sink.write_at(data, at)
                self._stages.write += perf_counter() - started
                self._read_back(at, n, hasher)
            self._ledger.advanced(slot, at + n, hasher)
        return n

    def _cut_prefix(self, limit: int) -> bytes:
        data, self._prefix = self._prefix[:limit], self._prefix[limit:]
        return data

    def _read(self, limit: int) -> int:
        started = perf_counter()
        n = self._body.readinto(self._scratch[: min(limit, self._body.remaining(), BUFFER)])
        self._stages.receive += perf_counter() - started
        return n

    def _fill_pipe(self, size: int) -> int:
        sock = self._body.socket.fileno()
        while True:
            started = perf_counter()
            try:
                n = os.splice(sock, self._inlet, size)
            except BlockingIOError:
                self._body.waiting()
                continue
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    self._spliceable = False
                    return 0
                self._cancel.check()
                reason = f"the connection broke in the middle of a body: {error.strerror}"
                raise ConnectionLost(reason) from error
            finally:
                self._stages.receive += perf_counter() - started
            if not n:
                self._cancel.check()
                raise ConnectionLost("the connection ended in the middle of a body")
            self._body.consumed(n)
            return n

    def _empty_pipe(self, at: int, size: int) -> None:
        end = at + size
        while at < end:
            try:
                n = os.splice(self._outlet, self._sink.descriptor, end - at, offset_dst=at)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise disk_failure("what is being received cannot be written", error) from error
                # The file takes no splice: what the pipe holds goes the ordinary way.
                self._spliceable = False
                data = os.read(self._outlet, end - at)
                self._sink.write_at(memoryview(data), at)
                n = len(data)
            else:
                self._sink.wrote(at, n)
            at += n

    def _read_back(self, at: int, size: int, hasher: Hasher) -> None:
        view = self._scratch[:size]
        started = perf_counter()
        n = self._sink.read_at(view, at)
        read = perf_counter()
        if n != size:
            raise StorageError(f"of {size} bytes just written only {n} can be read back")
        hasher.update(view)
        self._stages.read += read - started
        self._stages.hash += perf_counter() - read
