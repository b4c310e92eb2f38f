"""What one request has changed in the folder, and has yet to make durable."""

from __future__ import annotations

import os

from tdx.errors import StorageError, TdxError, disk_failure
from tdx.store.paths import Unsynced
from tdx.store.publish_context import FEW, PublishContext
from tdx.store.syscalls import UNSUPPORTED


class Changes:
    """Begun before the first of them, so that one syncfs tells of all; used once."""

    def __init__(self, context: PublishContext) -> None:
        """OSError."""
        self._context = context
        self._system = context.system
        self._tree = context.tree
        self._watch = self._system.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._tree.fd)
        self.unsynced: Unsynced = {}
        """For :meth:`tdx.store.paths.Tree.parent`, with a call of :meth:`entered` for each directory."""
        self._entered: dict[str, None] = {}
        self._folders: dict[str, None] = {}
        self._names: list[str] = []
        self._files: dict[str, None] = {}

    def close(self) -> None:
        self._system.close(self._watch)

    def entered(self, folder: str) -> None:
        """This directory, and those that it lies in, are to be durable."""
        self._entered[folder] = None

    def folder(self, path: str) -> None:
        """The attributes of this directory are not durable, or names in it. DIR itself is the empty path."""
        self._folders[path] = None

    def name(self, folder: str, path: str) -> None:
        """The name ``path``, in this directory, is not."""
        self._folders[folder] = None
        self._names.append(path)

    def file(self, path: str) -> None:
        """This file is not, in content, attributes or name."""
        self._files[path] = None

    def settle(self) -> dict[str, TdxError]:
        """Make all of it durable; of files that could not be, by path, why. OSError and StorageError for
        whatever else fails: then all of this is in doubt, and nothing of it may be acknowledged."""
        count = len(self.unsynced) + len(self._folders) + len(self._files)
        if not count:
            return {}
        try:
            if count > FEW and self._sync_as_one():
                failed: dict[str, TdxError] = {}
            else:
                failed = self._sync_each()
        except (OSError, StorageError):
            self._tree.synced(self.unsynced, failed=True)
            self._context.names.in_doubt((*self._files, *self._names, *filter(None, self._folders)))
            raise
        self._tree.synced(self.unsynced)
        return failed

    def _sync_as_one(self) -> bool:
        """False where that cannot be done. OSError."""
        if not self._context.as_one:
            return False
        try:
            self._system.syncfs(self._watch)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return False
        return True

    def _sync_each(self) -> dict[str, TdxError]:
        for folder in self._entered:
            with self._tree.parent(_inside(folder), make=True):
                pass  # on the way in, every directory has been synced
        for folder in self._folders:
            with self._tree.parent(_inside(folder), make=True) as (fd, _):
                self._system.fsync(fd)
        failed: dict[str, TdxError] = {}
        for path in self._files:
            try:
                self._context.names.make_durable(path)
            except OSError as error:
                failed[path] = disk_failure(f"{path}: cannot be made durable", error)
            except TdxError as error:
                failed[path] = error
        return failed


def _inside(folder: str) -> str:
    return f"{folder}/a" if folder else "a"
