"""Publishing: from an upload's folder to the final name, so that a crash at any moment leaves
the final name either as it was or carrying the whole file, and never two copies.

The data is durable with its metadata before anything here begins. Then: durable intent,
rename, fsync of the directory, receipt, removal of the upload's folder. What a crash
leaves of that, :meth:`Destination.recover` finishes or takes back.
"""

from __future__ import annotations

import contextlib
import errno
import stat
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from tdx.errors import BadName, Exists, NotFound, StorageError
from tdx.model import Conflict, Outcome, Receipt, UploadId, UploadSpec
from tdx.store.folders import DATA, Folder
from tdx.store.paths import RESTART, Tree
from tdx.store.receipts import Receipts
from tdx.store.rules import free_number
from tdx.store.syscalls import UNSUPPORTED, System, failure

_NO_LINKS: Final = UNSUPPORTED | {errno.EPERM, errno.EMLINK}


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to be published: the inode that will carry the final name, the lifetime of
    the receipt in seconds, and the receipt, which has name and root."""

    inode: int
    lifetime: float
    receipt: Receipt

    def encode(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def decode(cls, document: dict[str, Any]) -> Intent:
        """KeyError, OverflowError, TypeError or ValueError for anything that is not an intent."""
        receipt = dict(document["receipt"])
        receipt["outcome"] = Outcome(receipt["outcome"])
        if not isinstance(receipt["path"], str):
            raise TypeError("a path that is no text")
        return cls(int(document["inode"]), float(document["lifetime"]), Receipt(**receipt))


class DirectoryNotDurable(StorageError):
    """The file is under its name, but its directory could not be synced."""


class Destination:
    """Where the uploads of one store are published, and their receipts kept.

    A name that could not be synced, file or directory, is *doubtful* as long as this object lives: the
    kernel tells of a failure once, and the next sync may succeed without having written what
    this one could not. So nothing under that name is acknowledged before a new start.
    """

    def __init__(self, system: System, tree: Tree, receipts: Receipts) -> None:
        self._system = system
        self._tree = tree
        self._receipts = receipts
        self._doubtful: set[str] = set()

    def receipt(
        self,
        upload: UploadId,
        spec: UploadSpec,
        *,
        path: str,
        size: int,
        root: str,
        verified: bool,
        outcome: Outcome,
    ) -> Receipt:
        return Receipt(
            upload=upload,
            owner=spec.owner,
            key=spec.key,
            name=spec.name,
            path=path,
            size=size,
            root=root,
            verified=verified,
            outcome=outcome,
            published_at=time.time(),
        )

    def place(
        self, folder: Folder, spec: UploadSpec, *, size: int, root: str, verified: bool
    ) -> Receipt | None:
        """Give the durable data its final name, durably; None where the mode is ``skip`` and
        the name is taken. Nothing has changed when this raises, except for DirectoryNotDurable."""
        try:
            with self._tree.parent(spec.name, make=True) as (fd, leaf):
                receipt = self._rename(folder, spec, fd, leaf, size=size, root=root, verified=verified)
                if receipt is not None:
                    self._sync_directory(fd, receipt.path)
                return receipt
        except OSError as error:
            raise failure(f"{spec.name}: cannot be published", error) from error

    def _rename(
        self, folder: Folder, spec: UploadSpec, fd: int, leaf: str, *, size: int, root: str, verified: bool
    ) -> Receipt | None:
        above = spec.name[: -len(leaf)]
        inode = self._system.fstat(folder.data).st_ino
        try:
            while (target := self._choose(fd, leaf, spec)) is not None:
                receipt = self.receipt(
                    folder.upload,
                    spec,
                    path=above + target,
                    size=size,
                    root=root,
                    verified=verified,
                    outcome=Outcome.PUBLISHED,
                )
                self._check_doubt(above + target)
                folder.write_intent(Intent(inode, spec.expires_after, receipt).encode())
                # The name may have been taken since it was chosen.
                with contextlib.suppress(FileExistsError, IsADirectoryError):
                    self._move(folder.fd, fd, target, spec)
                    return receipt
        except Exception:
            with contextlib.suppress(OSError):
                folder.drop_intent()
            raise
        folder.drop_intent()
        return None

    def _choose(self, fd: int, leaf: str, spec: UploadSpec) -> str | None:
        found = self._tree.look_in(fd, leaf, spec.name)
        if found is None:
            return leaf
        if spec.conflict is Conflict.RENAME:
            return free_number(leaf, lambda each: self._tree.look_in(fd, each, spec.name) is not None)
        folder = stat.S_ISDIR(found.st_mode)
        if spec.conflict is Conflict.ERROR or folder:
            kind = "folder" if folder else "file"
            raise Exists(f"{spec.name}: a {kind} of this name is there already", path=spec.name)
        return None if spec.conflict is Conflict.SKIP else leaf

    def _move(self, source: int, fd: int, target: str, spec: UploadSpec) -> None:
        try:
            if spec.conflict is Conflict.OVERWRITE:
                self._system.rename(DATA, target, src_dir_fd=source, dst_dir_fd=fd)
            else:
                self._move_without_replacing(source, fd, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise BadName(
                    f"{spec.name}: lies on another filesystem than the receiver's folder"
                ) from error
            raise

    def _move_without_replacing(self, source: int, fd: int, target: str) -> None:
        try:
            self._system.rename_noreplace(DATA, target, src_dir_fd=source, dst_dir_fd=fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._link(source, fd, target)

    def _link(self, source: int, fd: int, target: str) -> None:
        try:
            self._system.link(DATA, target, src_dir_fd=source, dst_dir_fd=fd)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StorageError(
                "this filesystem cannot publish without a risk of overwriting; use --conflict overwrite"
            ) from error
        with contextlib.suppress(OSError):
            self._system.unlink(DATA, dir_fd=source)

    def _check_doubt(self, path: str) -> None:
        if path in self._doubtful:
            raise StorageError(f"{path}: the disk failed to make it durable; {RESTART}")

    def _sync_directory(self, fd: int, path: str) -> None:
        self._check_doubt(path)
        try:
            self._system.fsync(fd)
        except OSError as error:
            self._doubtful.add(path)
            raise DirectoryNotDurable(
                f"{path}: is in place, but its folder cannot be made durable: {error.strerror}; {RESTART}"
            ) from error

    def finish(self, folder: Folder, receipt: Receipt, lifetime: float) -> None:
        """Store the receipt, then remove the folder, which no longer matters."""
        self._receipts.put(receipt, lifetime=lifetime)
        with contextlib.suppress(OSError):
            folder.remove()

    def settle(
        self, upload: UploadId, spec: UploadSpec, outcome: Outcome, path: str, root: str, *, verified: bool
    ) -> Receipt:
        """The receipt of an upload that is not published because ``path`` is there; NotFound if it
        is not. An ``identical`` file is made durable first: it may not be one of ours."""
        if outcome is Outcome.IDENTICAL:
            size = self.make_durable(path)
        else:
            found = self._tree.look(path)
            if found is None:
                raise NotFound(f"{path}: is no longer there")
            size = found.st_size
        return self.receipt(upload, spec, path=path, size=size, root=root, verified=verified, outcome=outcome)

    def make_durable(self, path: str) -> int:
        """See :meth:`tdx.store.port.Store.make_durable`."""
        file = self._tree.open_file(path)
        if file is None:
            raise NotFound(f"{path}: is no longer there")
        try:
            self._check_doubt(path)
            self._sync_file(file, path)
            with self._tree.parent(path, make=True) as (fd, _):
                self._sync_directory(fd, path)
            return self._system.fstat(file).st_size
        except OSError as error:
            raise failure(f"{path}: cannot be made durable", error) from error
        finally:
            self._system.close(file)

    def _sync_file(self, file: int, path: str) -> None:
        try:
            self._system.fsync(file)
        except OSError:
            self._doubtful.add(path)
            raise

    def recover(self, folder: Folder) -> Receipt | None:
        """What a crash left of a claimed upload. Its receipt, if its file had already got its
        final name. Otherwise the upload stays as it is, unless nothing of it is left."""
        if self._receipts.get(folder.upload) is not None:
            with contextlib.suppress(OSError):
                folder.remove()
            return None
        intent = _intent_in(folder)
        if intent is not None and self._carried_out(intent):
            self.finish(folder, intent.receipt, intent.lifetime)
            return intent.receipt
        folder.drop_intent()
        if not folder.open_data():
            folder.remove()
        return None

    def _carried_out(self, intent: Intent) -> bool:
        """Whether the final name carries the intent's inode; durably, then. Device numbers may change
        with a reboot, so what counts is that the name lies on DIR's own filesystem."""
        path = intent.receipt.path
        try:
            with self._tree.parent(path) as (fd, leaf):
                found = self._tree.look_in(fd, leaf, path)
                if (
                    found is None
                    or not stat.S_ISREG(found.st_mode)
                    or (found.st_ino, found.st_size) != (intent.inode, intent.receipt.size)
                ):
                    return False
                self._sync_directory(fd, path)
                return True
        except (FileNotFoundError, BadName):
            return False


def _intent_in(folder: Folder) -> Intent | None:
    found = folder.intent()
    try:
        return None if found is None else Intent.decode(found)
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
