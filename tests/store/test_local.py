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
from store.conformance import Harness, StoreConformance, visible
from store.faulty import FaultySystem, HalfWriting, WithoutRenameat2, WithoutSyncfs
from tdx.model import UploadId
from tdx.store.local import LocalStore


class LocalHarness:
    def __init__(self, folder: Path, system: type[FaultySystem] = FaultySystem) -> None:
        self.kind = system
        self.folder = folder / "inbox"
        self.state = folder / "state"
        self.boots = 1
        self.start()

    def start(self) -> None:
        self.system = self.kind(self.boots.to_bytes(16, "big"))
        self.store = LocalStore(self.folder, self.state, reserve=0, system=self.system)
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
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def published(self) -> dict[str, bytes]:
        return visible(str(self.folder))

    def damage(self, upload: UploadId, offset: int) -> None:
        with open(self.folder / ".tdx" / "uploads" / upload / "data", "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 0x40]))


class TestLocalStore(StoreConformance, BundleConformance, BaseConformance):
    KIND: type[FaultySystem] = FaultySystem

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[Harness]:
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
