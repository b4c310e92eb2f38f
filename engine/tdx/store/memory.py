"""The store in memory: the port's semantics without a disk, and without descriptors.

For tests of whatever uses a store. It keeps what the port promises, durability aside:
:meth:`MemoryStore.restart` does to its partials what a kill or a power cut does to those on a disk.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from tdx.errors import BadName, Exists, NoSpace, NotFound, ProtocolError, StorageError, UploadBusy
from tdx.integrity import digest_of
from tdx.model import Conflict, FileName, Outcome, Owner, Receipt, UploadId, UploadSpec
from tdx.ranges import RangeSet
from tdx.store.gate import Gate
from tdx.store.journal import Record, Session, State, runs
from tdx.store.port import Existing, Partial, Piece
from tdx.store.rules import (
    check_name,
    check_space,
    complete_length,
    created,
    free_number,
    is_idle,
    lengthened,
    matching,
    needed_bytes,
    refreshed,
)


@dataclass(slots=True)
class Published:
    """A file as :class:`MemoryStore` publishes it."""

    data: bytes
    mtime_ns: int | None
    mode: int | None


@dataclass(slots=True)
class _Staged:
    spec: UploadSpec
    state: State
    touched_at: float
    data: bytearray
    claimed: bool = False

    def still_needed(self) -> int:
        needed = needed_bytes(self.spec)
        return max(0, needed - len(self.data)) if self.claimed else 0


class MemoryUpload:
    """See :class:`tdx.store.port.Upload`."""

    def __init__(self, store: MemoryStore, upload: UploadId, staged: _Staged) -> None:
        self._store = store
        self._id = upload
        self._staged = staged
        self._lock = threading.Lock()
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
            self._store.grow(staged, end)
            with self._lock:
                staged.data[offset:end] = data

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
            path = self._store.place(self._staged, length)
            outcome = Outcome.SKIPPED if path is None else Outcome.PUBLISHED
            receipt = self._receipt(outcome, path or self.spec.name, root, verified and path is not None)
            self._finish(receipt)
            return receipt

    def settle(self, outcome: Outcome, path: str, *, root: str, verified: bool) -> Receipt:
        with self._gate.alone():
            self._gate.check_poison()
            if outcome is Outcome.IDENTICAL:
                self._store.make_durable(path)
            receipt = self._receipt(outcome, path, root, verified)
            self._finish(receipt)
            return receipt

    def discard(self) -> None:
        with self._gate.alone():
            self._store.remove(self._id)
            self._end()

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
        self._staged.state.apply(record)
        self._staged.touched_at = self._store.now()

    def _forget(self, extents: Iterable[int]) -> None:
        for first, end in runs(index for index in extents if self._staged.state.known(index)):
            self._apply(Record.invalidate(first, end))

    def _mark(self) -> None:
        if self._store.syncs_fail:
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
            size=self._store.size_of(path),
            root=root,
            verified=verified,
            outcome=outcome,
            published_at=self._store.now(),
        )

    def _finish(self, receipt: Receipt) -> None:
        self._store.keep(receipt, self.spec.expires_after)
        self._store.remove(self._id)
        self._end()


class MemoryStore:
    """See :class:`tdx.store.port.Store`. ``files`` is what is published, by path; ``capacity`` the
    bytes that may be stored, published and staged together; ``syncs_fail`` whether making anything
    durable fails, as on a dying disk."""

    def __init__(self, *, capacity: int = 1 << 40, clock: Callable[[], float] = time.time) -> None:
        self.files: dict[str, Published] = {}
        self.now = clock
        self.capacity = capacity
        self.syncs_fail = False
        self._lock = threading.RLock()
        self._staged: dict[UploadId, _Staged] = {}
        self._running: dict[UploadId, MemoryUpload] = {}
        self._receipts: dict[UploadId, tuple[Receipt, float]] = {}
        self._published_by: dict[str, Receipt] = {}
        self._session = _new_session()

    def restart(self, *, reboot: bool = False) -> None:
        """What SIGKILL and a new start do: uploads are claimed no more. With ``reboot``, what a power
        cut does: what was recorded since the last mark will be gone, and the rest suspect."""
        with self._lock:
            running, self._running = self._running, {}
            if reboot:
                self._session = _new_session()
        for upload in running.values():
            upload.abandon()

    # --- the port ---------------------------------------------------------------------

    def create(self, spec: UploadSpec) -> MemoryUpload:
        spec = created(spec)
        with self._lock:
            found = self.files.get(spec.name)
            size = None if found is None else len(found.data)
            check_name(spec, taken=self._taken(spec.name), size=size)
            check_space(spec, self._free())
            upload = UploadId(secrets.token_hex(16))
            state = State(spec.extent_size, spec.length, spec.holes)
            staged = self._staged[upload] = _Staged(spec, state, self.now(), bytearray())
            return self._begin(upload, staged)

    def open(self, upload: UploadId) -> MemoryUpload:
        with self._lock:
            staged = self._staged.get(upload)
            if staged is None:
                raise NotFound("no such upload")
            if staged.claimed:
                raise UploadBusy("the upload is in use")
            return self._begin(upload, staged)

    def _begin(self, upload: UploadId, staged: _Staged) -> MemoryUpload:
        staged.claimed = True
        staged.state.apply(Record.session(self._session))
        running = self._running[upload] = MemoryUpload(self, upload, staged)
        return running

    def find(self, owner: Owner, name: FileName, length: int | None, source_id: str | None) -> list[Partial]:
        return matching(self.partials(), owner, name, length, source_id)

    def partials(self) -> list[Partial]:
        with self._lock:
            return [
                Partial(upload, staged.spec, staged.touched_at, len(staged.data))
                for upload, staged in self._staged.items()
            ]

    def existing(self, name: FileName) -> Existing | None:
        with self._lock:
            self._check_path(name)
            found = self.files.get(name)
            return None if found is None else Existing(name, len(found.data))

    def look_alikes(self, owner: Owner, name: FileName, size: int) -> list[Existing]:
        with self._lock:
            earlier = [
                each for each, _ in self._receipts.values() if (each.owner, each.name) == (owner, name)
            ]
        newest_first = sorted(earlier, key=lambda each: each.published_at, reverse=True)
        paths = dict.fromkeys([name, *(FileName(each.path) for each in newest_first)])
        found = [self.existing(path) for path in paths]
        return [each for each in found if each is not None and each.size == size]

    def existing_digests(self, name: FileName, extent_size: int) -> list[bytes] | None:
        with self._lock:
            self._check_path(name)
            found = self.files.get(name)
        if found is None:
            return None
        return [digest_of(found.data[at : at + extent_size]) for at in range(0, len(found.data), extent_size)]

    def make_durable(self, path: str) -> int:
        size = self.size_of(path)
        if self.syncs_fail:
            raise StorageError(f"{path}: cannot be made durable")
        return size

    def receipt(self, upload: UploadId) -> Receipt | None:
        with self._lock:
            found = self._receipts.get(upload)
            return None if found is None else found[0]

    def receipt_by_key(self, owner: Owner, key: str) -> Receipt | None:
        with self._lock:
            found = [each for each, _ in self._receipts.values() if (each.owner, each.key) == (owner, key)]
        return max(found, key=lambda each: each.published_at, default=None)

    def free_bytes(self) -> int:
        with self._lock:
            return max(0, self._free())

    def is_present(self) -> bool:
        return True

    def staged_bytes(self) -> int:
        return sum(partial.staged_bytes for partial in self.partials())

    def used(self, owner: Owner, apart: Collection[UploadId] = ()) -> int:
        with self._lock:
            staged = {upload: each for upload, each in self._staged.items() if each.spec.owner == owner}
            counted = {*apart, *staged}
            there = [
                each.size
                for each in self._still_there().values()
                if each.owner == owner and each.upload not in counted
            ]
            lengths = [
                len(each.data) if each.spec.length is None else each.spec.length
                for upload, each in staged.items()
                if upload not in apart
            ]
        return sum(lengths) + sum(there)

    def recover(self) -> list[Receipt]:
        return []

    def expire(self, now: float, older_than: float | None = None) -> list[Partial]:
        with self._lock:
            removed = [
                partial
                for partial in self.partials()
                if not self._staged[partial.upload].claimed and is_idle(partial, now, older_than)
            ]
            for partial in removed:
                del self._staged[partial.upload]
            self._receipts = {
                upload: (receipt, lifetime)
                for upload, (receipt, lifetime) in self._receipts.items()
                if receipt.published_at + lifetime >= now
            }
            self._published_by = self._still_there()
        return removed

    def close(self) -> None:
        """Nothing to release: the store can go on being used, as if opened again."""

    # --- for its uploads ----------------------------------------------------------------

    def grow(self, staged: _Staged, end: int) -> None:
        """Make room for bytes up to ``end``. NoSpace."""
        with self._lock:
            more = end - len(staged.data)
            if more > 0:
                if more > self.capacity - self._used():
                    raise NoSpace(f"{staged.spec.name}: no space left")
                staged.data.extend(bytes(more))
                staged.touched_at = self.now()

    def place(self, staged: _Staged, length: int) -> str | None:
        """Publish; the path, or None where the name is taken and the mode is ``skip``."""
        spec = staged.spec
        with self._lock:
            path: str = spec.name
            if self._taken(path):
                if spec.conflict is Conflict.RENAME:
                    leaf = path.rpartition("/")[2]
                    above = path[: -len(leaf)]
                    path = above + free_number(leaf, lambda each: self._taken(above + each))
                elif spec.conflict is Conflict.ERROR or path not in self.files:
                    raise Exists(f"{path}: is there already", path=path)
                elif spec.conflict is Conflict.SKIP:
                    return None
            data = bytes(staged.data[:length]).ljust(length, b"\0")
            mode = None if spec.mode is None else spec.mode & 0o777
            self.files[path] = Published(data, spec.mtime_ns, mode)
            return path

    def size_of(self, path: str) -> int:
        """NotFound where nothing carries this name."""
        with self._lock:
            if path not in self.files:
                raise NotFound(f"{path}: is no longer there")
            return len(self.files[path].data)

    def keep(self, receipt: Receipt, lifetime: float) -> None:
        with self._lock:
            self._receipts[receipt.upload] = receipt, lifetime
            if receipt.outcome is Outcome.PUBLISHED:
                self._published_by[receipt.path] = receipt

    def remove(self, upload: UploadId) -> None:
        with self._lock:
            del self._staged[upload]
            self._running.pop(upload, None)

    def _taken(self, path: str) -> bool:
        self._check_path(path)
        return path in self.files or any(each.startswith(path + "/") for each in self.files)

    def _check_path(self, path: str) -> None:
        folders = path.split("/")[:-1]
        for count in range(1, len(folders) + 1):
            if "/".join(folders[:count]) in self.files:
                raise BadName(f"{path}: {folders[count - 1]} is there and is not a folder")

    def _still_there(self) -> dict[str, Receipt]:
        return {
            path: receipt
            for path, receipt in self._published_by.items()
            if path in self.files and len(self.files[path].data) == receipt.size
        }

    def _used(self) -> int:
        staged = sum(len(each.data) for each in self._staged.values())
        return staged + sum(len(each.data) for each in self.files.values())

    def _free(self) -> int:
        return self.capacity - self._used() - sum(each.still_needed() for each in self._staged.values())


def _new_session() -> Session:
    return Session(secrets.token_bytes(16), 1, 1)
