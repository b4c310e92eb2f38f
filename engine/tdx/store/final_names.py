"""Final names: choosing one that the conflict mode allows, giving it to what is durable, and which
of them are in doubt."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable
from typing import Final

from tdx.errors import BadName, Exists, NotFound, StorageError, disk_failure
from tdx.model import Conflict
from tdx.store.paths import RESTART, Tree
from tdx.store.rules import free_number
from tdx.store.syscalls import UNSUPPORTED, System

_NO_LINKS: Final = UNSUPPORTED | {errno.EPERM, errno.EMLINK}


class DirectoryNotDurable(StorageError):
    """The file is under its name, but its directory could not be synced."""


class FinalNames:
    """The names of the published files of one store.

    A name that could not be synced, file or directory, is *doubtful* as long as this object lives: the
    kernel tells of a failure once, and the next sync may succeed without having written what
    this one could not. So nothing under that name is acknowledged before a new start.
    """

    def __init__(self, system: System, tree: Tree) -> None:
        self._system = system
        self._tree = tree
        self._doubtful: set[str] = set()

    def choose(self, fd: int, leaf: str, name: str, conflict: Conflict) -> str | None:
        """What to call, in the directory ``fd``, a file that is to be ``name``, whose last component is
        ``leaf``; None where the mode is ``skip`` and the name is taken. Exists, BadName, StorageError."""
        found = self._tree.look_in(fd, leaf, name)
        if found is None:
            return leaf
        if conflict is Conflict.RENAME:
            return free_number(leaf, lambda each: self._tree.look_in(fd, each, name) is not None)
        folder = stat.S_ISDIR(found.st_mode)
        if conflict is Conflict.ERROR or folder:
            kind = "folder" if folder else "file"
            raise Exists(f"{name}: a {kind} of this name is there already", path=name)
        return None if conflict is Conflict.SKIP else leaf

    def move(self, source: int, staged: str, fd: int, target: str, name: str, conflict: Conflict) -> None:
        """Rename ``staged`` in the directory ``source`` to ``target`` in ``fd``. FileExistsError or
        IsADirectoryError where that was taken meanwhile; OSError, BadName, StorageError."""
        try:
            if conflict is Conflict.OVERWRITE:
                with self._tree.replacing():
                    self._system.rename(staged, target, src_dir_fd=source, dst_dir_fd=fd)
            else:
                rename_without_replacing(self._system, source, staged, fd, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise BadName(f"{name}: lies on another filesystem than the receiver's folder") from error
            raise

    # --- durability ---------------------------------------------------------------

    def check_doubt(self, path: str) -> None:
        """StorageError where ``path`` is in doubt."""
        if path in self._doubtful:
            raise StorageError(f"{path}: the disk failed to make it durable; {RESTART}")

    def in_doubt(self, paths: Iterable[str]) -> None:
        """From now on these paths are."""
        self._doubtful.update(paths)

    def doubt(self, path: str, error: OSError) -> DirectoryNotDurable:
        """From now on ``path``, a file in place, is in doubt: the error that says so."""
        self._doubtful.add(path)
        return DirectoryNotDurable(
            f"{path}: is in place, but its folder cannot be made durable: {error.strerror}; {RESTART}"
        )

    def sync_directory(self, fd: int, path: str) -> None:
        """Make the directory ``fd``, in which ``path`` lies, durable. StorageError."""
        self.check_doubt(path)
        try:
            self._system.fsync(fd)
        except OSError as error:
            raise self.doubt(path, error) from error

    def make_durable(self, path: str) -> int:
        """See :meth:`tdx.store.port.Store.make_durable`."""
        file = self._tree.open_file(path)
        if file is None:
            raise NotFound(f"{path}: is no longer there")
        try:
            self.check_doubt(path)
            self._sync_file(file, path)
            with self._tree.parent(path, make=True) as (fd, _):
                self.sync_directory(fd, path)
            return self._system.fstat(file).st_size
        except OSError as error:
            raise disk_failure(f"{path}: cannot be made durable", error) from error
        finally:
            self._system.close(file)

    def _sync_file(self, file: int, path: str) -> None:
        try:
            self._system.fsync(file)
        except OSError:
            self._doubtful.add(path)
            raise

    def carried(self, path: str, inode: int, size: int, synced: set[str] | None = None) -> bool:
        """Whether ``path`` carries this inode, of this size; durably, then. Device numbers may change with
        a reboot, so what counts is that the name lies on DIR's own filesystem. OSError, StorageError.

        Directories in ``synced`` have been synced since; those that this syncs are added.
        """
        directory = path.rpartition("/")[0]
        try:
            with self._tree.parent(path) as (fd, leaf):
                found = self._tree.look_in(fd, leaf, path)
                if (
                    found is None
                    or not stat.S_ISREG(found.st_mode)
                    or (found.st_ino, found.st_size) != (inode, size)
                ):
                    return False
                self.check_doubt(path)
                if synced is None or directory not in synced:
                    self.sync_directory(fd, path)
                if synced is not None:
                    synced.add(directory)
                return True
        except (FileNotFoundError, BadName):
            return False


def rename_without_replacing(
    system: System, source: int, staged: str, fd: int, target: str, *, moves: bool = False
) -> None:
    """Rename ``staged`` in the directory ``source`` to ``target`` in ``fd``, which must be free:
    FileExistsError. OSError; StorageError where the filesystem cannot promise that. Where it takes a link and
    a removal, the latter may fail, which is an OSError only where the file ``moves``."""
    try:
        system.rename_noreplace(staged, target, src_dir_fd=source, dst_dir_fd=fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _link(system, source, staged, fd, target)
        try:
            system.unlink(staged, dir_fd=source)
        except OSError:
            if moves:
                raise


def _link(system: System, source: int, staged: str, fd: int, target: str) -> None:
    try:
        system.link(staged, target, src_dir_fd=source, dst_dir_fd=fd)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StorageError(
            "this filesystem cannot publish without a risk of overwriting; use --conflict overwrite"
        ) from error
