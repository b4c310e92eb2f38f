"""The store in memory under the conformance suite."""

from __future__ import annotations

import pytest

from store.base_conformance import BaseConformance
from store.bundle_conformance import BundleConformance
from store.conformance import Harness, StoreConformance
from tdx.model import UploadId
from tdx.store.memory import MemoryStore


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

    def published(self) -> dict[str, bytes]:
        return dict(self.store.disk.files)

    def damage(self, upload: UploadId, offset: int) -> None:
        self.store.disk.staged[upload].data[offset] ^= 0x40


class TestMemoryStore(StoreConformance, BundleConformance, BaseConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        return MemoryHarness()
