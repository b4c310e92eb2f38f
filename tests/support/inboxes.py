"""A receiver's folder in which files have arrived, without a receiver."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from support.received import files_below
from tdx.integrity import Root, digest_of, extent_size_for
from tdx.model import FileName, Outcome, Owner, Receipt, UploadId
from tdx.store.copying import PREFIX
from tdx.store.inbox import Inbox
from tdx.store.local import LocalStore
from tdx.store.own import store_id
from tdx.store.receipts import Receipts
from tdx.store.syscalls import System

ME = Owner("local:1000")
MTIME_NS = 1_600_000_000_123_456_789


def root_of(content: bytes) -> str:
    size = extent_size_for(len(content))
    digests = [digest_of(content[at : at + size]) for at in range(0, len(content), size)]
    return str(Root.over(digests, len(content), size))


class ArrivedIn:
    """``folder`` with files of which the receipts in ``state`` tell."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state = folder, state
        folder.mkdir(mode=0o700, parents=True)
        LocalStore(folder, state).close()
        own = os.open(folder / ".tdx", os.O_RDONLY)
        self._store = store_id(System(), own, "")
        os.close(own)
        self._numbers = itertools.count(1)

    def receipts(self) -> Receipts:
        return Receipts(self.state, self._store)

    def arrive(self, path: str, content: bytes, *, root: str | None = None, mode: int = 0o640) -> UploadId:
        """Put a file there, with its receipt, each a second later than the one before."""
        number = next(self._numbers)
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
        os.utime(file, ns=(MTIME_NS, MTIME_NS))
        upload = UploadId(f"{number:032x}")
        receipt = Receipt(
            upload,
            ME,
            None,
            FileName(path),
            path,
            len(content),
            root or root_of(content),
            True,
            Outcome.PUBLISHED,
            1000.0 + number,
        )
        receipts = self.receipts()
        receipts.put(receipt, lifetime=1e6)
        receipts.close()
        return upload

    def inbox(self, system: System | None = None) -> Inbox:
        found = Inbox.find(self.folder, self.state, system)
        assert found is not None
        return found

    def paths(self) -> list[str]:
        """What the inbox lists."""
        with self.inbox() as inbox:
            return [each.path for each in inbox.files()]


def files_in(folder: Path) -> dict[str, bytes]:
    """What a user sees: no hidden names of ours."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files_below(folder)
        if not path.name.startswith(PREFIX)
    }


def leftovers_in(folder: Path) -> list[str]:
    """Unfinished copies."""
    return [path.name for path in folder.rglob(PREFIX + "*")]
