"""One claimed upload of a store in memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping

from tdx.errors import NotFound, ProtocolError, StorageError
from tdx.integrity import digest_of
from tdx.model import Outcome, Receipt, Span, UploadId, UploadSpec
from tdx.ranges import RangeSet
from tdx.store.gate import Gate
from tdx.store.journal import Record, runs
from tdx.store.memory_disk import MemoryDisk, Staged
from tdx.store.port import Base, Piece
from tdx.store.rules import complete_length, lengthened, refreshed


class MemoryUpload:
    """See :class:`tdx.store.port.Upload`."""

    def __init__(self, disk: MemoryDisk, upload: UploadId, staged: Staged, lost: int) -> None:
        """``lost`` bytes that came over the network were found to be lost."""
        self._disk = disk
        self._id = upload
        self._staged = staged
        self._lock = threading.Lock()
        self._lost = lost
        self._tell: Callable[[int], None] | None = None
        self._gate = Gate(staged.spec.name, self._lock)

    @property
    def id(self) -> UploadId:
        return self._id

    @property
    def spec(self) -> UploadSpec:
        return self._staged.spec

    @property
    def epoch(self) -> int:
        return self._staged.state.epoch

    @property
    def held(self) -> RangeSet:
        with self._lock:
            return self._staged.state.held.copy()

    @property
    def digests(self) -> Mapping[int, bytes]:
        with self._lock:
            return self._staged.state.digests()

    @property
    def tails(self) -> Mapping[int, Piece]:
        with self._lock:
            return self._staged.state.tails()

    @property
    def suspects(self) -> frozenset[int]:
        with self._lock:
            return self._staged.state.suspects()

    @property
    def received(self) -> int:
        return self._staged.state.received

    def tell_lost(self, lost: Callable[[int], None]) -> None:
        self._tell = lost
        self._tell_lost()

    def _tell_lost(self) -> None:
        if self._tell is not None and self._lost:
            lost, self._lost = self._lost, 0
            self._tell(lost)

    @property
    def spoiled(self) -> bool:
        return self._gate.poison is not None

    def raise_epoch(self) -> int:
        with self._gate.inside(), self._lock:
            self._apply(Record.epoch(self._staged.state.epoch + 1))
            return self._staged.state.epoch

    def refresh(self, spec: UploadSpec) -> None:
        with self._gate.inside(), self._lock:
            self._staged.spec = refreshed(self._staged.spec, spec)

    def set_length(self, length: int) -> None:
        staged = self._staged
        with self._gate.inside(), self._lock:
            staged.spec = lengthened(staged.spec, staged.state, length)
            staged.state.length = length

    def write_at(self, data: memoryview, offset: int) -> None:
        staged = self._staged
        end = offset + len(data)
        length = staged.spec.length
        if length is not None and end > length:
            raise ProtocolError(f"{staged.spec.name}: bytes beyond the length of {length}")
        with self._gate.inside():
            self._disk.grow(staged, end)
            with self._lock:
                staged.data[offset:end] = data

    def take(self, base: Base, span: Span, go_on: Callable[[], None]) -> None:
        go_on()
        found = memoryview(bytearray(len(span)))
        if size := base.read_at(found, span.start):
            self.write_at(found[:size], span.start)

    def read_at(self, view: memoryview, offset: int) -> int:
        with self._gate.inside(), self._lock:
            found = bytes(self._staged.data[offset : offset + len(view)])
        view[: len(found)] = found
        return len(found)

    def record(self, piece: Piece) -> None:
        record = Record.piece(piece)
        with self._gate.inside(), self._lock:
            if not self._staged.state.fits(record):
                raise ValueError(
                    f"not a piece of this upload: {piece.span}, {len(piece.digest)} bytes of digest"
                )
            self._apply(record)

    def invalidate(self, extents: Iterable[int]) -> None:
        with self._gate.inside(), self._lock:
            self._forget(extents)

    def recheck(self, extents: Iterable[int]) -> frozenset[int]:
        state = self._staged.state
        with self._gate.inside(), self._lock:
            found = {index: entry for index in extents if (entry := state.entry(index)) is not None}
            differing = {
                index
                for index, entry in found.items()
                if digest_of(bytes(self._staged.data[entry.piece.span.start : entry.piece.span.end]))
                != entry.piece.digest
            }
            for index, entry in found.items():
                if index not in differing and state.is_suspect(entry):
                    self._apply(Record.piece(entry.piece))
            self._forget(differing)
        return frozenset(differing)

    def mark(self) -> None:
        with self._gate.inside(), self._lock:
            self._mark()

    def publish(self, *, root: str, verified: bool) -> Receipt:
        with self._gate.alone():
            self._gate.check_poison()
            length = complete_length(self.spec, self._staged.state)
            path = self._disk.place(self._staged, length)
            outcome = Outcome.SKIPPED if path is None else Outcome.PUBLISHED
            receipt = self._receipt(outcome, path or self.spec.name, root, verified and path is not None)
            self._finish(receipt)
            return receipt

    def settle(self, outcome: Outcome, path: str, *, root: str, verified: bool) -> Receipt:
        with self._gate.alone():
            self._gate.check_poison()
            if outcome is Outcome.IDENTICAL:
                self._disk.make_durable(path)
            receipt = self._receipt(outcome, path, root, verified)
            self._finish(receipt)
            return receipt

    def discard(self) -> int:
        with self._gate.alone():
            received = self.received
            self._disk.remove(self._id)
            self._end()
            return received

    def close(self) -> None:
        with contextlib.suppress(NotFound), self._gate.alone(wait=True):
            with contextlib.suppress(StorageError):
                self._mark()
            self._end()

    def abandon(self) -> None:
        """End without a mark, as a kill does."""
        with contextlib.suppress(NotFound), self._gate.alone(wait=True):
            self._end()

    def _end(self) -> None:
        self._staged.claimed = False
        self._gate.end()

    def _apply(self, record: Record) -> None:
        state = self._staged.state
        before = state.received
        state.apply(record)
        self._lost += max(0, before - state.received)
        self._tell_lost()
        self._staged.touched_at = self._disk.now()

    def _forget(self, extents: Iterable[int]) -> None:
        for first, end in runs(index for index in extents if self._staged.state.known(index)):
            self._apply(Record.invalidate(first, end))

    def _mark(self) -> None:
        if self._disk.syncs_fail:
            self._gate.poison = f"{self.spec.name}: the disk failed to make data durable"
            self._forget(self._staged.state.recent())
            self._gate.check_poison()
        self._staged.state.apply(Record.mark(self._staged.state.count))

    def _receipt(self, outcome: Outcome, path: str, root: str, verified: bool) -> Receipt:
        spec = self.spec
        return Receipt(
            upload=self._id,
            owner=spec.owner,
            key=spec.key,
            name=spec.name,
            path=path,
            size=self._disk.size_of(path),
            root=root,
            verified=verified,
            outcome=outcome,
            published_at=self._disk.now(),
        )

    def _finish(self, receipt: Receipt) -> None:
        self._disk.keep(receipt, self.spec.expires_after)
        self._disk.remove(self._id)
        self._end()
