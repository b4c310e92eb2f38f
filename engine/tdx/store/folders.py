"""The folder of one upload, ``DIR/.tdx/uploads/ID``, and the claim on it.

Only the holder of the flock on ``journal`` may change anything in the folder. A claim is
taken before ``data`` is even opened, and counts only if the journal is still linked
afterwards: whoever held it before may have published or removed the upload.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from typing import Any, Final, cast

from tdx.errors import NotFound, StorageError, TdxError, UploadBusy, disk_failure
from tdx.model import UploadId, UploadSpec
from tdx.store import meta
from tdx.store.paths import DIRECTORY, read_all, read_small, replace_file, write_file
from tdx.store.syscalls import System

DATA: Final = "data"
JOURNAL: Final = "journal"
META: Final = "meta"
INTENT: Final = "intent"

_ID: Final = re.compile(r"[0-9a-f]{32}")
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW
_MAKE: Final = _OPEN | os.O_CREAT | os.O_EXCL


_UNREADABLE: Final = frozenset(
    {
        errno.EACCES,
        errno.EBADMSG,
        errno.EIO,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENODATA,
        errno.ENXIO,
        errno.EPERM,
        errno.EUCLEAN,
    }
)
"""What is wrong with the file or the disk under it, and not with the moment."""


class Unreadable(StorageError):
    """The disk no longer gives an upload's journal or meta, so nothing of it can be claimed."""


def unreadable(what: str, error: OSError) -> TdxError:
    """Unreadable, or the error of a call that may succeed at another time."""
    if error.errno in _UNREADABLE:
        return Unreadable(f"{what}: {error.strerror or error}")
    return disk_failure(what, error)


def is_upload_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


class Folder:
    """A claimed upload's folder; ``data`` is -1 until it is opened."""

    def __init__(self, system: System, uploads: int, upload: UploadId, fd: int, journal: int) -> None:
        self._system = system
        self._uploads = uploads
        self._rooted = False
        self.upload = upload
        self.fd = fd
        self.journal = journal
        self.data = -1

    @classmethod
    def make(cls, system: System, uploads: int, upload: UploadId, spec: UploadSpec) -> Folder:
        """A new folder with an empty journal and data, claimed. Not durable before :meth:`root`."""
        try:
            system.mkdir(upload, 0o700, dir_fd=uploads)
            folder = cls._enter(system, uploads, upload, _MAKE)
            try:
                system.flock(folder.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.data = system.open(DATA, _MAKE, dir_fd=folder.fd)
                write_file(system, META, meta.encode(spec), dir_fd=folder.fd, sync=False)
            except BaseException:
                folder.close()
                raise
        except OSError as error:
            with contextlib.suppress(OSError):
                remove(system, uploads, upload)
            raise disk_failure("the upload cannot be made", error) from error
        return folder

    @classmethod
    def claim(cls, system: System, uploads: int, upload: UploadId) -> Folder:
        """Claim what an earlier holder left. NotFound, UploadBusy. ``data`` is not opened yet."""
        if not is_upload_id(upload):
            raise NotFound("no such upload")
        try:
            folder = cls._enter(system, uploads, upload, _OPEN)
        except FileNotFoundError as error:
            raise NotFound("no such upload") from error
        except OSError as error:
            raise unreadable("the upload's journal cannot be opened", error) from error
        try:
            system.flock(folder.journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not folder._linked():
                raise NotFound("no such upload")
        except BlockingIOError as error:
            folder.close()
            raise UploadBusy("the upload is in use") from error
        except OSError as error:
            folder.close()
            raise disk_failure("the upload cannot be claimed", error) from error
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def _enter(cls, system: System, uploads: int, upload: UploadId, flags: int) -> Folder:
        fd = system.open(upload, DIRECTORY, dir_fd=uploads)
        try:
            return cls(system, uploads, upload, fd, system.open(JOURNAL, flags, dir_fd=fd))
        except BaseException:
            system.close(fd)
            raise

    def _linked(self) -> bool:
        try:
            found = self._system.stat(self.upload, dir_fd=self._uploads)
            mine = self._system.fstat(self.fd)
        except FileNotFoundError:
            return False
        return found.st_ino == mine.st_ino and self._system.fstat(self.journal).st_nlink > 0

    def open_data(self) -> bool:
        """Open ``data``; False where it is gone (published, or broken)."""
        try:
            try:
                self.data = self._system.open(DATA, _OPEN, dir_fd=self.fd)
            except PermissionError:
                # A publication that got no further than the sender's permission bits.
                self._system.chmod(DATA, 0o600, dir_fd=self.fd)
                self.data = self._system.open(DATA, _OPEN, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_failure("the upload's data cannot be opened", error) from error
        return True

    def read_journal(self) -> bytes:
        """Unreadable, or StorageError."""
        try:
            return read_all(self._system, self.journal)
        except OSError as error:
            raise unreadable("the upload's journal cannot be read", error) from error

    def spec(self) -> UploadSpec:
        """NotFound where the meta is missing or broken; Unreadable, or StorageError."""
        try:
            found = read_meta(self._system, self.fd)
        except OSError as error:
            raise unreadable("the upload's meta cannot be read", error) from error
        if found is None:
            raise NotFound("no such upload")
        return found

    def write_spec(self, spec: UploadSpec) -> None:
        """Durably replace the meta."""
        replace_file(self._system, META, meta.encode(spec), dir_fd=self.fd)
        self.root()

    def write_intent(self, intent: dict[str, Any]) -> None:
        """Durably say what is about to be published."""
        write_file(self._system, INTENT, json.dumps(intent).encode("ascii"), dir_fd=self.fd, sync=True)
        if self._rooted:
            self._system.fsync(self.fd)
        else:
            self.root()

    def intent(self) -> dict[str, Any] | None:
        """What was about to be published; None where nothing was, or the record is broken."""
        try:
            found = json.loads(read_small(self._system, INTENT, dir_fd=self.fd))
        except (FileNotFoundError, ValueError):
            return None
        return cast("dict[str, Any]", found) if isinstance(found, dict) else None

    def drop_intent(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(INTENT, dir_fd=self.fd)

    def root(self) -> None:
        """Make the folder itself durable: its meta, its entries, and its own entry. Once is enough."""
        if self._rooted:
            return
        fd = self._system.open(META, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            self._system.fsync(fd)
        finally:
            self._system.close(fd)
        self._system.fsync(self.fd)
        self._system.fsync(self._uploads)
        self._rooted = True

    def remove(self) -> None:
        """Remove the folder with everything in it. The claim is kept until :meth:`close`."""
        remove(self._system, self._uploads, self.upload)

    def close(self) -> None:
        """Give up the claim; idempotent."""
        for name in ("data", "journal", "fd"):
            fd: int = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                self._system.close(fd)


def read_meta(system: System, fd: int) -> UploadSpec | None:
    """The specification in an upload's folder; None where it is missing or broken."""
    try:
        return meta.decode(read_small(system, META, dir_fd=fd))
    except (FileNotFoundError, ValueError):
        return None


def remove(system: System, uploads: int, upload: str) -> None:
    """Remove an upload's folder. In this order, whatever a crash leaves is never taken for an upload:
    first what makes it one, last what its claim rests on. FileNotFoundError is no error."""
    with contextlib.suppress(FileNotFoundError):
        fd = system.open(upload, DIRECTORY, dir_fd=uploads)
        try:
            names = system.listdir(fd)
            for name in sorted(names, key=_removal_order):
                with contextlib.suppress(FileNotFoundError):
                    system.unlink(name, dir_fd=fd)
        finally:
            system.close(fd)
        system.rmdir(upload, dir_fd=uploads)


def _removal_order(name: str) -> int:
    order = (INTENT, META, DATA, JOURNAL)
    return order.index(name) if name in order else 0
