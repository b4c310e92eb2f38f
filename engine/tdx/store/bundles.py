"""The bundles of one store, ``DIR/.tdx/bundles``: their folders, and what is made of those that a crash left.

A folder has the staged files, named by numbers, and ``intents``, which says what is about to be
published, and whose flock is the claim on the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tdx.errors import UploadBusy, disk_failure
from tdx.model import FileName, Outcome, Owner, Receipt, UploadId
from tdx.store.final_names import FinalNames
from tdx.store.folders import remove
from tdx.store.paths import DIRECTORY, read_all, write_all
from tdx.store.receipts import Receipts
from tdx.store.syscalls import System

log = logging.getLogger(__name__)

LIFETIME: Final = 86400.0
"""Seconds for which a sender may ask again what became of a file: the lifetime of its receipt."""

UNFINISHED_AGE: Final = 3600.0
"""A folder that nobody claims may be one in the making; after this many seconds it is not."""

INTENTS: Final = "intents"
_VERSION: Final = 1
_ID_BYTES: Final = 12
_MAKE: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Intent:
    """A file that is about to get its final name, the ``path`` of its receipt."""

    receipt: Receipt
    inode: int


class BundleFolder:
    """A claimed folder. ``lock`` is its ``intents``, opened before anything else was written: a syncfs
    through it tells of every failure since."""

    def __init__(self, system: System, bundles: int, name: str, fd: int, lock: int) -> None:
        self._system = system
        self._bundles = bundles
        self.name = name
        self.fd = fd
        self.lock = lock

    def id_of(self, number: str) -> UploadId:
        """What the receipt of this file is called."""
        return UploadId(f"{self.name}{int(number):08x}")

    def drop(self, number: str) -> None:
        """Remove this file, which is not to be published; what cannot be goes with the folder."""
        with contextlib.suppress(OSError):
            self._system.unlink(number, dir_fd=self.fd)

    def write_intents(self, intents: Sequence[Intent], owner: Owner, *, overwrites: bool) -> None:
        """Say what is about to be published; durable only once the caller has synced it. OSError."""
        files = [
            [each.upload, each.key, each.name, each.path, each.size, each.root, each.published_at, one.inode]
            for one in intents
            for each in [one.receipt]
        ]
        document = {"version": _VERSION, "owner": owner, "overwrites": overwrites, "files": files}
        write_all(self._system, self.lock, json.dumps(document).encode("ascii") + b"\n")

    def sync(self, numbers: Sequence[str]) -> None:
        """Make these files durable, with the intents and the folder itself, one by one. OSError."""
        for number in numbers:
            fd = self._system.open(number, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd)
            try:
                self._system.fsync(fd)
            finally:
                self._system.close(fd)
        self._system.fsync(self.lock)
        self._system.fsync(self.fd)
        self._system.fsync(self._bundles)

    def remove(self) -> None:
        """Remove the folder with everything in it. The claim is kept until :meth:`close`. OSError."""
        remove(self._system, self._bundles, self.name)

    def close(self) -> None:
        """Give up the claim; idempotent."""
        for name in ("lock", "fd"):
            fd: int = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                self._system.close(fd)


class Bundles:
    """``fd`` is the folder that the bundles' own lie in; whoever opened it closes it."""

    def __init__(self, system: System, fd: int, names: FinalNames, receipts: Receipts) -> None:
        self._system = system
        self._names = names
        self._receipts = receipts
        self._unrecorded: set[str] = set()
        self.fd = fd

    def make(self) -> BundleFolder:
        """A new folder, claimed. First the receipts are stored that could not be before: without them
        their senders would come again and be given second copies. NoSpace, StorageError."""
        for each in list(self._unrecorded):
            self.recover_one(each)
            self._unrecorded.discard(each)
        name = secrets.token_hex(_ID_BYTES)
        try:
            self._system.mkdir(name, 0o700, dir_fd=self.fd)
            try:
                return self._enter(name, _MAKE)
            except BaseException:
                with contextlib.suppress(OSError):
                    remove(self._system, self.fd, name)
                raise
        except OSError as error:
            raise disk_failure("the files cannot be received", error) from error

    def _enter(self, name: str, flags: int) -> BundleFolder:
        fd = self._system.open(name, DIRECTORY, dir_fd=self.fd)
        try:
            lock = self._system.open(INTENTS, flags, dir_fd=fd)
            try:
                self._system.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                self._system.close(lock)
                raise
        except BaseException:
            self._system.close(fd)
            raise
        return BundleFolder(self._system, self.fd, name, fd, lock)

    def unrecorded(self, name: str) -> None:
        """Files of this bundle are in place, and their receipts could not be stored: to be tried again."""
        self._unrecorded.add(name)

    def recover(self, before: float | None = None) -> list[Receipt]:
        """Finish and remove what nobody holds any more and, where that is given, has not changed since
        ``before`` (seconds since the Unix epoch); the receipts stored. Never raises: what
        cannot be recovered stays for the next time."""
        stored: list[Receipt] = []
        try:
            found = self._system.listdir(self.fd)
        except OSError as error:
            log.warning("the bundles cannot be listed: %s", error)
            return stored
        for name in sorted(found):
            try:
                if before is None or self._system.stat(name, dir_fd=self.fd).st_ctime < before:
                    stored += self.recover_one(name)
            except (UploadBusy, FileNotFoundError):
                continue
            except Exception as error:
                log.warning("the bundle %s cannot be recovered: %r", name, error)
        return stored

    def recover_one(self, name: str) -> list[Receipt]:
        """The same for one, whatever its age. UploadBusy where it is held; StorageError."""
        try:
            try:
                folder = self._enter(name, os.O_RDWR | os.O_NOFOLLOW)
            except BlockingIOError as error:
                raise UploadBusy("the bundle is being received") from error
            except FileNotFoundError:
                # Killed while it was made or removed.
                remove(self._system, self.fd, name)
                return []
            try:
                receipts = self._carried_out(_read_intents(self._system, folder.lock))
                if receipts:
                    self._receipts.put_many(receipts, lifetime=LIFETIME)
                folder.remove()
                return receipts
            finally:
                folder.close()
        except OSError as error:
            raise disk_failure("files that came together cannot be recovered", error) from error

    def _carried_out(self, rounds: list[tuple[bool, list[Intent]]]) -> list[Receipt]:
        """The receipts of what has got its final name; durably, then."""
        found: list[Receipt] = []
        overwritten: set[str] = set()
        synced: set[str] = set()
        for overwrites, intents in reversed(rounds):
            for intent in intents:
                path, size = intent.receipt.path, intent.receipt.size
                # What came later under the same name is there only because this one was there before.
                if path in overwritten or self._names.carried(path, intent.inode, size, synced):
                    found.append(intent.receipt)
                    if overwrites:
                        overwritten.add(path)
        return found


def _read_intents(system: System, fd: int) -> list[tuple[bool, list[Intent]]]:
    """Round by round, what was about to be published. A round whose record is broken never began. OSError."""
    rounds: list[tuple[bool, list[Intent]]] = []
    for line in read_all(system, fd).splitlines():
        try:
            rounds.append(_decode(cast("dict[str, Any]", json.loads(line))))
        except (AttributeError, KeyError, TypeError, ValueError):
            break
    return rounds


def _decode(document: dict[str, Any]) -> tuple[bool, list[Intent]]:
    if document["version"] != _VERSION:
        raise ValueError("of another version")
    intents = [
        Intent(
            Receipt(
                upload=UploadId(upload),
                owner=Owner(document["owner"]),
                key=key,
                name=FileName(name),
                path=path,
                size=int(size),
                root=root,
                verified=True,
                outcome=Outcome.PUBLISHED,
                published_at=float(published_at),
            ),
            int(inode),
        )
        for upload, key, name, path, size, root, published_at, inode in document["files"]
    ]
    return bool(document["overwrites"]), intents
