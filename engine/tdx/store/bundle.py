"""One bundle on a local disk: small files staged side by side, to be published together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from tdx.errors import StorageError, TdxError, disk_failure
from tdx.model import Conflict, Owner, Receipt
from tdx.store.bundles import BundleFolder
from tdx.store.datafile import Disk, Growth, write_full
from tdx.store.port import Admit, BundledFile
from tdx.store.publish_bundle import Publication, Staged
from tdx.store.publish_context import PublishContext
from tdx.store.syscalls import System
from tdx.store.turn import Turn

_BLOCK: Final = 4096
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class LocalBundle:
    """See :class:`tdx.store.port.Bundle`. ``ended`` is called once it is closed."""

    def __init__(
        self,
        system: System,
        disk: Disk,
        context: PublishContext,
        folder: BundleFolder,
        owner: Owner,
        conflict: Conflict,
        length: int | None,
        ended: Callable[[LocalBundle], None],
    ) -> None:
        self._system = system
        self._folder = folder
        self._length = length or 0
        self._ended = ended
        self._growth = Growth("small files", disk)
        self._bits = 0o666 & ~disk.umask
        self.turn = Turn(context.turns)
        self._publication = Publication(context, folder, owner, conflict, self.turn)
        self._file: BundledFile | None = None
        self._fd = -1
        self._at = 0
        self._begun = 0
        self._kept: list[Staged] = []
        self._open = True
        self.staged = 0
        """Bytes written."""

    def still_needed(self) -> int:
        """Bytes that were promised to it and are not written yet."""
        return max(0, self._length - self.staged)

    def begin(self, file: BundledFile) -> None:
        number = str(self._begun)
        self._begun += 1
        self._growth.check(-(-file.size // _BLOCK) * _BLOCK)
        try:
            self._fd = self._system.open(number, _MAKE, self._bits_of(file), dir_fd=self._folder.fd)
        except OSError as error:
            raise disk_failure(f"{file.name}: cannot be written", error) from error
        self._file = file
        self._at = 0

    def _bits_of(self, file: BundledFile) -> int:
        return self._bits if file.mode is None else file.mode & 0o777

    def write(self, data: memoryview) -> None:
        write_full(self._system, self._fd, data, self._at, self._name)
        self._at += len(data)
        self.staged += len(data)

    def keep(self) -> None:
        file, number = self._file, str(self._begun - 1)
        if file is None or self._at != file.size:
            raise StorageError(f"{self._name}: is not whole")
        if file.mtime_ns is not None:
            # Not every filesystem has room for every date.
            with contextlib.suppress(OSError, OverflowError):
                self._system.utime(self._fd, file.mtime_ns)
        try:
            found = self._system.fstat(self._fd)
        except OSError as error:
            raise disk_failure(f"{file.name}: cannot be looked at", error) from error
        bits = self._bits_of(file)
        if found.st_mode & 0o7777 != bits:
            with contextlib.suppress(OSError):  # nor permission bits
                self._system.fchmod(self._fd, bits)
        self._close_file()
        self._kept.append(Staged(len(self._kept), file, number, found.st_ino))

    def drop(self) -> None:
        if self._fd >= 0:
            self._close_file()
            self._folder.drop(str(self._begun - 1))

    def _close_file(self) -> None:
        fd, self._fd, self._file = self._fd, -1, None
        self._system.close(fd)

    @property
    def _name(self) -> str:
        return "a file" if self._file is None else self._file.name

    def publish(self, admit: Admit) -> list[Receipt | TdxError]:
        try:
            with self.turn:
                return self._publication.run(self._kept, admit)
        except OSError as error:
            raise disk_failure("small files cannot be published", error) from error

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            if self._fd >= 0:
                self._close_file()
            if not self._publication.unfinished:
                with contextlib.suppress(OSError):
                    self._folder.remove()
        finally:
            self._folder.close()
            self._ended(self)
