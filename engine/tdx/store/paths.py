"""Paths below DIR, walked with directory descriptors.

No component is ever followed through a link, and no directory of another filesystem
is entered: neither a link planted in DIR nor one swapped in during the walk leads
outside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from tdx.errors import BadName, StorageError, disk_failure
from tdx.store.syscalls import System

OWN: Final = ".tdx"
"""The store's own folder inside DIR."""

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

RESTART: Final = "see to the disk, then restart the receiver"
"""What is left to do where a directory could not be synced: the next sync may succeed without
having written what this one could not."""

BLOCKED: Final = frozenset({errno.ENOTDIR, errno.ELOOP})
"""How the system refuses to enter what is no directory, or a link."""

_REMEMBERED: Final = 4096

WALKS: Final = 200
"""How often a folder is made anew that somebody removes before there is anything in it. With
20, somebody who did nothing else kept 3 of 240 files from being published."""

Unsynced = dict[tuple[int, str], int]
"""Directories that a sync of the whole filesystem will make durable: see :meth:`Tree.parent`."""


def read_small(system: System, name: str, *, dir_fd: int, most: int = 1 << 27) -> bytes:
    """The whole content of a small file. FileNotFoundError passes through."""
    fd = system.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        return read_all(system, fd, most)
    finally:
        system.close(fd)


def read_all(system: System, fd: int, most: int = 1 << 40) -> bytes:
    """What is left of an open file, at most ``most`` bytes."""
    parts: list[bytes] = []
    while most > 0 and (part := system.read(fd, min(most, 1 << 20))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def write_all(system: System, fd: int, data: bytes) -> None:
    while data:
        data = data[system.write(fd, data) :]


def write_file(system: System, name: str, data: bytes, *, dir_fd: int, sync: bool) -> None:
    """Make or replace a small file in place."""
    fd = system.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        write_all(system, fd, data)
        if sync:
            system.fsync(fd)
    finally:
        system.close(fd)


def replace_file(system: System, name: str, data: bytes, *, dir_fd: int) -> None:
    """Durably replace a small file: at every moment the old content or the new is there."""
    temporary = name + ".tmp"
    write_file(system, temporary, data, dir_fd=dir_fd, sync=True)
    system.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    system.fsync(dir_fd)


class Tree:
    """DIR and what is published in it; or another folder that files are put into in the same way."""

    def __init__(self, system: System, fd: int, whose: str = "the receiver") -> None:
        """``fd``: DIR, open; the tree closes it. ``whose`` it is, errors say."""
        self._system = system
        self._whose = whose
        self.fd = fd
        self.device = system.fstat(fd).st_dev
        self._durable: dict[tuple[int, str], int] = {}
        self._doubtful: dict[tuple[int, str], int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._system.close(self.fd)

    @contextmanager
    def parent(
        self, name: str, *, make: bool = False, unsynced: Unsynced | None = None
    ) -> Generator[tuple[int, str]]:
        """The directory that ``name`` lies in, open while the context lasts, and the last component.

        With ``make``, missing directories are made, and every directory on the way is
        durable, but those put into ``unsynced``, where that is given: the caller syncs the
        whole filesystem, and then calls :meth:`synced`. Raises FileNotFoundError for a missing one
        otherwise, BadName where a file, a link or another filesystem is in the way.

        Somebody who tidies up may remove a directory that was made a moment ago, as long as it is empty.
        One that is missing because of that is made again; one that is removed while the context lasts
        :meth:`is_removed`.
        """
        *folders, leaf = _components(name)
        fd = self._walk(folders, name, make, unsynced)
        try:
            yield fd, leaf
        finally:
            if fd != self.fd:
                self._system.close(fd)

    def _walk(self, folders: list[str], name: str, make: bool, unsynced: Unsynced | None) -> int:
        """The last of these folders, each in the one before it, open; or DIR itself."""
        walks = WALKS if make else 1
        while True:
            walks -= 1
            fd = self.fd
            try:
                for folder in folders:
                    inner = self.enter(fd, folder, name, make=make, unsynced=unsynced)
                    if fd != self.fd:
                        self._system.close(fd)
                    fd = inner
                return fd
            except BaseException as error:
                if fd != self.fd:
                    self._system.close(fd)
                if not (isinstance(error, FileNotFoundError) and walks):
                    raise

    def is_removed(self, fd: int) -> bool:
        """Whether the directory that is open has been removed since. OSError."""
        return self._system.fstat(fd).st_nlink == 0

    @contextmanager
    def replacing(self, *, alone: bool = False) -> Generator[None]:
        """Held, in whatever process, by who gives the name of one file to another; and ``alone`` by who looks
        what carries a name and removes that. OSError."""
        own = self._system.open(OWN, DIRECTORY, dir_fd=self.fd)
        try:
            self._system.flock(own, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            self._system.close(own)

    def enter(
        self, fd: int, folder: str, name: str, *, make: bool = False, unsynced: Unsynced | None = None
    ) -> int:
        """The directory ``folder`` of an open one, open: the caller closes it. ``name``, which it is on the
        way to, is for messages; all else is as for :meth:`parent`."""
        try:
            try:
                inner = self._open(fd, folder)
            except FileNotFoundError:
                if not make:
                    raise
                self._make(fd, folder, name)
                inner = self._open(fd, folder)
            try:
                found = self._system.fstat(inner)
                if found.st_dev != self.device:
                    raise BadName(f"{name}: {folder} is on another filesystem than {self._whose}'s folder")
                if make:
                    self._make_durable(fd, folder, inner, found.st_ino, unsynced)
            except BaseException:
                self._system.close(inner)
                raise
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._refusal(name, folder, error) from error
        return inner

    def _open(self, fd: int, folder: str) -> int:
        return self._system.open(folder, DIRECTORY, dir_fd=fd)

    def _make(self, fd: int, folder: str, name: str) -> None:
        try:
            key = (self._system.fstat(fd).st_ino, folder)
            # The new folder may get the inode of the one that is gone. Under the lock: whoever remembers
            # the old one after this has it open still, so that its inode is not free for the new one.
            with self._lock:
                self._durable.pop(key, None)
                self._doubtful.pop(key, None)
                self._system.mkdir(folder, 0o777, dir_fd=fd)
        except FileExistsError:
            return
        except FileNotFoundError:
            raise  # the folder that it was to lie in is gone
        except OSError as error:
            raise self._refusal(name, folder, error) from error

    def _make_durable(self, fd: int, folder: str, inner: int, inode: int, unsynced: Unsynced | None) -> None:
        # A directory that is already there may have been made a moment ago by a thread, or by a receiver
        # since killed, that never got to syncing it; so each is synced once by this process.
        key = (self._system.fstat(fd).st_ino, folder)
        with self._lock:
            if self._durable.get(key) == inode:
                return
            if self._doubtful.get(key) == inode:
                raise StorageError(f"{folder}: the disk failed to make this folder durable; {RESTART}")
        if unsynced is not None:
            unsynced[key] = inode
            return
        try:
            self._system.fsync(inner)
            self._system.fsync(fd)
        except OSError as error:
            self.synced({key: inode}, failed=True)
            raise disk_failure(f"{folder}: cannot make the folder durable", error, self._whose) from error
        self.synced({key: inode})

    def synced(self, directories: Unsynced, *, failed: bool = False) -> None:
        """These directories, and their parents, have been synced; or could not be, and nothing in them is
        acknowledged any more."""
        with self._lock:
            if failed:
                self._doubtful.update(directories)
                return
            if len(self._durable) >= _REMEMBERED:
                self._durable.clear()
            self._durable.update(directories)

    def look(self, name: str) -> os.stat_result | None:
        """What carries ``name``, of whatever kind; None if nothing does. BadName as for :meth:`parent`."""
        try:
            with self.parent(name) as (fd, leaf):
                return self.look_in(fd, leaf, name)
        except FileNotFoundError:
            return None

    def look_in(self, fd: int, leaf: str, name: str) -> os.stat_result | None:
        """The same inside an open directory; ``name`` is for the message."""
        try:
            return self._system.stat(leaf, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(name, leaf, error) from error

    def open_file(self, name: str) -> int | None:
        """The regular file of this name, open for reading; None where there is none."""
        try:
            with self.parent(name) as (fd, leaf):
                # O_NONBLOCK, or opening a FIFO somebody put there would wait for ever.
                file = self._system.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno in BLOCKED | {errno.ENXIO}:
                return None
            raise disk_failure(f"{name}: cannot be opened", error, self._whose) from error
        try:
            regular = stat.S_ISREG(self._system.fstat(file).st_mode)
        except OSError as error:
            self._system.close(file)
            raise disk_failure(f"{name}: cannot be opened", error, self._whose) from error
        if regular:
            return file
        self._system.close(file)
        return None

    def _refusal(self, name: str, component: str, error: OSError) -> BadName | StorageError:
        if error.errno in BLOCKED:
            return BadName(f"{name}: {component} is there and is not a folder")
        if error.errno == errno.ENAMETOOLONG:
            return BadName(f"{name}: {component!r:.80} is too long for {self._whose}'s filesystem")
        if error.errno == errno.EILSEQ:
            return BadName(f"{name}: {self._whose}'s filesystem cannot hold this name")
        if isinstance(found := disk_failure(name, error, self._whose), StorageError):
            return found
        raise found from error


def folder_of(path: str) -> str:
    """The folder that a path lies in, with its slash; empty where it lies in none."""
    return path[: path.rfind("/") + 1]


def _components(name: str) -> list[str]:
    components = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or part.casefold() == OWN for part in components):
        raise BadName(f"not a name that can be stored: {name!r:.80}")
    return components
