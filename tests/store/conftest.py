"""Fixtures of the tests that kill a store at any step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from store.killable import KillableStore
from tdx.model import Receipt
from tdx.store.receipts import Receipts


@pytest.fixture
def counted_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storing receipts is a step like the system's calls: one can be killed before it."""
    put = Receipts.put_many

    def counted(self: Receipts, receipts: Sequence[Receipt], **more: Any) -> None:
        KillableStore.running.before("put receipts", ())
        put(self, receipts, **more)

    monkeypatch.setattr(Receipts, "put_many", counted)
