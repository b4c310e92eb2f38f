"""Whoever removes a folder of DIR as soon as it is empty keeps no file from being published in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.bundle_conformance import anything, small
from store.conformance import EXTENT, ME, content, publish, send, spec
from store.faulty import FaultySystem, WithoutRenameat2, WithoutSyncfs
from store.killable import KillableStore
from tdx.errors import StorageError, TdxError
from tdx.model import Conflict, Receipt
from tdx.store.port import Bundle

pytestmark = pytest.mark.usefixtures("counted_receipts")

DATA = content(EXTENT + 9)
FILES = {"a/b/c": b"one", "a/b/d": b"two", "e/f": b"three", "g/h/i": b"four"}


class Machine(KillableStore):
    FOLDER = "uploads"

    def tidy(self) -> int:
        """Remove the empty folders; how many there were."""
        removed = 0
        for top, _, _ in os.walk(self.inbox, topdown=False):
            if Path(top) != self.inbox and ".tdx" not in Path(top).parts:
                with contextlib.suppress(OSError):
                    os.rmdir(top)
                    removed += 1
        return removed

    def tidied_at(self, step: int) -> list[int]:
        """Somebody tidies up before the ``step``-th call from now; what that removed."""
        left, removed = [step], [0]

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            left[0] -= 1
            if left[0] == -1:
                removed[0] = self.tidy()

        self.system.before = before
        return removed

    def one(self, conflict: Conflict) -> Callable[[], None]:
        """What publishes a file that has been received."""
        upload = self.store.create(spec("a/b/c", len(DATA), conflict=conflict))
        send(upload, DATA)
        return lambda: _published(publish(upload, DATA))

    def some(self, conflict: Conflict) -> Callable[[], None]:
        """The same for files that came together."""
        bundle: Bundle = self.store.bundle(ME, conflict, None)
        for name, data in FILES.items():
            bundle.begin(small(name, data, f"key of {name}"))
            bundle.write(memoryview(data))
            bundle.keep()

        def finish() -> None:
            try:
                for each in bundle.publish(anything):
                    _published(each)
            finally:
                bundle.close()

        return finish


def _published(result: Receipt | TdxError) -> None:
    assert isinstance(result, Receipt), result


WAYS = [
    pytest.param(conflict, kind, id=f"{conflict}-{kind.__name__}")
    for conflict in (Conflict.RENAME, Conflict.OVERWRITE)
    for kind in (FaultySystem, WithoutRenameat2, WithoutSyncfs)
]


def _machines(tmp_path: Path, kind: type[FaultySystem]) -> Iterator[tuple[int, Machine]]:
    for step in range(1000):
        with Machine(tmp_path / str(step), kind) as machine:
            yield step, machine


@pytest.mark.parametrize(("conflict", "kind"), WAYS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_folder_that_is_removed_before_any_step_is_made_again(
    tmp_path: Path, conflict: Conflict, kind: type[FaultySystem], several: bool
) -> None:
    hits = 0
    expected = FILES if several else {"a/b/c": DATA}
    for step, machine in _machines(tmp_path, kind):
        finish = machine.some(conflict) if several else machine.one(conflict)
        removed = machine.tidied_at(step)
        machine.system.log.clear()
        finish()
        hits += removed[0] > 0
        steps = len(machine.system.log)
        machine.system.heal()
        assert machine.visible() == expected, step
        if step > steps:
            break
    assert hits > 3


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_folder_that_is_removed_again_and_again_is_given_up(
    tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("publish", "publish_bundle"):
        monkeypatch.setattr(f"tdx.store.{module}.WALKS", 3)
    with Machine(tmp_path) as machine:
        finish = machine.some(Conflict.RENAME) if several else machine.one(Conflict.RENAME)
        tries: list[int] = []

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "rename_noreplace":
                tries.append(machine.tidy())

        machine.system.before = before
        with pytest.raises((StorageError, AssertionError), match="No such file"):
            finish()
        machine.system.heal()
        assert 3 <= len(tries) <= 3 * len(FILES)
        assert machine.visible() == {}


def test_a_folder_that_is_removed_before_it_is_entered_is_given_up_in_the_end(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        finish = machine.one(Conflict.RENAME)

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open":
                machine.tidy()

        machine.system.before = before
        with pytest.raises(StorageError, match="No such file"):
            finish()
        machine.system.heal()
