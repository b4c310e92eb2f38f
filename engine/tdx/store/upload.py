"""One claimed upload on the local disk: its bytes, its journal, and its end.

Locks: ``_lock`` guards the state and the phase, and is never held while the disk is
waited for; the ledger's ``writing`` is held by whoever appends to the journal,
``_describing`` by whoever replaces the meta; ``_marking`` lets one sync of the data run at a
time. They are taken in the order ``_describing``, ``writing``, ``_lock``. Whoever ends the
upload waits until no call is inside it any more, so that no write lands in a published
file or on a descriptor that has come to mean another file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Final

from tdx.errors import NotFound, ProtocolError, StorageError, TdxError, disk_failure
from tdx.model import Outcome, Receipt, Span, UploadId, UploadSpec
from tdx.ranges import RangeSet
from tdx.store.base_file import LocalBase, copy_from
from tdx.store.datafile import DataFile
from tdx.store.final_names import DirectoryNotDurable
from tdx.store.folders import Folder
from tdx.store.gate import Gate, Phase
from tdx.store.journal import Record
from tdx.store.ledger import Ledger
from tdx.store.port import Base, Piece
from tdx.store.publish import Destination, Placed
from tdx.store.reading import new_buffer
from tdx.store.rules import complete_length, lengthened, needed_bytes, refreshed
from tdx.store.syscalls import System

MARK_BYTES: Final = 1 << 30
MARK_SECONDS: Final = 30.0
"""A durability mark is due when this much, or for this long, has gathered since the last."""


class LocalUpload:
    """See :class:`tdx.store.port.Upload`; it offers its descriptor.

    After a failed sync the upload is *poisoned*: the extents since the last mark are
    forgotten, and every call but :meth:`discard` and :meth:`close` raises StorageError.
    Opened anew, it goes on from what is left.
    """

    def __init__(
        self,
        system: System,
        folder: Folder,
        spec: UploadSpec,
        ledger: Ledger,
        data: DataFile,
        destination: Destination,
        ended: Callable[[UploadId], None],
    ) -> None:
        """``ledger`` and ``data`` are those of the claimed ``folder``. ``ended`` is called once, when
        the claim is given up."""
        self._system = system
        self._folder = folder
        self._spec = spec
        self._ledger = ledger
        self._state = ledger.state
        self._data = data
        self._destination = destination
        self._ended = ended
        self._lock = ledger.lock
        self._describing = threading.Lock()
        self._gate = Gate(spec.name, self._lock)
        self._marking = threading.Lock()
        self._ruined = False
        self._placed: Placed | None = None
        self._gathered = 0
        self._marked_at = system.monotonic()
        self._background: threading.Thread | None = None
        self._needed = needed_bytes(spec)

    # --- what is there --------------------------------------------------------------

    @property
    def id(self) -> UploadId:
        return self._folder.upload

    @property
    def spec(self) -> UploadSpec:
        return self._spec

    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def descriptor(self) -> int:
        return self._folder.data

    @property
    def held(self) -> RangeSet:
        with self._lock:
            return self._state.held.copy()

    @property
    def digests(self) -> Mapping[int, bytes]:
        with self._lock:
            return self._state.digests()

    @property
    def tails(self) -> Mapping[int, Piece]:
        with self._lock:
            return self._state.tails()

    @property
    def suspects(self) -> frozenset[int]:
        with self._lock:
            return self._state.suspects()

    @property
    def received(self) -> int:
        with self._lock:
            return self._state.received

    def tell_lost(self, lost: Callable[[int], None]) -> None:
        self._ledger.tell_lost(lost)

    @property
    def spoiled(self) -> bool:
        return self._gate.poison is not None

    def still_needed(self) -> int:
        """Bytes of disk that writing the rest may yet take."""
        with self._lock:
            if self._gate.phase is Phase.ENDED or not self._needed:
                return 0
            # Answered from memory, so it may be asked under the lock that keeps it open.
            return max(0, self._needed - self._data.taken())

    # --- bytes ------------------------------------------------------------------------

    def write_at(self, data: memoryview, offset: int) -> None:
        length = self._spec.length
        if length is not None and offset + len(data) > length:
            raise ProtocolError(f"{self._spec.name}: bytes beyond the length of {length}")
        with self._gate.inside():
            self._check_room(len(data))
            self._data.write(data, offset)

    def wrote(self, offset: int, length: int) -> None:
        with self._gate.inside():
            self._check_room(length)
            self._data.wrote(offset, length)

    def _check_room(self, size: int) -> None:
        # Room for a known length was promised when the upload began.
        if self._spec.length is None:
            self._data.check_room(size)

    def take(self, base: Base, span: Span, go_on: Callable[[], None]) -> None:
        if not isinstance(base, LocalBase):
            raise TypeError("a local upload is made from a file on the local disk")
        with self._gate.inside():
            copy_from(base, self._system, self._folder.data, span, self._spec.name, go_on)

    def read_at(self, view: memoryview, offset: int) -> int:
        with self._gate.inside():
            return self._data.read(view, offset)

    # --- the journal --------------------------------------------------------------------

    def record(self, piece: Piece) -> None:
        record = Record.piece(piece)
        with self._gate.inside():
            with self._appending():
                if not self._state.fits(record):
                    raise ValueError(
                        f"not a piece of this upload: {piece.span}, {len(piece.digest)} bytes of digest"
                    )
                self._ledger.append([record])
            with self._lock:
                self._gathered += len(piece.span)
                if self._background is None and self._mark_is_due():
                    marking = threading.Thread(target=self._mark_in_background, name="tdx-mark", daemon=True)
                    # Where no thread can be started, the next record tries again.
                    with contextlib.suppress(RuntimeError):
                        marking.start()
                        self._background = marking

    @contextlib.contextmanager
    def _appending(self) -> Generator[None]:
        """The journal is this thread's; StorageError where a failed sync has spoiled the upload,
        for nothing may be claimed after what is lost has been named."""
        with self._ledger.writing:
            with self._lock:
                self._gate.check_poison()
            yield

    def _mark_is_due(self) -> bool:
        return self._gathered >= MARK_BYTES or self._system.monotonic() - self._marked_at >= MARK_SECONDS

    def _mark_in_background(self) -> None:
        # A failure has poisoned the upload: its next call says so.
        with contextlib.suppress(TdxError):
            self.mark()
        with self._lock:
            self._background = None

    def mark(self) -> None:
        with self._gate.inside():
            self._mark()

    def _mark(self) -> None:
        with self._marking:
            with self._lock:
                if not self._state.recent():
                    return
                covered = self._state.count
                gathered = self._gathered
            self._durably(self._data.sync)
            with self._appending():
                self._ledger.append([Record.mark(covered)])
            with self._lock:
                self._gathered -= gathered
                self._marked_at = self._system.monotonic()
            self._sync_journal()

    def invalidate(self, extents: Iterable[int]) -> None:
        with self._gate.inside():
            self._forget(extents)

    def _forget(self, extents: Iterable[int]) -> None:
        with self._appending():
            self._ledger.forget(index for index in extents if self._state.known(index))
        self._sync_journal()

    def recheck(self, extents: Iterable[int]) -> frozenset[int]:
        differing: set[int] = set()
        buffer = new_buffer()
        with self._gate.inside():
            for index in sorted(set(extents)):
                with self._lock:
                    entry = self._state.entry(index)
                if entry is None:
                    continue
                same = self._data.digest_of(entry.piece.span, buffer) == entry.piece.digest
                with self._appending():
                    if self._state.entry(index) is not entry:
                        continue
                    if not same:
                        differing.add(index)
                    elif self._state.is_suspect(entry):
                        self._ledger.append([Record.piece(entry.piece)])
            if differing:
                self._forget(differing)
        return frozenset(differing)

    def _sync_journal(self) -> None:
        self._durably(self._ledger.sync)

    def _durably(self, sync: Callable[[], None]) -> None:
        """Run a sync; should it fail, forget what it was to make durable, for good: the kernel
        may have dropped those pages, and would call the next sync a success."""
        try:
            sync()
        except OSError as error:
            poison = f"{self._spec.name}: the disk failed to make data durable: {error.strerror}"
            with self._lock:
                self._gate.poison = poison
            with self._ledger.writing:
                try:
                    self._ledger.append(self._state.rollback())
                    self._system.fdatasync(self._folder.journal)
                except (TdxError, OSError):
                    self._ruined = True
            raise StorageError(poison) from error

    # --- the specification --------------------------------------------------------------

    def raise_epoch(self) -> int:
        with self._gate.inside():
            with self._appending():
                epoch = self._state.epoch + 1
                self._ledger.append([Record.epoch(epoch)])
            self._sync_journal()
            return epoch

    def refresh(self, spec: UploadSpec) -> None:
        with self._gate.inside(), self._describing:
            self._write_spec(refreshed(self._spec, spec))

    def set_length(self, length: int) -> None:
        # No record meanwhile: it might not fit the length.
        with self._gate.inside(), self._describing, self._appending():
            self._write_spec(lengthened(self._spec, self._state, length))
            with self._lock:
                self._state.length = length

    def _write_spec(self, spec: UploadSpec) -> None:
        if spec == self._spec:
            return
        try:
            self._folder.write_spec(spec)
        except OSError as error:
            raise disk_failure(f"{spec.name}: cannot be noted", error) from error
        self._spec = spec

    # --- its end --------------------------------------------------------------------------

    def publish(self, *, root: str, verified: bool) -> Receipt:
        with self._gate.alone():
            if self._placed is None:
                self._gate.check_poison()
                size = complete_length(self._spec, self._state)
                if lost := self._state.beyond(self._data.size()):
                    self._forget(lost)
                    raise StorageError(
                        f"{self._spec.name}: bytes that were stored are gone; they must be sent again"
                    )
                if self._spec.sparse:
                    self._data.punch_zeros()
                self._data.give_attributes(size, self._spec.mode, self._spec.mtime_ns)
                self._durably(self._data.sync_all)
                try:
                    self._placed = self._destination.place(
                        self._folder, self._spec, size=size, root=root, verified=verified
                    )
                except DirectoryNotDurable as error:
                    # The intent stays: the next start of the receiver finds the file and syncs again.
                    self._gate.poison = error.message
                    raise
            placed = self._placed
            if placed is None:
                placed = self._settled(Outcome.SKIPPED, self._spec.name, root, verified=False)
            else:
                self._gate.poison = (
                    f"{placed.receipt.path}: is published, and its receipt could not be stored"
                )
            self._finish(placed)
            return placed.receipt

    def settle(self, outcome: Outcome, path: str, *, root: str, verified: bool) -> Receipt:
        with self._gate.alone():
            self._gate.check_poison()
            settled = self._settled(outcome, path, root, verified=verified)
            self._finish(settled)
            return settled.receipt

    def discard(self) -> int:
        with self._gate.alone():
            received = self.received
            try:
                self._folder.remove()
            except OSError as error:
                raise disk_failure(f"{self._spec.name}: the partial cannot be removed", error) from error
            self._give_up()
            return received

    def close(self) -> None:
        with contextlib.suppress(NotFound), self._gate.alone(wait=True):
            if self._gate.poison is None:
                with contextlib.suppress(TdxError):
                    self._mark()
            if self._ruined:
                # Its journal claims what is lost, and cannot be made to say so.
                with contextlib.suppress(OSError):
                    self._folder.remove()
                    self._ledger.lose_all()
            self._give_up()

    def _settled(self, outcome: Outcome, path: str, root: str, *, verified: bool) -> Placed:
        return Placed(self._destination.settle(self.id, self._spec, outcome, path, root, verified=verified))

    def _finish(self, placed: Placed) -> None:
        self._destination.finish(self._folder, placed, self._spec.expires_after)
        self._give_up()

    def _give_up(self) -> None:
        self._gate.end()
        with self._lock:
            background = self._background
        if background is not None:
            background.join()
        self._folder.close()
        self._ended(self.id)
