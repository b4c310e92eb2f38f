"""Publishing: from an upload's folder to the final name, so that a crash at any moment leaves
the final name either as it was or carrying the whole file, and never two copies.

The data is durable with its metadata before anything here begins. Then: durable intent,
rename, fsync of the directory, receipt, removal of the upload's folder. What a crash
leaves of that, :meth:`Destination.recover` finishes or takes back.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from tdx.errors import NotFound, disk_failure
from tdx.model import Outcome, Receipt, UploadId, UploadSpec
from tdx.store.final_names import FinalNames
from tdx.store.folders import DATA, Folder
from tdx.store.known import KnownFile, published
from tdx.store.paths import WALKS, Tree
from tdx.store.receipts import Receipts
from tdx.store.syscalls import System


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


class Placed(NamedTuple):
    """A file that has its final name, and what can be remembered of it; the receipt is yet to be stored."""

    receipt: Receipt
    known: KnownFile | None = None


class Destination:
    """Where the uploads of one store are published, and their receipts kept."""

    def __init__(self, system: System, tree: Tree, names: FinalNames, receipts: Receipts) -> None:
        self._system = system
        self._tree = tree
        self._names = names
        self._receipts = receipts

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
    ) -> Placed | None:
        """Give the durable data its final name, durably; None where the mode is ``skip`` and
        the name is taken. Nothing has changed when this raises, except for DirectoryNotDurable."""
        walks = WALKS
        while True:
            walks -= 1
            try:
                with self._tree.parent(spec.name, make=True) as (fd, leaf):
                    try:
                        placed = self._rename(folder, spec, fd, leaf, size=size, root=root, verified=verified)
                    except FileNotFoundError:
                        if walks and self._tree.is_removed(fd):
                            continue  # somebody tidies up: it is made again
                        raise
                    if placed is not None:
                        self._names.sync_directory(fd, placed.receipt.path)
                    return placed
            except OSError as error:
                raise disk_failure(f"{spec.name}: cannot be published", error) from error

    def _rename(
        self, folder: Folder, spec: UploadSpec, fd: int, leaf: str, *, size: int, root: str, verified: bool
    ) -> Placed | None:
        above = spec.name[: -len(leaf)]
        inode = self._system.fstat(folder.data).st_ino
        try:
            while (target := self._names.choose(fd, leaf, spec.name, spec.conflict)) is not None:
                receipt = self.receipt(
                    folder.upload,
                    spec,
                    path=above + target,
                    size=size,
                    root=root,
                    verified=verified,
                    outcome=Outcome.PUBLISHED,
                )
                self._names.check_doubt(above + target)
                folder.write_intent(Intent(inode, spec.expires_after, receipt).encode())
                # The name may have been taken since it was chosen.
                with contextlib.suppress(FileExistsError, IsADirectoryError):
                    self._names.move(folder.fd, DATA, fd, target, spec.name, spec.conflict)
                    return Placed(receipt, self._known(folder, receipt))
        except Exception:
            with contextlib.suppress(OSError):
                folder.drop_intent()
            raise
        folder.drop_intent()
        return None

    def _known(self, folder: Folder, receipt: Receipt) -> KnownFile | None:
        try:
            return published(receipt.path, self._system.fstat(folder.data), receipt.root)
        except OSError:
            return None

    def finish(self, folder: Folder, placed: Placed, lifetime: float) -> None:
        """Store the receipt, then remove the folder, which no longer matters."""
        self._receipts.put(placed.receipt, lifetime=lifetime, known=placed.known)
        with contextlib.suppress(OSError):
            folder.remove()

    def settle(
        self, upload: UploadId, spec: UploadSpec, outcome: Outcome, path: str, root: str, *, verified: bool
    ) -> Receipt:
        """The receipt of an upload that is not published because ``path`` is there; NotFound if it
        is not. An ``identical`` file is made durable first: it may not be one of ours."""
        if outcome is Outcome.IDENTICAL:
            size = self._names.make_durable(path)
        else:
            found = self._tree.look(path)
            if found is None:
                raise NotFound(f"{path}: is no longer there")
            size = found.st_size
        return self.receipt(upload, spec, path=path, size=size, root=root, verified=verified, outcome=outcome)

    def recover(self, folder: Folder) -> Receipt | None:
        """What a crash left of a claimed upload. Its receipt, if its file had already got its
        final name. Otherwise the upload stays as it is, unless nothing of it is left."""
        if self._receipts.get(folder.upload) is not None:
            with contextlib.suppress(OSError):
                folder.remove()
            return None
        intent = _intent_in(folder)
        if intent is not None and self._names.carried(intent.receipt.path, intent.inode, intent.receipt.size):
            self.finish(folder, Placed(intent.receipt), intent.lifetime)
            return intent.receipt
        folder.drop_intent()
        if not folder.open_data():
            folder.remove()
        return None


def _intent_in(folder: Folder) -> Intent | None:
    found = folder.intent()
    try:
        return None if found is None else Intent.decode(found)
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
