"""Bundles on a disk: killed or failing at any step, a final name is absent or whole, and never twice."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.bundle_conformance import anything, outcomes, small
from store.conformance import ME, content
from store.faulty import FaultySystem, Stopped, WithoutRenameat2, WithoutSyncfs
from store.killable import KillableStore
from tdx.errors import Busy, NoSpace, StorageError, TdxError
from tdx.model import Conflict, Owner, Receipt
from tdx.store.bundle import LocalBundle
from tdx.store.bundles import LIFETIME, UNFINISHED_AGE
from tdx.store.local import LocalStore
from tdx.store.publish_context import FEW

pytestmark = pytest.mark.usefixtures("counted_receipts")

FILES = {"a": b"one", "b": b"two", "d/b": content(5000), "d/e/c": b"", "f/g": b"four", "taken": b"new"}
"""In more than :data:`FEW` directories, one of them below another; so many in one that it is listed."""
OLD = b"what was there before"


class Machine(KillableStore):
    FOLDER = "bundles"

    def receive(
        self, files: dict[str, bytes], conflict: Conflict = Conflict.RENAME, **more: Any
    ) -> LocalBundle:
        bundle = self.store.bundle(ME, conflict, None)
        for name, data in files.items():
            bundle.begin(small(name, data, f"key of {name}", **more))
            bundle.write(memoryview(data))
            bundle.keep()
        return bundle

    def push(self, files: dict[str, bytes], conflict: Conflict = Conflict.RENAME) -> list[Receipt | TdxError]:
        bundle = self.receive(files, conflict)
        try:
            return bundle.publish(anything)
        finally:
            bundle.close()

    def receipt(self, name: str) -> Receipt | None:
        return self.store.receipt_by_key(ME, f"key of {name}")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


WAYS = [
    pytest.param(conflict, kind, id=f"{conflict}-{kind.__name__}")
    for conflict in (Conflict.RENAME, Conflict.OVERWRITE)
    for kind in (FaultySystem, WithoutRenameat2, WithoutSyncfs)
]


@pytest.mark.parametrize(("conflict", "kind"), WAYS)
def test_killed_before_any_step_every_file_is_absent_or_whole_and_comes_again_only_once(
    tmp_path: Path, conflict: Conflict, kind: type[FaultySystem]
) -> None:
    final = "taken (1)" if conflict is Conflict.RENAME else "taken"
    paths = {name: final if name == "taken" else name for name in FILES}
    after = {"taken": OLD} | {paths[name]: data for name, data in FILES.items()}
    step, finished = 0, False
    while not finished:
        machine = Machine(tmp_path / str(step), kind)
        (machine.inbox / "taken").write_bytes(OLD)
        machine.system.stop_at(step)
        try:
            machine.push(FILES, conflict)
            finished = True
        except Stopped:
            pass
        seen = machine.visible()
        assert seen.items() <= after.items() | {("taken", OLD)}, step
        recovered = machine.restart()
        assert machine.left() == [], step
        assert machine.visible() == seen, step
        published = {name for name in FILES if machine.receipt(name) is not None}
        # What has its name has its receipt, so that its sender will not send it a second time.
        there = {name for name, data in FILES.items() if seen.get(paths[name]) == data}
        assert published == there, step
        assert {each.name for each in recovered} in (published, set()), step
        missing = {name: data for name, data in FILES.items() if name not in published}
        assert [kind for kind, _ in outcomes(machine.push(missing, conflict))] == ["published"] * len(missing)
        assert machine.visible() == after, step
        machine.store.close()
        step += 1
    assert step > 40


def test_what_cannot_be_compared_for_want_of_descriptors_is_refused_for_now_and_not_published_twice(
    machine: Machine,
) -> None:
    machine.push({"a": b"one"})
    bundle = machine.receive({"a": b"one"})

    def want(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "open" and arguments[0] == "a":
            raise OSError(errno.EMFILE, "too many open files")

    machine.system.before = want
    (refused,) = bundle.publish(anything)
    bundle.close()
    assert isinstance(refused, Busy)
    machine.system.heal()
    assert outcomes(machine.push({"a": b"one"})) == [("identical", "a")]
    assert machine.visible() == {"a": b"one"}


@pytest.mark.parametrize("kind", [FaultySystem, WithoutSyncfs])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_whatever_call_fails_what_is_not_acknowledged_can_be_sent_again(
    tmp_path: Path, kind: type[FaultySystem], code: int
) -> None:
    calls = Machine(tmp_path / "healthy", kind)
    begun = len(calls.system.log)
    calls.push(FILES)
    made = calls.system.log[begun:]
    calls.store.close()
    for step, name in enumerate(made):
        if name == "close":
            continue  # a close that fails has closed
        machine = Machine(tmp_path / str(step), kind)
        machine.system.fail_step(step, made, code)
        results: dict[str, Receipt | TdxError] = {}
        with contextlib.suppress(NoSpace if code == errno.ENOSPC else StorageError):
            results = dict(zip(FILES, machine.push(FILES), strict=True))
        machine.system.heal()
        seen = machine.visible()
        for each, result in results.items():
            if isinstance(result, Receipt):
                assert seen[result.path] == FILES[each], (step, name)
                assert machine.receipt(each) == result
        machine.restart()
        assert machine.left() == [], (step, name)
        assert machine.visible() == seen, (step, name)
        for each, data in FILES.items():
            assert (each in seen) == (machine.receipt(each) is not None), (step, name, each)
            assert seen.get(each, data) == data, (step, name, each)
        machine.push({each: data for each, data in FILES.items() if machine.receipt(each) is None})
        assert machine.visible() == FILES, (step, name)
        machine.store.close()


def test_everything_is_durable_before_a_name_changes_and_before_the_answer(machine: Machine) -> None:
    begun = len(machine.system.log)
    machine.push(FILES)
    log = machine.system.log[begun:]
    renames = [at for at, name in enumerate(log) if name == "rename_noreplace"]
    syncs = [at for at, name in enumerate(log) if name == "syncfs"]
    writes = [at for at, name in enumerate(log) if name in ("pwrite", "write", "mkdir")]
    assert len(renames) == len(FILES)
    first, last = syncs
    assert max(writes) < first < min(renames)
    assert max(renames) < last
    assert "fsync" not in log


def test_few_directories_are_synced_by_themselves(machine: Machine) -> None:
    machine.push({"there/a": b""})
    begun = len(machine.system.log)
    machine.push({"there/b": b"1", "c": b"2"})
    log = machine.system.log[begun:]
    assert log.count("syncfs") == 1
    assert log.count("fsync") == FEW
    assert log.index("syncfs") < log.index("rename_noreplace") < log.index("fsync")


def test_a_failed_sync_is_final_and_nothing_is_published(machine: Machine) -> None:
    machine.system.fail("syncfs", errno.EIO)
    with pytest.raises(StorageError, match="none was published"):
        machine.push(FILES)
    assert (machine.visible(), machine.left()) == ({}, [])
    # Directories that could not be made durable are in doubt until somebody has seen to the disk.
    results = machine.push(FILES)
    assert outcomes(results) == [
        ("published", "a"),
        ("published", "b"),
        *[("storage", "")] * 3,
        ("published", "taken"),
    ]
    machine.restart()
    assert [kind for kind, _ in outcomes(machine.push(FILES))] == [
        "identical",
        "identical",
        *["published"] * 3,
        "identical",
    ]


def test_a_disk_that_was_full_takes_the_files_once_it_has_room(machine: Machine) -> None:
    machine.system.fail("write", errno.ENOSPC)
    with pytest.raises(NoSpace, match="no space left"):
        machine.push(FILES)
    assert (machine.visible(), machine.left()) == ({}, [])
    # Nothing had been synced in vain, and so the folders made on the way are in no doubt.
    assert [kind for kind, _ in outcomes(machine.push(FILES))] == ["published"] * len(FILES)
    assert machine.visible() == FILES


@pytest.mark.parametrize("names", [["f"], ["a/f", "b/f", "c/f"]])
def test_a_name_whose_directory_cannot_be_synced_is_not_acknowledged_before_a_restart(
    machine: Machine, names: list[str]
) -> None:
    files = dict.fromkeys(names, b"data")
    machine.push({name.rpartition("/")[0] + "/.there": b"" for name in names if "/" in name} or {"x": b""})
    machine.system.fail("fsync" if len(names) <= FEW else "syncfs", errno.EIO, skip=int(len(names) > FEW))
    assert outcomes(machine.push(files)) == [("storage", "")] * len(names)
    assert files.items() <= machine.visible().items()
    machine.system.heal()
    assert [machine.receipt(name) for name in names] == [None] * len(names)
    assert outcomes(machine.push(files)) == [("storage", "")] * len(names)
    assert {receipt.path for receipt in machine.restart()} == set(names)
    assert all(machine.receipt(name) for name in names)
    assert outcomes(machine.push(files)) == [("identical", name) for name in names]
    assert machine.left() == []


def test_receipts_that_could_not_be_stored_are_stored_before_the_next_bundle(machine: Machine) -> None:
    machine.system.spoil("put receipts", StorageError("the receipts are locked"), times=2)
    for _ in range(2):
        with pytest.raises(StorageError, match="locked"):
            machine.push({"a": b"one"})
    assert machine.visible() == {"a": b"one"}
    assert machine.receipt("a") is None
    assert outcomes(machine.push({"b": b"two"})) == [("published", "b")]
    receipt = machine.receipt("a")
    assert receipt is not None
    assert receipt.path == "a"
    assert machine.left() == []


def test_a_name_that_is_taken_on_the_way_is_chosen_anew(machine: Machine) -> None:
    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "syncfs":
            (machine.inbox / "a").write_bytes(OLD)
            machine.system.heal()

    machine.system.before = race
    assert outcomes(machine.push({"a": b"one", "b": b"two"})) == [("published", "a (1)"), ("published", "b")]
    assert machine.visible() == {"a": OLD, "a (1)": b"one", "b": b"two"}


def test_nobody_waits_for_the_disk_of_another_bundle(machine: Machine) -> None:
    (machine.inbox / "same").write_bytes(OLD)
    first = machine.receive({"a": b"one", "b": b"two", "c": b"three", "same": OLD, "d/e": b""})
    free: dict[str, bool] = {}

    def look(called: str, arguments: tuple[Any, ...]) -> None:
        free[called] = not turns.locked()

    turns, machine.system.before = machine.store._publishing.turns, look
    first.publish(anything)
    assert free["syncfs"]
    assert free["fsync"]
    assert free["preadv"]
    assert not free["rename_noreplace"]
    assert not turns.locked()
    first.close()


def test_a_directory_is_listed_once_where_many_files_go_to_it(machine: Machine) -> None:
    (machine.inbox / "b").write_bytes(OLD)
    begun = len(machine.system.log)
    found = outcomes(machine.push({"a": b"one", "b": b"two", "c": b"three"}))
    assert found == [("published", "a"), ("published", "b (1)"), ("published", "c")]
    log = machine.system.log[begun:]
    asked = log[: log.index("syncfs")]
    assert asked.count("listdir") == 1
    assert asked.count("stat") == 3  # of the name that is taken, twice, and of the one that it gets


def test_a_name_that_was_free_in_the_list_and_is_taken_all_the_same_is_chosen_anew(machine: Machine) -> None:
    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "syncfs":
            (machine.inbox / "b").write_bytes(OLD)
            machine.system.heal()

    machine.system.before = race
    found = outcomes(machine.push({"a": b"one", "b": b"two", "c": b"three"}))
    assert found == [("published", "a"), ("published", "b (1)"), ("published", "c")]
    assert machine.visible() == {"a": b"one", "b": OLD, "b (1)": b"two", "c": b"three"}


@pytest.mark.parametrize("code", [errno.ENAMETOOLONG, errno.EILSEQ])
def test_a_name_that_the_filesystem_cannot_hold_is_refused_as_one_though_no_list_tells(
    machine: Machine, code: int
) -> None:
    def picky(called: str, arguments: tuple[Any, ...]) -> None:
        if called in ("stat", "rename_noreplace") and "odd" in arguments:
            raise OSError(code, os.strerror(code))

    machine.system.before = picky
    found = outcomes(machine.push({"a": b"one", "odd": b"two", "c": b"three"}))
    assert found == [("published", "a"), ("bad-name", ""), ("published", "c")]
    assert machine.visible() == {"a": b"one", "c": b"three"}


def test_the_same_file_that_another_has_published_on_the_way_is_identical(machine: Machine) -> None:
    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "syncfs":
            (machine.inbox / "a").write_bytes(b"one")
            machine.system.heal()

    machine.system.before = race
    assert outcomes(machine.push({"a": b"one"})) == [("identical", "a")]
    assert machine.visible() == {"a": b"one"}


def test_of_two_files_overwriting_one_name_the_last_stays_also_after_a_kill(tmp_path: Path) -> None:
    step, finished = 0, False
    while not finished:
        machine = Machine(tmp_path / str(step))
        bundle = machine.store.bundle(ME, Conflict.OVERWRITE, None)
        for number in (b"1", b"2"):
            bundle.begin(small("f", number, f"key {number.decode()}"))
            bundle.write(memoryview(number))
            bundle.keep()
        machine.system.stop_at(step)
        try:
            bundle.publish(anything)
            finished = True
        except Stopped:
            pass
        machine.restart()
        first, second = (machine.store.receipt_by_key(ME, f"key {number}") for number in "12")
        there = machine.visible().get("f")
        assert (first is not None, second is not None) == (there is not None, there == b"2"), step
        machine.store.close()
        step += 1


@pytest.mark.parametrize(
    ("mode", "bits"), [(None, 0o644), (0o600, 0o600), (0o755, 0o755), (0o777, 0o777), (0, 0)]
)
def test_mode_and_time_travel(machine: Machine, mode: int | None, bits: int) -> None:
    before = os.umask(0o022)
    try:
        machine.restart()
        bundle = machine.receive({"f": b"data"}, mode=mode, mtime_ns=1_600_000_000_123_456_789)
        assert outcomes(bundle.publish(anything)) == [("published", "f")]
        bundle.close()
    finally:
        os.umask(before)
    found = (machine.inbox / "f").stat()
    assert found.st_mode & 0o7777 == bits
    assert found.st_mtime_ns == 1_600_000_000_123_456_789


def test_a_date_that_the_filesystem_cannot_keep_costs_no_file(machine: Machine) -> None:
    bundle = machine.receive({"f": b"data"}, mtime_ns=2**63 - 1)
    assert outcomes(bundle.publish(anything)) == [("published", "f")]
    bundle.close()


def test_a_disk_that_is_full_refuses_one_file_and_no_other(machine: Machine) -> None:
    machine.system.fail("pwrite", errno.ENOSPC)
    bundle = machine.store.bundle(ME, Conflict.RENAME, None)
    bundle.begin(small("a", b"one"))
    with pytest.raises(NoSpace, match="a: cannot be written: no space left"):
        bundle.write(memoryview(b"one"))
    bundle.drop()
    bundle.begin(small("b", b"two"))
    bundle.write(memoryview(b"two"))
    bundle.keep()
    assert outcomes(bundle.publish(anything)) == [("published", "b")]
    bundle.close()
    assert machine.visible() == {"b": b"two"}


def test_growth_that_nobody_foresaw_ends_at_the_reserve(machine: Machine) -> None:
    machine.system.free = 1
    bundle = machine.store.bundle(ME, Conflict.RENAME, None)
    machine.system.free = 0
    block = content(4 << 20)
    for number in range(3):
        bundle.begin(small(f"{number}", block))
        bundle.write(memoryview(block))
        bundle.keep()
    with pytest.raises(NoSpace, match="full up to its reserve"):
        bundle.begin(small("one more", block))
    with pytest.raises(NoSpace, match="full up to its reserve"):
        bundle.begin(small("nor this", b"x"))
    bundle.close()
    assert machine.store.staged_bytes() == 0


def test_what_a_bundle_still_needs_is_promised_to_nobody_else(machine: Machine) -> None:
    machine.system.free = 1000
    first = machine.store.bundle(ME, Conflict.RENAME, 600)
    assert machine.store.free_bytes() == 400
    with pytest.raises(NoSpace):
        machine.store.bundle(ME, Conflict.RENAME, 401)
    first.begin(small("a", b"x" * 100))
    first.write(memoryview(b"x" * 100))
    assert (machine.store.free_bytes(), machine.store.staged_bytes()) == (500, 100)
    first.close()
    assert (machine.store.free_bytes(), machine.store.staged_bytes()) == (1000, 0)


def test_what_a_crash_left_is_removed_by_gc_beside_a_receiver_only_once_it_is_old(
    tmp_path: Path, machine: Machine
) -> None:
    machine.receive({"a": b"one"})
    machine.kill()
    machine.start()
    held = machine.receive({"b": b"two"})
    beside = LocalStore(machine.inbox, machine.state, reserve=0, exclusive=False)
    try:
        assert beside.recover() == []
        now = os.stat(machine.inbox / ".tdx" / "bundles").st_ctime
        beside.expire(now)
        assert len(machine.left()) == 2
        beside.expire(now + UNFINISHED_AGE + 10)
        assert machine.left() == [held._folder.name]
    finally:
        beside.close()
    assert outcomes(held.publish(anything)) == [("published", "b")]
    held.close()


def test_the_lifetime_of_a_receipt_is_counted_from_its_publication(machine: Machine) -> None:
    machine.push({"a": b"one"})
    receipt = machine.receipt("a")
    assert receipt is not None
    machine.store.expire(receipt.published_at + LIFETIME - 1)
    assert machine.receipt("a") == receipt
    machine.store.expire(receipt.published_at + LIFETIME + 1)
    assert machine.receipt("a") is None


def test_broken_intents_recover_nothing_and_stop_nobody(machine: Machine) -> None:
    folder = machine.inbox / ".tdx" / "bundles"
    for number, raw in enumerate(
        [b"", b"\xff\n", b"[]\n", b"{}\n", b'{"version": 2}\n', b'{"version": 1, "files": 3}\n']
    ):
        (folder / str(number)).mkdir()
        (folder / str(number) / "intents").write_bytes(raw)
        (folder / str(number) / "0").write_bytes(b"staged")
    (folder / "without").mkdir()
    assert machine.restart() == []
    assert machine.left() == []


def test_a_link_on_the_way_is_never_followed(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (machine.inbox / "d").symlink_to(tmp_path / "elsewhere")
    assert outcomes(machine.push({"d/f": b"1", "g": b"2"})) == [("bad-name", ""), ("published", "g")]
    assert os.listdir(tmp_path / "elsewhere") == []


def test_of_a_link_that_is_there_nothing_is_identical(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"data")
    (machine.inbox / "f").symlink_to(tmp_path / "secret")
    assert outcomes(machine.push({"f": b"data"})) == [("published", "f (1)")]


def test_what_another_owner_has_published_as_numbered_is_not_looked_at(machine: Machine) -> None:
    (machine.inbox / "f").write_bytes(OLD)
    other = machine.store.bundle(Owner("local:7"), Conflict.RENAME, None)
    other.begin(small("f", b"data", "their key"))
    other.write(memoryview(b"data"))
    other.keep()
    assert outcomes(other.publish(anything)) == [("published", "f (1)")]
    other.close()
    assert outcomes(machine.push({"f": b"data"})) == [("published", "f (2)")]
