"""A bundle of the store in memory: at its end each file is made an upload of its own, and published."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tdx.errors import StorageError, TdxError
from tdx.integrity import MIN_EXTENT, Root
from tdx.model import Conflict, Outcome, Owner, Receipt, Span, UploadSpec
from tdx.store.memory_upload import MemoryUpload
from tdx.store.port import Admit, BundledFile, Existing, Piece
from tdx.store.turn import Turn


class MemoryBundle:
    """See :class:`tdx.store.port.Bundle`. ``create`` and ``identical`` are the store's: the latter finds a
    published file that has this content already."""

    def __init__(
        self,
        owner: Owner,
        conflict: Conflict,
        create: Callable[[UploadSpec], MemoryUpload],
        identical: Callable[[UploadSpec, list[bytes]], Existing | None],
    ) -> None:
        self._owner = owner
        self._conflict = conflict
        self._create = create
        self._identical = identical
        self._staged: list[tuple[BundledFile, bytearray]] = []
        self._begun = False
        self.turn = Turn(threading.Lock())

    def begin(self, file: BundledFile) -> None:
        self._staged.append((file, bytearray()))
        self._begun = True

    def write(self, data: memoryview) -> None:
        self._staged[-1][1].extend(data)

    def keep(self) -> None:
        file, data = self._staged[-1]
        if len(data) != file.size:
            raise StorageError(f"{file.name}: is not whole")
        self._begun = False

    def drop(self) -> None:
        if self._begun:
            del self._staged[-1]
            self._begun = False

    def publish(self, admit: Admit) -> list[Receipt | TdxError]:
        prepared = [self._upload(file, data) for file, data in self._staged]
        try:
            for each in prepared:
                if isinstance(each, MemoryUpload):
                    each.mark()
        except StorageError:
            for each in prepared:
                if isinstance(each, MemoryUpload):
                    each.discard()
            raise
        return [
            self._publish(file, each, admit) if isinstance(each, MemoryUpload) else each
            for (file, _), each in zip(self._staged, prepared, strict=True)
        ]

    def _upload(self, file: BundledFile, data: bytearray) -> MemoryUpload | TdxError:
        # With this mode a name that is taken is no obstacle yet.
        spec = self._spec(file, Conflict.OVERWRITE)
        try:
            upload = self._create(spec)
            upload.write_at(memoryview(data), 0)
            if file.size:
                upload.record(Piece(Span(0, file.size), file.digest))
        except TdxError as error:
            return error
        return upload

    def _spec(self, file: BundledFile, conflict: Conflict) -> UploadSpec:
        return UploadSpec(
            self._owner,
            file.name,
            file.size,
            MIN_EXTENT,
            key=file.key,
            conflict=conflict,
            mtime_ns=file.mtime_ns,
            mode=file.mode,
        )

    def _publish(self, file: BundledFile, upload: MemoryUpload, admit: Admit) -> Receipt | TdxError:
        digests = [file.digest] if file.size else []
        root = str(Root.over(digests, file.size, MIN_EXTENT))
        spec = self._spec(file, self._conflict)
        try:
            upload.refresh(spec)
            existing = self._identical(spec, digests)
            if existing is not None and self._conflict is not Conflict.SKIP:
                return upload.settle(Outcome.IDENTICAL, existing.path, root=root, verified=True)
            admit(upload.id, file.size)
            return upload.publish(root=root, verified=True)
        except TdxError as error:
            upload.discard()
            return error

    def close(self) -> None:
        self._staged.clear()
