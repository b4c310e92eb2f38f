"""What a store in memory keeps instead of a disk: published files, uploads' bytes, and receipts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tdx.errors import BadName, Exists, NoSpace, NotFound, StorageError
from tdx.model import Conflict, Outcome, Receipt, UploadId, UploadSpec
from tdx.store.journal import State
from tdx.store.rules import free_number, needed_bytes


@dataclass(slots=True)
class Staged:
    """An upload's bytes and what its journal says of them."""

    spec: UploadSpec
    state: State
    touched_at: float
    data: bytearray
    claimed: bool = False

    def still_needed(self) -> int:
        needed = needed_bytes(self.spec)
        return max(0, needed - len(self.data)) if self.claimed else 0


class MemoryBase:
    """See :class:`tdx.store.port.Base`."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read_at(self, view: memoryview, offset: int) -> int:
        found = self._content[offset : offset + len(view)]
        view[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Nothing to release."""


class Attributes(NamedTuple):
    """Permission bits and mtime; of a file, None for what its sender did not tell."""

    mode: int | None
    mtime_ns: int | None


class MemoryDisk:
    """``files`` is what is published, by path; ``capacity`` the bytes that may be stored, published and
    staged together; ``syncs_fail`` whether making anything durable fails, as on a dying disk.
    ``lock`` guards all of it; it may be taken again by who has it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.files: dict[str, bytes] = {}
        self.attributes: dict[str, Attributes] = {}
        """Of files that were published."""
        self.folders: dict[str, Attributes] = {}
        """Those that were made or given attributes; others are there because something lies in them."""
        self.links: dict[str, str] = {}
        self.capacity = 1 << 40
        self.syncs_fail = False
        self.lock = threading.RLock()
        self.staged: dict[UploadId, Staged] = {}
        self.receipts: dict[UploadId, tuple[Receipt, float]] = {}
        self.published_by: dict[str, Receipt] = {}

    def grow(self, staged: Staged, end: int) -> None:
        """Make room for bytes up to ``end``. NoSpace."""
        with self.lock:
            more = end - len(staged.data)
            if more > 0:
                if more > self.capacity - self._used():
                    raise NoSpace(f"{staged.spec.name}: no space left")
                staged.data.extend(bytes(more))
                staged.touched_at = self.now()

    def place(self, staged: Staged, length: int) -> str | None:
        """Publish; the path, or None where the name is taken and the mode is ``skip``."""
        spec = staged.spec
        with self.lock:
            path: str = spec.name
            if self.taken(path):
                if spec.conflict is Conflict.RENAME:
                    leaf = path.rpartition("/")[2]
                    above = path[: -len(leaf)]
                    path = above + free_number(leaf, lambda each: self.taken(above + each))
                elif spec.conflict is Conflict.ERROR or self.is_folder(path):
                    raise Exists(f"{path}: is there already", path=path)
                elif spec.conflict is Conflict.SKIP:
                    return None
            self.links.pop(path, None)
            self.files[path] = bytes(staged.data[:length]).ljust(length, b"\0")
            self.attributes[path] = Attributes(spec.mode, spec.mtime_ns)
            return path

    def size_of(self, path: str) -> int:
        """NotFound where nothing carries this name."""
        with self.lock:
            if path not in self.files:
                raise NotFound(f"{path}: is no longer there")
            return len(self.files[path])

    def make_durable(self, path: str) -> int:
        size = self.size_of(path)
        if self.syncs_fail:
            raise StorageError(f"{path}: cannot be made durable")
        return size

    def keep(self, receipt: Receipt, lifetime: float) -> None:
        with self.lock:
            self.receipts[receipt.upload] = receipt, lifetime
            if receipt.outcome is Outcome.PUBLISHED:
                self.published_by[receipt.path] = receipt

    def remove(self, upload: UploadId) -> None:
        with self.lock:
            del self.staged[upload]

    def taken(self, path: str) -> bool:
        """Whether anything has this name. BadName as for :meth:`check_path`."""
        self.check_path(path)
        return path in self.files or path in self.links or self.is_folder(path)

    def is_folder(self, path: str) -> bool:
        below = path + "/"
        everything = (*self.files, *self.links, *self.folders)
        return path in self.folders or any(each.startswith(below) for each in everything)

    def check_path(self, path: str) -> None:
        """BadName where a file or a link is in the way."""
        folders = path.split("/")[:-1]
        for count in range(1, len(folders) + 1):
            above = "/".join(folders[:count])
            if above in self.files or above in self.links:
                raise BadName(f"{path}: {folders[count - 1]} is there and is not a folder")

    def still_there(self) -> dict[str, Receipt]:
        """What is still there of what was published, by path."""
        return {
            path: receipt
            for path, receipt in self.published_by.items()
            if path in self.files and len(self.files[path]) == receipt.size
        }

    def _used(self) -> int:
        staged = sum(len(each.data) for each in self.staged.values())
        return staged + sum(map(len, self.files.values()))

    def free(self) -> int:
        """What may still be promised; below zero where more has been."""
        return self.capacity - self._used() - sum(each.still_needed() for each in self.staged.values())
