"""The store in memory: the port's semantics without a disk, and without descriptors.

For tests of whatever uses a store. It keeps what the port promises, durability aside:
:meth:`MemoryStore.restart` does to its partials what a kill or a power cut does to those on a disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from tdx.errors import NoSpace, NotFound, TdxError, UploadBusy
from tdx.integrity import digest_of
from tdx.model import Conflict, FileName, Owner, Receipt, UploadId, UploadSpec
from tdx.proto.tree import Entry
from tdx.store.journal import Record, Session, State
from tdx.store.memory_bundle import MemoryBundle
from tdx.store.memory_disk import MemoryBase, MemoryDisk, Staged
from tdx.store.memory_tree import MemoryTree
from tdx.store.memory_upload import MemoryUpload
from tdx.store.port import Existing, GoOn, Partial, Told
from tdx.store.rules import check_name, check_space, created, is_idle, matching


class MemoryStore:
    """See :class:`tdx.store.port.Store`; ``disk`` is what it keeps."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.disk = MemoryDisk(clock)
        self._running: dict[UploadId, MemoryUpload] = {}
        self._session = _new_session()

    def restart(self, *, reboot: bool = False) -> None:
        """What SIGKILL and a new start do: uploads are claimed no more. With ``reboot``, what a power
        cut does: what was recorded since the last mark will be gone, and the rest suspect."""
        with self.disk.lock:
            running, self._running = self._running, {}
            if reboot:
                self._session = _new_session()
        for upload in running.values():
            upload.abandon()

    # --- the port ---------------------------------------------------------------------

    def create(self, spec: UploadSpec) -> MemoryUpload:
        spec = created(spec)
        with self.disk.lock:
            found = self.disk.files.get(spec.name)
            size = None if found is None else len(found)
            check_name(spec, taken=self.disk.taken(spec.name), size=size)
            check_space(spec, self.disk.free())
            upload = UploadId(secrets.token_hex(16))
            state = State(spec.extent_size, spec.length, spec.holes)
            staged = self.disk.staged[upload] = Staged(spec, state, self.disk.now(), bytearray())
            return self._begin(upload, staged)

    def open(self, upload: UploadId) -> MemoryUpload:
        with self.disk.lock:
            staged = self.disk.staged.get(upload)
            if staged is None:
                raise NotFound("no such upload")
            if staged.claimed:
                raise UploadBusy("the upload is in use")
            return self._begin(upload, staged)

    def _begin(self, upload: UploadId, staged: Staged) -> MemoryUpload:
        staged.claimed, before = True, staged.state.received
        staged.state.apply(Record.session(self._session))
        lost = before - staged.state.received
        running = self._running[upload] = MemoryUpload(self.disk, upload, staged, lost)
        return running

    def bundle(self, owner: Owner, conflict: Conflict, length: int | None) -> MemoryBundle:
        with self.disk.lock:
            if (length or 1) > self.disk.free():
                raise NoSpace(f"{length or 1} bytes are needed, and {self.disk.free()} may be used")
        return MemoryBundle(owner, conflict, self.create, self._identical)

    def _identical(self, spec: UploadSpec, digests: list[bytes]) -> Existing | None:
        found = self.existing(spec.name)
        if found is None or spec.length is None:
            return None
        others = self.look_alikes(spec.owner, spec.name, spec.length)
        for each in others if spec.conflict is Conflict.RENAME else [found]:
            if self.existing_digests(FileName(each.path), spec.extent_size) == digests:
                return each
        return None

    def find(self, owner: Owner, name: FileName, length: int | None, source_id: str | None) -> list[Partial]:
        return matching(self.partials(), owner, name, length, source_id)

    def partials(self) -> list[Partial]:
        with self.disk.lock:
            return [
                Partial(upload, staged.spec, staged.touched_at, len(staged.data))
                for upload, staged in self.disk.staged.items()
            ]

    def existing(self, name: FileName) -> Existing | None:
        with self.disk.lock:
            self.disk.check_path(name)
            found = self.disk.files.get(name)
            return None if found is None else Existing(name, len(found))

    def look_alikes(self, owner: Owner, name: FileName, size: int) -> list[Existing]:
        with self.disk.lock:
            earlier = [
                each for each, _ in self.disk.receipts.values() if (each.owner, each.name) == (owner, name)
            ]
        newest_first = sorted(earlier, key=lambda each: each.published_at, reverse=True)
        paths = dict.fromkeys([name, *(FileName(each.path) for each in newest_first)])
        found = [self.existing(path) for path in paths]
        return [each for each in found if each is not None and each.size == size]

    def existing_digests(self, name: FileName, extent_size: int) -> list[bytes] | None:
        with self.disk.lock:
            self.disk.check_path(name)
            found = self.disk.files.get(name)
        if found is None:
            return None
        return [digest_of(found[at : at + extent_size]) for at in range(0, len(found), extent_size)]

    def open_base(self, name: FileName) -> MemoryBase | None:
        with self.disk.lock:
            self.disk.check_path(name)
            found = self.disk.files.get(name)
        return MemoryBase(found) if found else None

    def make_durable(self, path: str) -> int:
        return self.disk.make_durable(path)

    def take_entries(
        self, owner: Owner, conflict: Conflict, entries: Sequence[Entry], go_on: GoOn
    ) -> list[Told | TdxError]:
        with self.disk.lock:
            return MemoryTree(self.disk, owner, conflict, self.look_alikes).take_all(entries, go_on)

    def receipt(self, upload: UploadId) -> Receipt | None:
        with self.disk.lock:
            found = self.disk.receipts.get(upload)
            return None if found is None else found[0]

    def receipt_by_key(self, owner: Owner, key: str) -> Receipt | None:
        with self.disk.lock:
            found = [
                each for each, _ in self.disk.receipts.values() if (each.owner, each.key) == (owner, key)
            ]
        return max(found, key=lambda each: each.published_at, default=None)

    def free_bytes(self) -> int:
        with self.disk.lock:
            return max(0, self.disk.free())

    def is_present(self) -> bool:
        return True

    def staged_bytes(self) -> int:
        return sum(partial.staged_bytes for partial in self.partials())

    def used(self, owner: Owner, apart: Collection[UploadId] = ()) -> int:
        with self.disk.lock:
            staged = {upload: each for upload, each in self.disk.staged.items() if each.spec.owner == owner}
            counted = {*apart, *staged}
            there = [
                each.size
                for each in self.disk.still_there().values()
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
        with self.disk.lock:
            removed = [
                partial
                for partial in self.partials()
                if not self.disk.staged[partial.upload].claimed and is_idle(partial, now, older_than)
            ]
            for at, partial in enumerate(removed):
                gone = self.disk.staged.pop(partial.upload)
                removed[at] = replace(partial, received=gone.state.received)
            self.disk.receipts = {
                upload: (receipt, lifetime)
                for upload, (receipt, lifetime) in self.disk.receipts.items()
                if receipt.published_at + lifetime >= now
            }
            self.disk.published_by = self.disk.still_there()
        return removed

    def close(self) -> None:
        """Nothing to release: the store can go on being used, as if opened again."""


def _new_session() -> Session:
    return Session(secrets.token_bytes(16), 1, 1)
