"""What has arrived in a receiver's folder and is still there, beside a running receiver or without one.

The receipts say what was published: a partial, or a file that is still in flight, is never seen, and
neither is what came into the folder by other means.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final, Self

from tdx.errors import ConfigError, TdxError, disk_failure
from tdx.integrity import digest_of
from tdx.store.database import DATABASE
from tdx.store.own import open_folder, open_own, store_id
from tdx.store.paths import OWN, Tree
from tdx.store.published import still_there
from tdx.store.receipts import ArrivedFile, PublishedFile, Receipts
from tdx.store.syscalls import System

CLAIMS: Final = "moving"
"""The file in ``.tdx`` of which who moves an upload's file away has a byte locked."""

_MOST_CLAIMS: Final = 1 << 62
"""Offsets that an off_t holds."""


class Inbox:
    """The published files of one receiver's folder. For one thread; ``close()`` ends it."""

    def __init__(self, folder: Path, state: Path, system: System | None = None) -> None:
        """As :meth:`find`, where something has been received."""
        self.system = system = system or System()
        with contextlib.ExitStack() as undo:
            self.tree = Tree(system, open_folder(system, str(folder)))
            undo.callback(self.tree.close)
            path = os.path.join(folder, OWN)
            own = open_own(system, path, OWN, dir_fd=self.tree.fd, device=self.tree.device)
            undo.callback(system.close, own)
            self._state, self._store = state, store_id(system, own, path)
            self._receipts = self._open()
            undo.callback(self._close_receipts)
            try:
                self._claims = system.open(CLAIMS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, dir_fd=own)
            except OSError as error:
                raise ConfigError(
                    f"{os.path.join(path, CLAIMS)}: cannot be opened: {error.strerror}"
                ) from error
            undo.callback(system.close, self._claims)
            self._resources = undo.pop_all()

    @classmethod
    def find(cls, folder: Path, state: Path, system: System | None = None) -> Self | None:
        """The inbox of ``folder`` with the receipts in the state directory; None where nothing was ever
        received. ConfigError for what is no folder, or not ours alone to write."""
        if not folder.is_dir():
            raise ConfigError(f"{folder}: is no folder")
        if not (folder / OWN / "id").exists() or not (state / DATABASE).exists():
            # Nothing is made here, least of all of a folder that was never meant to receive.
            return None
        return cls(folder, state, system)

    def close(self) -> None:
        self._resources.close()

    @property
    def gone(self) -> bool:
        """Whether the folder has been removed."""
        return self.tree.is_removed(self.tree.fd)

    def _close_receipts(self) -> None:
        self._receipts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Receipts:
        receipts = Receipts(self._state, self._store)
        self._inode = self._inode_now()
        return receipts

    def _inode_now(self) -> int:
        try:
            return os.stat(self._state / DATABASE).st_ino
        except OSError:
            return 0

    def files(self) -> list[ArrivedFile]:
        """What was published and still is a file of its size under its path, the newest last. Where the
        receipt has expired, it was published when its inode was last changed, as far as anybody knows."""
        there, _ = still_there(self.tree, self._receipts.arrived())
        dated = [each if each.published_at is not None else self._dated(each) for each in there]
        return sorted(dated, key=lambda each: (each.published_at or 0.0, each.path))

    def _dated(self, file: ArrivedFile) -> ArrivedFile:
        try:
            found = self.tree.look(file.path)
        except TdxError:
            return file
        return file if found is None else file._replace(published_at=found.st_ctime)

    def version(self) -> tuple[int, int]:
        """Something else whenever the receipts have been changed since it was last asked, by others. They
        may have been put aside for new ones meanwhile."""
        if (inode := self._inode_now()) and inode != self._inode:
            self._receipts.close()
            self._receipts = self._open()
        return self._inode, self._receipts.version()

    @contextlib.contextmanager
    def claimed(self, file: ArrivedFile) -> Generator[bool]:
        """Whether this process alone may move the file away now: no other one is at it, and it is what the
        receipts say still. Held while the context lasts, and no longer than this process lives."""
        byte = int.from_bytes(digest_of(file.upload.encode())) % _MOST_CLAIMS
        try:
            self.system.lock_byte(self._claims, byte)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise disk_failure(f"{file.path}: cannot be claimed", error) from error
        try:
            yield self._receipts.is_file(file.file)
        finally:
            with contextlib.suppress(OSError):
                self.system.unlock_byte(self._claims, byte)

    def forget(self, files: Sequence[PublishedFile]) -> None:
        """These have been moved away: they count no more."""
        self._receipts.forget_files(files)
