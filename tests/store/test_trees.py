"""Entries of a tree on a disk: what is read, remembered and synced, and what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.bundle_conformance import bundle
from store.conformance import ME, push
from store.faulty import FaultySystem, Stopped, WithoutRenameat2, WithoutSyncfs
from store.killable import KillableStore
from store.tree_conformance import OLD, file, folder, link, nothing_ends_it, tell
from tdx.errors import Interrupted, StorageError, TdxError
from tdx.integrity import MIB
from tdx.model import Conflict
from tdx.proto.tree import Entry
from tdx.store.known import SETTLED
from tdx.store.receipts import Receipts
from tdx.store.tree_files import _READ

LONG_AGO = (OLD - 10**15, OLD)
"""Times of access and change (ns)."""


class Machine(KillableStore):
    FOLDER = "bundles"

    def put(self, name: str, content: bytes) -> Path:
        """A file that a user has put there, some time ago."""
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=LONG_AGO)
        return path

    def tell(self, *entries: Entry, conflict: Conflict = Conflict.RENAME) -> list[str]:
        return tell(self.store, *entries, conflict=conflict)

    def calls(self, *entries: Entry, conflict: Conflict = Conflict.RENAME) -> list[str]:
        """The system calls for these, of which nothing is said here."""
        begun = len(self.system.log)
        self.tell(*entries, conflict=conflict)
        return self.system.log[begun:]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an hour later than the ctimes of the files that a test makes."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)


SYNCS = {"fsync", "fdatasync", "syncfs"}


# --- what is remembered ------------------------------------------------------------------


def test_what_was_published_is_neither_read_nor_synced_again(machine: Machine) -> None:
    bundle(machine.store, {"d/a": b"one", "b": b""}, mtime_ns=OLD)
    push(machine.store, b"large" * 5000, "large", mtime_ns=OLD)
    entries = file("d/a", b"one"), file("b", b"")
    large = machine.store._receipts.known(["large"])["large"]
    assert large.stamp.size == 25000
    for _ in range(2):
        assert not {"preadv", *SYNCS} & set(machine.calls(*entries))
        assert machine.tell(*entries) == ["same", "same"]
        machine.restart()


def test_what_was_published_with_a_time_of_just_now_is_read(machine: Machine) -> None:
    bundle(machine.store, {"a": b"one"}, mtime_ns=time.time_ns() + SETTLED // 2)
    bundle(machine.store, {"b": b"one"})
    assert machine.store._receipts.known() == {}
    assert machine.calls(file("a", b"one"), file("b", b"one")).count("preadv") >= 2


def test_of_files_that_were_published_together_each_is_known_until_it_changes(machine: Machine) -> None:
    names = [f"d/{number:02}" for number in range(40)]
    bundle(machine.store, {name: name.encode() for name in names}, mtime_ns=OLD)
    entries = [file(name, name.encode()) for name in names]
    assert not {"preadv", *SYNCS} & set(machine.calls(*entries))
    time.sleep(0.02)  # the filesystem's clock ticks
    changed = machine.inbox / names[20]
    changed.write_bytes(b"d/02")
    os.utime(changed, ns=(OLD, OLD))
    os.replace(machine.put("elsewhere", b"d/03"), machine.inbox / names[30])
    said = machine.tell(*entries)
    assert [name for name, each in zip(names, said, strict=True) if each == "send"] == [names[20], names[30]]
    assert set(said) == {"same", "send"}


@pytest.mark.usefixtures("later")
def test_what_somebody_put_there_is_read_and_made_durable_once(machine: Machine) -> None:
    machine.put("d/a", b"one")
    first = machine.calls(file("d/a", b"one"))
    assert "preadv" in first
    assert "fsync" in first
    machine.restart()
    again = machine.calls(file("d/a", b"one"))
    assert not {"preadv", *SYNCS} & set(again)


def test_nothing_more_is_read_once_nobody_waits_for_it(machine: Machine) -> None:
    content = bytes(3 * MIB)
    machine.put("a", content)
    before = machine.system.log.count("preadv")

    def go_on() -> None:
        if machine.system.log.count("preadv") > before:
            raise Interrupted("nobody waits")

    with pytest.raises(Interrupted):
        machine.store.take_entries(ME, Conflict.RENAME, [file("a", content)], go_on)
    assert machine.system.log.count("preadv") == before + 1


def test_what_was_changed_a_moment_ago_is_not_remembered(machine: Machine) -> None:
    machine.put("a", b"one")
    assert machine.tell(file("a", b"one")) == ["same"]
    assert machine.store._receipts.known() == {}


@pytest.mark.usefixtures("later")
def test_another_content_of_the_same_size_and_time_is_noticed(machine: Machine) -> None:
    path = machine.put("a", b"one")
    assert machine.tell(file("a", b"one")) == ["same"]
    path.write_bytes(b"two")
    os.utime(path, ns=LONG_AGO)
    assert machine.tell(file("a", b"one"), file("a", b"two")) == ["send", "same"]
    os.replace(machine.put("other", b"six"), path)
    assert machine.tell(file("a", b"two"), file("a", b"six")) == ["send", "same"]


@pytest.mark.usefixtures("later")
def test_a_file_that_differs_is_remembered_but_not_as_durable(machine: Machine) -> None:
    machine.put("a", b"one")
    assert not SYNCS & set(machine.calls(file("a", b"two")))
    assert not machine.store._receipts.known()["a"].durable
    calls = machine.calls(file("a", b"one"))
    assert "preadv" not in calls
    assert "fsync" in calls


@pytest.mark.usefixtures("later")
def test_what_is_remembered_is_forgotten_with_the_file(machine: Machine) -> None:
    for name in ("stays", "goes", "changes"):
        machine.put(name, name.encode())
    machine.tell(*(file(name, name.encode()) for name in ("stays", "goes", "changes")))
    assert len(machine.store._receipts.known()) == 3
    (machine.inbox / "goes").unlink()
    machine.put("changes", b"anew")
    machine.put("blocks", b"")
    machine.store.expire(time.time())
    assert list(machine.store._receipts.known()) == ["stays"]


def test_what_cannot_be_looked_at_is_not_forgotten(machine: Machine) -> None:
    bundle(machine.store, {"d/a": b"one"}, mtime_ns=OLD)
    machine.system.fail("stat", errno.EIO, times=1000)
    machine.store.expire(0)
    machine.system.heal()
    assert list(machine.store._receipts.known()) == ["d/a"]


@pytest.mark.usefixtures("later")
def test_that_nothing_can_be_remembered_costs_only_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the receipts are locked")

    machine.put("a", b"one")
    monkeypatch.setattr(Receipts, "remember", refuse)
    with caplog.at_level(logging.WARNING):
        assert machine.tell(file("a", b"one")) == ["same"]
    assert "the receipts are locked" in caplog.text


def test_that_a_published_file_cannot_be_looked_at_costs_only_what_would_be_remembered(
    machine: Machine,
) -> None:
    begun = len(machine.system.log)
    bundle(machine.store, {"x": b"one"}, mtime_ns=OLD)
    calls = machine.system.log[begun:]
    after = len(calls) - 1 - calls[::-1].index("rename_noreplace")
    skip = calls[:after].count("stat")
    machine.system.fail("stat", errno.EIO, skip=skip)
    (receipt,) = bundle(machine.store, {"a": b"one"}, mtime_ns=OLD)
    machine.system.heal()
    assert not isinstance(receipt, TdxError)
    assert list(machine.store._receipts.known()) == ["x"]
    assert machine.tell(file("a", b"one")) == ["same"]


# --- reading that goes wrong ------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOENT, errno.ELOOP])
def test_what_cannot_be_read_is_not_known_to_be_the_same(machine: Machine, code: int) -> None:
    machine.put("a", b"one")
    machine.put("b", b"two")
    fail_reading(machine.system, "a", code)
    assert machine.tell(file("a", b"one"), file("b", b"two")) == ["send", "same"]


def test_for_want_of_descriptors_an_entry_is_refused_for_now(machine: Machine) -> None:
    machine.put("f", b"another")
    bundle(machine.store, {"f": b"mine"})
    machine.put("a", b"one")
    fail_reading(machine.system, "a", errno.EMFILE)
    assert machine.tell(file("a", b"one")) == ["busy"]
    fail_reading(machine.system, "f (1)", errno.EMFILE)
    assert machine.tell(file("f", b"mine")) == ["busy"]
    machine.system.heal()
    bundle(machine.store, {"g": b"g"}, mtime_ns=OLD)
    fail_reading(machine.system, "g", errno.EMFILE)
    assert machine.tell(file("g", b"g", OLD + 1), conflict=Conflict.OVERWRITE) == ["busy"]
    fail_reading(machine.system, "g", errno.EACCES)
    assert machine.tell(file("g", b"g", OLD + 1), conflict=Conflict.OVERWRITE) == ["send"]


def fail_reading(system: FaultySystem, leaf: str, code: int) -> None:
    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "open" and arguments[:2] == (leaf, _READ):
            raise OSError(code, os.strerror(code))

    system.before = before


@pytest.mark.parametrize("moment", ["open", "preadv"])
def test_a_file_that_changes_while_it_is_read_is_not_the_same(machine: Machine, moment: str) -> None:
    path = machine.put("a", b"one")

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == moment and (moment != "open" or arguments[:2] == ("a", _READ)):
            machine.system.heal()
            path.write_bytes(b"changed")

    machine.system.before = before
    assert machine.tell(file("a", b"one")) == ["send"]


# --- attributes -----------------------------------------------------------------------------


def test_a_file_of_several_names_is_sent_and_not_changed_under_all_of_them(machine: Machine) -> None:
    path = machine.put("a", b"one")
    os.link(path, machine.inbox / "b")
    before = path.stat()
    entry = file("a", b"one", OLD, 0o600)
    assert machine.tell(entry, conflict=Conflict.OVERWRITE) == ["send"]
    assert (path.stat().st_mode, path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    same = file("a", b"one", OLD, before.st_mode & 0o777)
    assert machine.tell(same, conflict=Conflict.OVERWRITE) == ["same"]


def test_attributes_that_were_set_are_durable_and_the_content_is_read_again_the_next_time(
    machine: Machine,
) -> None:
    bundle(machine.store, {"a": b"one"}, mtime_ns=OLD)
    entry = file("a", b"one", OLD + 1)
    calls = machine.calls(entry, conflict=Conflict.OVERWRITE)
    assert calls.index("utime") < calls.index("fsync")
    # Whoever wrote to it just before would not be noticed otherwise.
    assert "preadv" in machine.calls(entry, conflict=Conflict.OVERWRITE)


def test_attributes_that_cannot_be_set_are_left_as_they_are(machine: Machine) -> None:
    machine.put("a", b"one")

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called in ("fchmod", "utime"):
            raise OSError(errno.EPERM, "not yours")

    machine.system.before = before
    entry = file("a", b"one", OLD + 1, 0o600)
    assert machine.tell(entry, folder("d", OLD + 1), conflict=Conflict.OVERWRITE) == ["same", "made"]
    assert machine.tell(folder("d", OLD + 1), conflict=Conflict.OVERWRITE) == ["same"]


def test_a_file_that_is_replaced_before_its_attributes_are_set_is_sent(machine: Machine) -> None:
    bundle(machine.store, {"a": b"one"}, mtime_ns=OLD)
    other = machine.put("other", b"six")

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "open" and arguments[:2] == ("a", _READ):
            machine.system.heal()
            os.replace(other, machine.inbox / "a")

    machine.system.before = before
    assert machine.tell(file("a", b"one", OLD + 1), conflict=Conflict.OVERWRITE) == ["send"]
    assert (machine.inbox / "a").read_bytes() == b"six"


def test_a_folder_that_nobody_may_write_to_at_its_sender_can_be_filled_here(machine: Machine) -> None:
    assert machine.tell(folder("t", OLD, 0o500), folder("t/d", OLD, 0o000)) == ["made", "made"]
    assert (machine.inbox / "t").stat().st_mode & 0o777 == 0o700
    bundle(machine.store, {"t/d/f": b"one"})
    assert machine.tell(folder("t/d", OLD, 0o000), folder("t", OLD, 0o500)) == ["made", "same"]


# --- links ----------------------------------------------------------------------------------


def test_a_link_has_a_time_of_its_own(machine: Machine) -> None:
    assert machine.tell(link("t/l", "nowhere", OLD)) == ["made"]
    assert (machine.inbox / "t" / "l").lstat().st_mtime_ns == OLD


def test_a_link_that_is_remembered_is_not_synced_again_and_one_that_is_not_is(machine: Machine) -> None:
    machine.tell(link("t/l", "a"))
    (machine.inbox / "t" / "m").symlink_to("a")
    assert not SYNCS & set(machine.calls(link("t/l", "a")))
    assert "fsync" in machine.calls(link("t/m", "a"))
    assert not SYNCS & set(machine.calls(link("t/l", "a"), link("t/m", "a")))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_filesystem_without_links_says_so(machine: Machine, code: int) -> None:
    machine.system.fail("symlink", code)
    (refused,) = machine.store.take_entries(ME, Conflict.RENAME, [link("t/l", "a")], nothing_ends_it)
    assert isinstance(refused, TdxError)
    assert (refused.code, refused.message) == (
        "bad-name",
        "t/l: the receiver's filesystem has no symbolic links",
    )


def test_a_date_that_the_filesystem_cannot_keep_costs_no_link(machine: Machine) -> None:
    machine.system.fail("utime_of_link", errno.EINVAL)
    assert machine.tell(link("t/l", "a", 2**62)) == ["made"]


def test_a_name_that_is_taken_while_a_link_is_made_is_chosen_anew(machine: Machine) -> None:
    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "rename_noreplace":
            machine.system.heal()
            machine.put("t/l", b"taken")

    machine.system.before = before
    assert machine.tell(link("t/l", "a")) == ["made t/l (1)"]
    assert machine.left() == []


def test_a_link_that_vanishes_while_it_is_looked_at_is_made(machine: Machine) -> None:
    machine.put("t/f", b"")
    (machine.inbox / "t" / "l").symlink_to("a")

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "readlink":
            machine.system.heal()
            (machine.inbox / "t" / "l").unlink()

    machine.system.before = before
    assert machine.tell(link("t/l", "a"), conflict=Conflict.ERROR) == ["made"]


# --- syncs ------------------------------------------------------------------------------------


MANY: list[Entry] = [
    folder("t"),
    folder("t/a", OLD, 0o700),
    folder("t/b"),
    link("t/l", "a"),
    link("t/b/m", "../a"),
    link("taken/l", "x"),
    file("there/f", b"one", OLD + 1, 0o600),
    file("there/g", b"two", OLD + 1, 0o600),
    file("not there", b"three"),
]
SAID = ["made"] * 8 + ["send"]


def prepared(folder: Path, kind: type[FaultySystem] = FaultySystem) -> Machine:
    machine = Machine(folder, kind)
    machine.put("taken/l", b"taken")
    machine.put("there/f", b"one")
    machine.put("there/g", b"two")
    return machine


def test_many_changes_are_made_durable_by_one_sync_before_anything_is_said(tmp_path: Path) -> None:
    with prepared(tmp_path) as machine:
        begun = len(machine.system.log)
        assert machine.tell(*MANY, conflict=Conflict.OVERWRITE) == SAID
        log = machine.system.log[begun:]
        assert log.count("syncfs") == 1
        assert "fsync" not in log
        changes = [at for at, name in enumerate(log) if name in ("mkdir", "rename", "utime", "fchmod")]
        assert max(changes) < log.index("syncfs")
        assert not SYNCS & set(machine.calls(folder("t"), link("t/l", "a"), link("t/b/m", "../a")))


@pytest.mark.parametrize("kind", [FaultySystem, WithoutSyncfs])
def test_of_few_changes_each_is_synced(tmp_path: Path, kind: type[FaultySystem]) -> None:
    with prepared(tmp_path, kind) as machine:
        assert "fsync" in machine.calls(folder("t"))
        calls = machine.calls(*MANY, conflict=Conflict.OVERWRITE)
        assert ("fsync" in calls) == (kind is WithoutSyncfs)
        assert not SYNCS & set(machine.calls(link("t/l", "a"), folder("t")))


@pytest.mark.parametrize(
    ("conflict", "kind"),
    [
        (Conflict.RENAME, FaultySystem),
        (Conflict.OVERWRITE, FaultySystem),
        (Conflict.OVERWRITE, WithoutSyncfs),
        (Conflict.RENAME, WithoutRenameat2),
    ],
)
def test_killed_before_any_step_the_same_request_completes_it(
    tmp_path: Path, kind: type[FaultySystem], conflict: Conflict
) -> None:
    step, finished = 0, False
    while not finished:
        machine = prepared(tmp_path / str(step), kind)
        machine.system.stop_at(step)
        try:
            machine.tell(*MANY, conflict=conflict)
            finished = True
        except Stopped:
            pass
        assert (machine.inbox / "there" / "f").read_bytes() == b"one"
        machine.restart()
        assert machine.left() == [], step
        machine.tell(*MANY, conflict=conflict)
        complete(machine, conflict)
        machine.store.close()
        step += 1
    assert step > 40


def complete(machine: Machine, conflict: Conflict) -> None:
    """Everything is there, once."""
    last = "taken/l (1)" if conflict is Conflict.RENAME else "taken/l"
    again = machine.tell(*MANY, conflict=conflict)
    assert again == ["same"] * 5 + ["same" if last == "taken/l" else f"same {last}", "same", "same", "send"]
    assert os.readlink(machine.inbox / last) == "x"
    assert sorted(os.listdir(machine.inbox / "taken")) == sorted({"l", last.rpartition("/")[2]})
    assert (machine.inbox / "t").stat().st_mtime_ns == OLD
    assert (machine.inbox / "t" / "a").stat().st_mode & 0o777 == 0o700
    found = (machine.inbox / "there" / "g").stat()
    if conflict is Conflict.OVERWRITE:
        assert (found.st_mode & 0o777, found.st_mtime_ns) == (0o600, OLD + 1)


@pytest.mark.parametrize("kind", [FaultySystem, WithoutSyncfs])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_whatever_call_fails_the_same_request_completes_it_after_a_restart(
    tmp_path: Path, kind: type[FaultySystem], code: int
) -> None:
    healthy = prepared(tmp_path / "healthy", kind)
    made = healthy.calls(*MANY)
    healthy.store.close()
    for step, name in enumerate(made):
        if name == "close":
            continue  # a close that fails has closed
        machine = prepared(tmp_path / str(step), kind)
        machine.system.fail_step(step, made, code)
        said: list[str] = []
        with contextlib.suppress(TdxError):
            said = machine.tell(*MANY)
        machine.system.heal()
        # What was acknowledged is there.
        for entry, each in zip(MANY, said, strict=False):
            if each.startswith(("same", "made")):
                path = each.partition(" ")[2] or entry.name
                assert os.path.lexists(machine.inbox / path), (step, name)
        machine.restart()
        assert machine.left() == [], (step, name)
        machine.tell(*MANY)
        complete(machine, Conflict.RENAME)
        machine.store.close()


@pytest.mark.parametrize("kind", [FaultySystem, WithoutSyncfs])
def test_a_failed_sync_is_final_for_every_name_that_it_was_about(
    tmp_path: Path, kind: type[FaultySystem]
) -> None:
    with prepared(tmp_path, kind) as machine:
        machine.system.fail("syncfs" if kind is FaultySystem else "fsync", errno.EIO, times=1000)
        with pytest.raises(StorageError):
            machine.store.take_entries(ME, Conflict.OVERWRITE, MANY, nothing_ends_it)
        machine.system.heal()
        said = machine.tell(*MANY, conflict=Conflict.OVERWRITE)
        assert set(said[:6]) == {"storage"}
        assert said[8] == "send"
        machine.restart()
        machine.tell(*MANY, conflict=Conflict.OVERWRITE)
        complete(machine, Conflict.OVERWRITE)


def test_a_file_that_cannot_be_made_durable_is_refused_alone_where_each_is_synced(machine: Machine) -> None:
    machine.put("a", b"one")
    machine.system.fail("fsync", errno.EIO)
    assert machine.tell(file("a", b"one")) == ["storage"]
    machine.system.heal()
    assert machine.tell(file("a", b"one")) == ["storage"]
    machine.restart()
    assert machine.tell(file("a", b"one")) == ["same"]


def test_a_file_that_is_taken_away_before_it_is_synced_is_refused_alone(machine: Machine) -> None:
    path = machine.put("a", b"one")

    def before(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "open" and arguments[0] == "a" and "preadv" in machine.system.log:
            machine.system.heal()
            path.unlink()

    machine.system.before = before
    assert machine.tell(file("a", b"one")) == ["not-found"]


def test_a_request_that_cannot_even_begin_says_why(machine: Machine) -> None:
    machine.system.fail("open", errno.EMFILE)
    with pytest.raises(TdxError, match="too many files open"):
        machine.store.take_entries(ME, Conflict.RENAME, [folder("t")], nothing_ends_it)
