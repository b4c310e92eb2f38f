"""The uploads of one store, ``DIR/.tdx/uploads``: which there are, and what they look like to whoever
has no claim on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import TypeVar

from tdx.errors import TdxError, disk_failure
from tdx.model import Owner, UploadId
from tdx.store.folders import DATA, JOURNAL, META, Folder, is_upload_id, read_meta
from tdx.store.paths import DIRECTORY
from tdx.store.port import Partial
from tdx.store.syscalls import System

T = TypeVar("T")

log = logging.getLogger(__name__)


class Uploads:
    """``fd`` is the folder that the uploads' own lie in; whoever opened it closes it."""

    def __init__(self, system: System, fd: int) -> None:
        self._system = system
        self.fd = fd

    def ids(self) -> list[UploadId]:
        """Every folder that may be an upload's, in stable order. StorageError."""
        try:
            names = self._system.listdir(self.fd)
        except OSError as error:
            raise disk_failure("the uploads cannot be listed", error) from error
        return [UploadId(name) for name in sorted(names) if is_upload_id(name)]

    def partials(self) -> list[Partial]:
        """All that can be looked at; of the others the log tells."""
        found: list[Partial] = []
        for upload in self.ids():
            try:
                partial = self.partial(upload)
            except TdxError as error:
                # It must not hide the others.
                log.warning("the upload %s cannot be looked at: %s", upload, error)
                continue
            if partial is not None:
                found.append(partial)
        return found

    def partial(self, upload: UploadId) -> Partial | None:
        """None where the upload has just gone, or is broken."""

        def look(fd: int) -> Partial | None:
            spec = read_meta(self._system, fd)
            found = [self._system.stat(name, dir_fd=fd) for name in (DATA, JOURNAL, META)]
            if spec is None:
                return None
            # ctime: mtime may already be the source's.
            return Partial(upload, spec, max(each.st_ctime for each in found), found[0].st_blocks * 512)

        return self._look(upload, look)

    def staged_bytes(self) -> int:
        """What all of them take on the disk, of those that can be looked at. StorageError."""
        total = 0
        for upload in self.ids():
            with contextlib.suppress(OSError):  # as after it was published, or removed, just now
                total += self._system.stat(f"{upload}/{DATA}", dir_fd=self.fd).st_blocks * 512
        return total

    def counted(self, upload: UploadId, owner: Owner) -> int | None:
        """What an upload counts, also while it is being published and its data has left the
        folder; None where it is another owner's, or gone."""

        def look(fd: int) -> int | None:
            spec = read_meta(self._system, fd)
            if spec is None or spec.owner != owner:
                return None
            return self._system.stat(DATA, dir_fd=fd).st_size if spec.length is None else spec.length

        return self._look(upload, look)

    def _look(self, upload: UploadId, look: Callable[[int], T | None]) -> T | None:
        try:
            fd = self._system.open(upload, DIRECTORY, dir_fd=self.fd)
            try:
                return look(fd)
            finally:
                self._system.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_failure("an upload cannot be looked at", error) from error

    @contextlib.contextmanager
    def claimed(self, upload: UploadId) -> Generator[Folder]:
        """Claim an upload for cleaning it up. NotFound, UploadBusy, StorageError."""
        folder = Folder.claim(self._system, self.fd, upload)
        try:
            yield folder
        except OSError as error:
            raise disk_failure("an upload cannot be cleaned up", error) from error
        finally:
            folder.close()
