"""The store in memory under the conformance suite."""

from __future__ import annotations

import pytest

from store.base_conformance import BaseConformance
from store.bundle_conformance import BundleConformance
from store.conformance import StoreConformance
from store.tree_conformance import TreeConformance, TreeHarness
from tdx.model import UploadId
from tdx.store.memory import MemoryStore
from tdx.store.memory_disk import Attributes


class MemoryHarness:
    def __init__(self) -> None:
        self.time = 1e9
        self.store = MemoryStore(clock=self.tick)

    def tick(self) -> float:
        self.time += 0.001
        return self.time

    def restart(self, *, reboot: bool = False) -> None:
        self.store.restart(reboot=reboot)

    def set_capacity(self, free: int) -> None:
        self.store.disk.capacity = free

    def fail_syncs(self, *, failing: bool) -> None:
        self.store.disk.syncs_fail = failing

    def put(self, path: str, data: bytes) -> None:
        self.store.disk.files[path] = data

    def link(self, path: str, target: str) -> None:
        self.store.disk.links[path] = target

    def folder(self, path: str) -> None:
        self.store.disk.folders[path] = Attributes(0o755, 0)

    def remove(self, path: str) -> None:
        del self.store.disk.files[path]

    def links(self) -> dict[str, str]:
        return dict(self.store.disk.links)

    def folders(self) -> dict[str, tuple[int, int]]:
        return {path: (mode or 0, time or 0) for path, (mode, time) in self.store.disk.folders.items()}

    def attributes(self, path: str) -> tuple[int, int]:
        mode, mtime_ns = self.store.disk.attributes[path]
        return mode or 0, mtime_ns or 0

    def published(self) -> dict[str, bytes]:
        return dict(self.store.disk.files)

    def damage(self, upload: UploadId, offset: int) -> None:
        self.store.disk.staged[upload].data[offset] ^= 0x40


class TestMemoryStore(StoreConformance, BundleConformance, BaseConformance, TreeConformance):
    @pytest.fixture
    def harness(self) -> TreeHarness:
        return MemoryHarness()
