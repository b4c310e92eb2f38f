"""The local store under the conformance suite."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.base_conformance import BaseConformance
from store.bundle_conformance import BundleConformance
from store.conformance import StoreConformance, visible
from store.faulty import FaultySystem, HalfWriting, WithoutRenameat2, WithoutSyncfs
from store.tree_conformance import TreeConformance, TreeHarness
from support.received import below
from tdx.model import UploadId
from tdx.store.local import LocalStore


class LocalHarness:
    def __init__(self, folder: Path, system: type[FaultySystem] = FaultySystem) -> None:
        self.kind = system
        self.inbox = folder / "inbox"
        self.state = folder / "state"
        self.boots = 1
        self.start()

    def start(self) -> None:
        self.system = self.kind(self.boots.to_bytes(16, "big"))
        self.store = LocalStore(self.inbox, self.state, reserve=0, system=self.system)
        self.store.recover()

    def restart(self, *, reboot: bool = False) -> None:
        self.system.die()
        self.store._receipts.close()
        self.boots += reboot
        self.start()

    def set_capacity(self, free: int) -> None:
        self.system.free = free

    def fail_syncs(self, *, failing: bool) -> None:
        self.system.heal()
        if failing:

            def fail(called: str, arguments: tuple[Any, ...]) -> None:
                if called in ("fsync", "syncfs") or (
                    called == "fdatasync" and not self._is_journal(arguments[0])
                ):
                    raise OSError(errno.EIO, "the disk is dying")

            self.system.before = fail

    @staticmethod
    def _is_journal(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}").endswith("/journal")

    def put(self, path: str, data: bytes) -> None:
        target = self.inbox / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def link(self, path: str, target: str) -> None:
        (self.inbox / path).parent.mkdir(parents=True, exist_ok=True)
        (self.inbox / path).symlink_to(target)

    def folder(self, path: str) -> None:
        (self.inbox / path).mkdir(parents=True)

    def remove(self, path: str) -> None:
        (self.inbox / path).unlink()

    def links(self) -> dict[str, str]:
        return {path: os.readlink(self.inbox / path) for path in self._everything() if self._is_link(path)}

    def folders(self) -> dict[str, tuple[int, int]]:
        return {
            path: self.attributes(path)
            for path in self._everything()
            if not self._is_link(path) and (self.inbox / path).is_dir()
        }

    def attributes(self, path: str) -> tuple[int, int]:
        found = (self.inbox / path).stat()
        return found.st_mode & 0o7777, found.st_mtime_ns

    def _is_link(self, path: str) -> bool:
        return (self.inbox / path).is_symlink()

    def _everything(self) -> list[str]:
        return sorted(str(path.relative_to(self.inbox)) for path in below(self.inbox))

    def published(self) -> dict[str, bytes]:
        return visible(self.inbox)

    def damage(self, upload: UploadId, offset: int) -> None:
        with open(self.inbox / ".tdx" / "uploads" / upload / "data", "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x40]))


class TestLocalStore(StoreConformance, BundleConformance, BaseConformance, TreeConformance):
    KIND: type[FaultySystem] = FaultySystem

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[TreeHarness]:
        harness = LocalHarness(tmp_path, self.KIND)
        yield harness
        harness.store.close()
        assert harness.system.fds == set()


class TestLocalStoreWithShortWritesAndSignals(TestLocalStore):
    KIND = HalfWriting


class TestLocalStoreWithoutSyncfs(TestLocalStore):
    KIND = WithoutSyncfs


class TestLocalStoreWithoutRenameat2(TestLocalStore):
    KIND = WithoutRenameat2
