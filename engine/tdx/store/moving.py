"""Moving what has arrived out of the receiver's folder.

On one filesystem a file is renamed: at every moment it has one of its two names. To another one it is
copied under a hidden name, compared with the root of its receipt, made durable with its attributes, and
given its name; only when that is durable too is the source removed. So whatever is killed, no final name
ever carries half a file, and the file is under one of the two names, or both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tdx.errors import (
    BadName,
    SourceChanged,
    StorageError,
    TdxError,
    UsageError,
    VerificationFailed,
    disk_failure,
)
from tdx.integrity import Root, extent_count, extent_size_for
from tdx.model import Conflict, shown
from tdx.proto.names import numbered
from tdx.store.copying import Copy, remove_leftovers
from tdx.store.final_names import FinalNames, rename_without_replacing
from tdx.store.inbox import Inbox
from tdx.store.paths import OWN, Tree, folder_of
from tdx.store.reading import extent_digests
from tdx.store.receipts import ArrivedFile
from tdx.store.syscalls import System

_TRIES: Final = 100
_WHOSE: Final = "the destination"

SAME_MTIME_NS: Final = 2_000_000_000
"""How exact the times of the coarsest filesystem (FAT) are."""


@dataclass(slots=True)
class Moved:
    """A file that lies at ``path`` below the destination now; or, ``skipped``, another that lies there."""

    file: ArrivedFile
    path: str
    skipped: bool = False
    error: TdxError | None = None
    """Why it may not be there after a power cut."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A name in an open directory, and what carried it when it was looked at."""

    folder: int
    leaf: str
    found: os.stat_result


class Mover:
    """Moves files of ``inbox`` into ``folder``, to the paths that they have there. For one thread.

    What :meth:`move` has done counts once :meth:`settle` says so. ``check`` is called in the middle of long
    work, and may raise to end it.
    """

    def __init__(
        self, inbox: Inbox, folder: Path, conflict: Conflict, check: Callable[[], None] = lambda: None
    ) -> None:
        """BadName for what is no folder, UsageError for the receiver's own."""
        self._inbox = inbox
        self._system: System = inbox.system
        self._conflict = conflict
        self._check = check
        self._swept: set[tuple[int, int]] = set()
        self._waiting: list[Moved] = []
        self._targets: dict[str, list[Moved]] = {}
        self._sources: dict[str, list[Moved]] = {}
        """Folders by their paths, with what was moved into, and out of, each since the last sync."""
        self._tree = self._open(folder)
        self._names = FinalNames(self._system, self._tree)

    def _open(self, folder: Path) -> Tree:
        try:
            fd = self._system.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BadName(f"{shown(str(folder))}: is no folder to move to: {error.strerror}") from error
        tree = Tree(self._system, fd, _WHOSE)
        inside = os.path.realpath(folder).split(os.sep)
        ours, its = self._system.fstat(fd), self._system.fstat(self._inbox.tree.fd)
        if (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino) or OWN in inside:
            tree.close()
            raise UsageError(
                f"{shown(str(folder))}: is the receiver's own folder; say where to with --to, or go there"
            )
        return tree

    def close(self) -> None:
        self._tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one file -------------------------------------------------------------------

    def move(self, file: ArrivedFile) -> Moved | None:
        """Move a file; None where it is no longer there, or another process is moving it.

        Exists, BadName, NoSpace where the destination refuses; VerificationFailed where what was copied is
        not what was received; SourceChanged, StorageError; whatever ``check`` raises. It stays where it is
        then.
        """
        with self._inbox.claimed(file) as mine:
            moved = self._attempts(file) if mine else None
        if moved is not None and not moved.skipped:
            self._waiting.append(moved)
            self._targets.setdefault(folder_of(moved.path), []).append(moved)
            self._sources.setdefault(folder_of(file.path), []).append(moved)
        return moved

    def _attempts(self, file: ArrivedFile) -> Moved | None:
        for _ in range(_TRIES):
            try:
                return self._attempt(file)
            except FileNotFoundError:
                if self._tree.is_removed(self._tree.fd):
                    raise BadName("the folder to move to has been removed") from None
                if self._inbox.tree.look(file.path) is None:
                    return None
                # A folder at the destination was removed while it was empty: it is made again.
            except OSError as error:
                raise disk_failure(f"{file.path}: cannot be moved", error, _WHOSE) from error
        raise StorageError(f"{file.path}: its folder at the destination is removed again and again")

    def _attempt(self, file: ArrivedFile) -> Moved | None:
        with self._inbox.tree.parent(file.path) as (folder, leaf):
            found = self._inbox.tree.look_in(folder, leaf, file.path)
            if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                return None
            source = _Source(folder, leaf, found)
            above = folder_of(file.path)
            with self._tree.parent(file.path, make=True) as (fd, wanted):
                target = self._place(file, source, fd, wanted)
        return Moved(file, above + (wanted if target is None else target), skipped=target is None)

    def _place(self, file: ArrivedFile, source: _Source, fd: int, wanted: str) -> str | None:
        """Move the file into the directory ``fd``; its name there, None where that is another file's."""
        if (there := self._moved_before(file, source.found, fd, wanted)) is not None:
            self._system.fsync(fd)
            self._remove(source)
            return there
        if self._system.fstat(fd).st_dev != source.found.st_dev:
            return self._copy(file, source, fd, wanted)
        try:
            return self._name(source.folder, source.leaf, fd, wanted, file.path)
        except OSError as error:
            if error.errno != errno.EXDEV:  # as between two mounts of one filesystem
                raise
        return self._copy(file, source, fd, wanted)

    def _name(self, folder: int, staged: str, fd: int, wanted: str, path: str) -> str | None:
        """Rename ``staged`` in ``folder`` to ``wanted`` in ``fd``, or what the mode makes of it; as
        :meth:`_place`."""
        for _ in range(_TRIES):
            target = self._names.choose(fd, wanted, path, self._conflict)
            if target is None:
                return None
            try:
                if self._conflict is Conflict.OVERWRITE:
                    self._system.rename(staged, target, src_dir_fd=folder, dst_dir_fd=fd)
                else:
                    rename_without_replacing(self._system, folder, staged, fd, target, moves=True)
            except (FileExistsError, IsADirectoryError):
                continue  # taken since it was chosen
            return target
        raise StorageError(f"{path}: its name at the destination is taken again and again")

    def _remove(self, source: _Source) -> None:
        """Remove the source, unless its name has been given to another file, or it was written to."""
        with self._inbox.tree.replacing(alone=True):
            now = self._inbox.tree.look_in(source.folder, source.leaf, source.leaf)
            if now is not None and _state(now) == _state(source.found):
                self._system.unlink(source.leaf, dir_fd=source.folder)

    # --- to another filesystem ----------------------------------------------------------

    def _copy(self, file: ArrivedFile, source: _Source, fd: int, wanted: str) -> str | None:
        """As :meth:`_place`."""
        system, found = self._system, source.found
        if (folder := _inode(system.fstat(fd))) not in self._swept:
            self._swept.add(folder)
            remove_leftovers(system, fd)
        content = system.open(source.leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source.folder)
        try:
            if _state(system.fstat(content)) != _state(found):
                raise SourceChanged(f"{file.path}: changes while it is moved; it stays where it is")
            target = self._copy_anew(file, content, found, fd, wanted)
            if target is not None:
                system.fsync(fd)
                self._remove(source)
            return target
        finally:
            system.close(content)

    def _moved_before(self, file: ArrivedFile, found: os.stat_result, fd: int, wanted: str) -> str | None:
        """The name of the same file, with a link or a copy that is durable now: as left by a run that was
        killed before it removed the source."""
        root = _root_of(file)
        for name in self._taken(fd, wanted, file.path):
            there = self._tree.look_in(fd, name, file.path)
            if there is None or not stat.S_ISREG(there.st_mode):
                continue
            if _inode(there) == _inode(found) or (
                there.st_size == file.size
                and abs(there.st_mtime_ns - found.st_mtime_ns) < SAME_MTIME_NS
                and self._has(fd, name, file.size, root)
            ):
                return name
        return None

    def _taken(self, fd: int, wanted: str, path: str) -> list[str]:
        """The names that a file may have which was to have this one: it, and the last of those that are
        numbered without a gap; none where it is free."""
        if self._tree.look_in(fd, wanted, path) is None:
            return []
        last = wanted
        if self._conflict is Conflict.RENAME:
            for number in range(1, _TRIES):
                if self._tree.look_in(fd, each := numbered(wanted, number), path) is None:
                    break
                last = each
        return [wanted, last] if last != wanted else [wanted]

    def _has(self, fd: int, name: str, size: int, root: Root | None) -> bool:
        try:
            copy = self._system.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
            try:
                if root is None or self._system.fstat(copy).st_size != size:
                    return False
                digests = extent_digests(self._system, copy, root.extent_size, self._check)
                if len(digests) != extent_count(size, root.extent_size):
                    return False
                if Root.over(digests, size, root.extent_size) != root:
                    return False
                self._system.fsync(copy)
                return True
            finally:
                self._system.close(copy)
        except OSError:
            return False  # what cannot be read is not known to be the same

    def _copy_anew(
        self, file: ArrivedFile, content: int, found: os.stat_result, fd: int, wanted: str
    ) -> str | None:
        system, root = self._system, _root_of(file)
        # Told before hours of copying, and once more after it.
        if self._names.choose(fd, wanted, file.path, self._conflict) is None:
            return None
        room = system.fstatvfs(fd)
        if room.f_bavail * room.f_frsize < found.st_blocks * 512:
            raise disk_failure(file.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), _WHOSE)
        copy = Copy(system, fd, file.upload)
        try:
            size = extent_size_for(file.size) if root is None else root.extent_size
            copied = copy.fill(content, file.size, size, self._check)
            if root is not None and copied != root:
                raise VerificationFailed(
                    f"{file.path}: is not what was received any more; it stays where it is"
                )
            system.fchmod(copy.fd, stat.S_IMODE(found.st_mode) & 0o777)
            system.utime(copy.fd, found.st_mtime_ns)
            system.fsync(copy.fd)
            target = self._name(fd, copy.name, fd, wanted, file.path)
            copy.named = target is not None
            return target
        finally:
            copy.close()

    # --- afterwards -----------------------------------------------------------------------

    def settle(self) -> list[Moved]:
        """Make the moves since the last call durable; these, in their order. One that may not be durable says
        why. What was moved counts no more in the receiver's folder, and folders there that have become empty
        by it are removed."""
        settled, self._waiting = self._waiting, []
        self._sync(self._tree, self._targets)
        self._sync(self._inbox.tree, self._sources)
        with contextlib.suppress(TdxError):  # the receiver looks from time to time what is still there
            self._inbox.forget([each.file.file for each in settled if each.error is None])
        for above in sorted(self._sources, reverse=True):
            self._tidy(above.rstrip("/"))
        self._targets.clear()
        self._sources.clear()
        return settled

    def _sync(self, tree: Tree, folders: dict[str, list[Moved]]) -> None:
        for above, moved in folders.items():
            try:
                with tree.parent(above + "x") as (fd, _):
                    self._system.fsync(fd)
            except FileNotFoundError:
                continue  # with nothing in it any more
            except (OSError, TdxError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                for each in moved:
                    each.error = StorageError(
                        f"{each.file.path}: was moved to {each.path}, but the folder {above or '.'} "
                        f"cannot be made durable: {reason}"
                    )

    def _tidy(self, folder: str) -> None:
        while folder:
            try:
                with self._inbox.tree.parent(folder) as (fd, leaf):
                    self._system.rmdir(leaf, dir_fd=fd)
            except FileNotFoundError:
                pass  # another one that moves files was faster
            except (OSError, TdxError):
                return  # something is in it
            folder = folder.rpartition("/")[0]


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _state(found: os.stat_result) -> tuple[int, ...]:
    return *_inode(found), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _root_of(file: ArrivedFile) -> Root | None:
    """The root that the receipt has; None where it has expired."""
    return None if file.root is None else Root.parse(file.root)
