"""The store on a local disk: DIR, the uploads on their way into it, and their receipts.

``docs/store.md`` specifies the files, the order in which they are made durable, and
recovery.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from tdx.errors import NotFound, StorageError, TdxError, UploadBusy, disk_failure
from tdx.model import RESERVE, Conflict, FileName, Owner, Receipt, UploadId, UploadSpec
from tdx.proto.tree import Entry
from tdx.store.base_file import LocalBase
from tdx.store.bundle import LocalBundle
from tdx.store.bundles import UNFINISHED_AGE, Bundles
from tdx.store.datafile import DataFile, Disk
from tdx.store.final_names import FinalNames
from tdx.store.folders import Folder, Unreadable, remove
from tdx.store.journal import Session, State, replay
from tdx.store.ledger import Ledger
from tdx.store.own import lock, open_folder, open_own, store_id
from tdx.store.paths import OWN, Tree
from tdx.store.port import Existing, GoOn, Partial, Told
from tdx.store.publish import Destination
from tdx.store.publish_context import PublishContext
from tdx.store.published import no_longer, still_there
from tdx.store.reading import extent_digests
from tdx.store.receipts import Receipts
from tdx.store.rules import check_name, created, is_idle, matching
from tdx.store.space import Space
from tdx.store.syscalls import IN_MEMORY, NO_PREALLOCATION, SYNCED_AS_A_WHOLE, System
from tdx.store.tree_request import TreeRequest
from tdx.store.upload import LocalUpload
from tdx.store.uploads import Uploads

log = logging.getLogger(__name__)


class LocalStore:
    """See :class:`tdx.store.port.Store`. Its uploads offer descriptors."""

    def __init__(
        self,
        folder: Path,
        state: Path,
        *,
        reserve: int = RESERVE,
        system: System | None = None,
        exclusive: bool = True,
    ) -> None:
        """``folder`` is DIR, made if only its last component is missing; ``state`` the state
        directory; ``reserve`` the bytes of the disk that are never filled.

        ConfigError where DIR or its ``.tdx`` is not ours alone to write, or another
        receiver has it. ``exclusive=False`` does not care about the latter: for cleaning
        up beside a running receiver, whose uploads are protected by their own claims.
        """
        self._system = system = system or System()
        self._exclusive = exclusive
        self._lock = threading.Lock()
        self._running: dict[UploadId, LocalUpload] = {}
        self._receiving: set[LocalBundle] = set()
        with contextlib.ExitStack() as undo:
            self._tree = Tree(system, open_folder(system, str(folder)))
            undo.callback(self._tree.close)
            self._space = Space(system, self._tree.fd, reserve)
            device = self._tree.device
            own_path = os.path.join(folder, OWN)
            own = open_own(system, own_path, OWN, dir_fd=self._tree.fd, device=device)
            undo.callback(system.close, own)
            if exclusive:
                undo.callback(system.close, lock(system, own, str(folder)))
            path = os.path.join(own_path, "uploads")
            uploads = open_own(system, path, "uploads", dir_fd=own, device=device)
            undo.callback(system.close, uploads)
            self._uploads = Uploads(system, uploads)
            path = os.path.join(own_path, "bundles")
            bundles = open_own(system, path, "bundles", dir_fd=own, device=device)
            undo.callback(system.close, bundles)
            receipts = Receipts(state, store_id(system, own, own_path))
            undo.callback(receipts.close)
            self._receipts = receipts
            kind = system.filesystem(uploads)
            self._preallocates = kind not in NO_PREALLOCATION
            self._session = Session(system.boot_id(), device, system.mount_id(uploads))
            self._disk = Disk(kind not in IN_MEMORY, system.umask(), self._space.unreserved)
            self._names = FinalNames(system, self._tree)
            self._destination = Destination(system, self._tree, self._names, receipts)
            self._bundles = Bundles(system, bundles, self._names, receipts)
            self._publishing = PublishContext(
                system,
                self._tree,
                self._names,
                receipts,
                self._bundles,
                as_one=kind in SYNCED_AS_A_WHOLE,
                turns=threading.Lock(),
            )
            self._resources = undo.pop_all()

    # --- uploads ----------------------------------------------------------------------

    def create(self, spec: UploadSpec) -> LocalUpload:
        spec = created(spec)
        found = self._tree.look(spec.name)
        size = found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None
        check_name(spec, taken=found is not None, size=size)
        upload = UploadId(secrets.token_hex(16))
        with self._space.promise(spec):
            folder = Folder.make(self._system, self._uploads.fd, upload, spec)
            try:
                if self._preallocates:
                    self._space.preallocate(folder.data, spec)
                return self._begin(folder, spec)
            except BaseException as error:
                if isinstance(error, TdxError):
                    with contextlib.suppress(OSError):
                        folder.remove()
                folder.close()
                raise

    def open(self, upload: UploadId) -> LocalUpload:
        try:
            return self._open(upload)
        except Unreadable as error:
            # It can make no claim, and kept it would stand in the way of every new push of its source.
            if not self._remove_unreadable(upload, error):
                raise
            raise NotFound("no such upload") from error

    def _open(self, upload: UploadId) -> LocalUpload:
        folder = Folder.claim(self._system, self._uploads.fd, upload)
        try:
            self._destination.recover(folder)
            if folder.data < 0:
                raise NotFound("no such upload")
            return self._begin(folder, folder.spec())
        except OSError as error:
            folder.close()
            raise disk_failure("the upload cannot be opened", error) from error
        except BaseException:
            folder.close()
            raise

    def _remove_unreadable(self, upload: UploadId, error: Unreadable) -> bool:
        """Whether this receiver, which alone makes uploads here and does not have this one open, took
        it away: without a journal there is no claim to take first."""
        with self._lock:
            if not self._exclusive or upload in self._running:
                return False
        log.warning("removing the upload %s: %s", upload, error)
        try:
            remove(self._system, self._uploads.fd, upload)
        except OSError as failed:
            log.warning("the upload %s cannot be removed: %s", upload, failed)
        return True

    def _begin(self, folder: Folder, spec: UploadSpec) -> LocalUpload:
        ledger = Ledger(self._system, folder, spec, self._session)
        data = DataFile(self._system, folder, spec.name, self._disk)
        ledger.forget(ledger.state.beyond(data.size()))
        upload = LocalUpload(self._system, folder, spec, ledger, data, self._destination, self._forget)
        with self._lock:
            self._running[upload.id] = upload
        self._space.add(upload)
        return upload

    def _forget(self, upload: UploadId) -> None:
        with self._lock:
            ended = self._running.pop(upload, None)
        if ended is not None:
            self._space.remove(ended)

    def bundle(self, owner: Owner, conflict: Conflict, length: int | None) -> LocalBundle:
        folder = self._bundles.make()
        bundle = LocalBundle(
            self._system, self._disk, self._publishing, folder, owner, conflict, length, self._forget_bundle
        )
        with self._lock:
            self._receiving.add(bundle)
        try:
            self._space.admit(bundle)
        except BaseException:
            bundle.close()
            raise
        return bundle

    def _forget_bundle(self, bundle: LocalBundle) -> None:
        self._space.remove(bundle)
        with self._lock:
            self._receiving.discard(bundle)

    # --- space --------------------------------------------------------------------------

    def free_bytes(self) -> int:
        return self._space.free()

    def is_present(self) -> bool:
        try:
            return self._system.fstat(self._uploads.fd).st_nlink > 0
        except OSError as error:
            raise disk_failure("the folder cannot be looked at", error) from error

    def staged_bytes(self) -> int:
        with self._lock:
            receiving = sum(bundle.staged for bundle in self._receiving)
        return self._uploads.staged_bytes() + receiving

    def used(self, owner: Owner, apart: Collection[UploadId] = ()) -> int:
        staged = {upload: self._uploads.counted(upload, owner) for upload in self._uploads.ids()}
        # Looked at last, so that what is published meanwhile is not missed, nor counted twice.
        counted = {*apart, *(upload for upload, size in staged.items() if size is not None)}
        published = [each for each in self._receipts.files(owner) if each.upload not in counted]
        there, _ = still_there(self._tree, published)
        sizes = [size for upload, size in staged.items() if size is not None and upload not in apart]
        return sum(sizes) + sum(each.size for each in there)

    # --- what is there --------------------------------------------------------------------

    def find(self, owner: Owner, name: FileName, length: int | None, source_id: str | None) -> list[Partial]:
        return matching(self.partials(), owner, name, length, source_id)

    def partials(self) -> list[Partial]:
        return self._uploads.partials()

    def existing(self, name: FileName) -> Existing | None:
        found = self._tree.look(name)
        return Existing(name, found.st_size) if found is not None and stat.S_ISREG(found.st_mode) else None

    def look_alikes(self, owner: Owner, name: FileName, size: int) -> list[Existing]:
        found = [self.existing(name)]
        for path in self._receipts.paths(owner, name, size):
            if path != name:
                with contextlib.suppress(TdxError):  # what is in its way now is no look-alike
                    found.append(self.existing(FileName(path)))
        return [each for each in found if each is not None and each.size == size]

    def existing_digests(self, name: FileName, extent_size: int) -> list[bytes] | None:
        try:
            file = self._tree.open_file(name)
            if file is None:
                return None
            try:
                return extent_digests(self._system, file, extent_size)
            finally:
                self._system.close(file)
        except (OSError, StorageError) as error:
            log.warning("%r cannot be compared with what is being sent: %s", name, error)
            return None

    def open_base(self, name: FileName) -> LocalBase | None:
        return LocalBase.open(self._system, self._tree, name)

    def make_durable(self, path: str) -> int:
        return self._names.make_durable(path)

    def take_entries(
        self, owner: Owner, conflict: Conflict, entries: Sequence[Entry], go_on: GoOn
    ) -> list[Told | TdxError]:
        try:
            return TreeRequest(self._publishing, owner, conflict, entries, go_on).run()
        except OSError as error:
            raise disk_failure("the entries of a tree cannot be taken", error) from error

    # --- receipts and the end of things -----------------------------------------------------

    def receipt(self, upload: UploadId) -> Receipt | None:
        return self._receipts.get(upload)

    def receipt_by_key(self, owner: Owner, key: str) -> Receipt | None:
        return self._receipts.by_key(owner, key)

    def recover(self) -> list[Receipt]:
        # Beside a receiver that is running, what nobody claims may be in the making.
        receipts = self._bundles.recover() if self._exclusive else []
        for upload in self._uploads.ids():
            try:
                receipt = self._recover(upload)
            except UploadBusy:
                continue
            except Exception as error:
                # Whatever is wrong with it stays for the next start, and keeps nobody from this one.
                log.warning("the upload %s cannot be recovered: %r", upload, error)
                continue
            if receipt is not None:
                receipts.append(receipt)
        return receipts

    def _recover(self, upload: UploadId) -> Receipt | None:
        try:
            with self._uploads.claimed(upload) as folder:
                receipt = self._destination.recover(folder)
                if receipt is None and folder.data >= 0:
                    folder.spec()  # what has none is no upload
                return receipt
        except Unreadable as error:
            if not self._remove_unreadable(upload, error):
                raise
            return None
        except NotFound:
            # Killed while it was made or removed. Where others may make uploads, it may be one in the making.
            if self._exclusive:
                with contextlib.suppress(OSError):
                    remove(self._system, self._uploads.fd, upload)
            return None

    def expire(self, now: float, older_than: float | None = None) -> list[Partial]:
        removed: list[Partial] = []
        for upload in self._uploads.ids():
            try:
                partial = self._expire(upload, now, older_than)
            except (UploadBusy, NotFound):
                continue
            except TdxError as error:
                log.warning("the upload %s cannot be looked at or removed: %s", upload, error)
                continue
            if partial is not None:
                removed.append(partial)
        self._bundles.recover(before=now - UNFINISHED_AGE)
        self._receipts.expire(now)
        _, gone = still_there(self._tree, self._receipts.files())
        if gone:
            self._receipts.forget_files(gone)
        changed = no_longer(self._tree, self._receipts.known().values())
        if changed:
            self._receipts.forget(changed)
        return removed

    def _expire(self, upload: UploadId, now: float, older_than: float | None) -> Partial | None:
        """The partial, if it is removed."""
        partial = self._uploads.partial(upload)
        if partial is None:
            self._remove_unfinished(upload, now)
        elif is_idle(partial, now, older_than):
            with self._uploads.claimed(upload) as folder:
                return self._expire_claimed(folder, now, older_than)
        return None

    def _expire_claimed(self, folder: Folder, now: float, older_than: float | None) -> Partial | None:
        # It may have been used, or published, between the look and the claim.
        partial = self._uploads.partial(folder.upload)
        if partial is None or not is_idle(partial, now, older_than):
            return None
        self._destination.recover(folder)
        if folder.data < 0:
            return None
        state = State(partial.spec.extent_size, partial.spec.length, partial.spec.holes)
        replay(folder.read_journal(), state, folder.upload)
        folder.remove()
        return replace(partial, received=state.received)

    def _remove_unfinished(self, upload: UploadId, now: float) -> None:
        """A crash while an upload was made or removed leaves a folder that is none."""
        try:
            found = self._system.stat(upload, dir_fd=self._uploads.fd)
        except FileNotFoundError:
            return
        if now - found.st_ctime < UNFINISHED_AGE:
            return
        try:
            with self._uploads.claimed(upload) as folder:
                if not self._destination.recover(folder):
                    folder.remove()
        except NotFound:
            remove(self._system, self._uploads.fd, upload)

    def close(self) -> None:
        with self._lock:
            uploads, bundles = list(self._running.values()), list(self._receiving)
        for upload in uploads:
            upload.close()
        for bundle in bundles:
            bundle.close()
        self._resources.close()
