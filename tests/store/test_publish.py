"""Publishing and its recovery: killed before any step, the final name is absent or whole, and never twice."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.conformance import EXTENT, content, publish, push, root_of, send, spec
from store.faulty import FaultySystem, Stopped, WithoutRenameat2
from store.killable import KillableStore
from tdx.errors import Exists, NoSpace, NotFound, StorageError, UploadBusy
from tdx.model import Conflict, FileName, Outcome, Receipt, Span
from tdx.store.folders import Folder
from tdx.store.port import Existing
from tdx.store.publish import Destination
from tdx.store.upload import LocalUpload

pytestmark = pytest.mark.usefixtures("counted_receipts")

DATA = content(2 * EXTENT + 9)
OLD = b"what was there before"


class Machine(KillableStore):
    FOLDER = "uploads"

    def upload(
        self, conflict: Conflict = Conflict.RENAME, name: str = "a/disk.img", **more: Any
    ) -> LocalUpload:
        upload = self.store.create(spec(name, len(DATA), conflict=conflict, key="k", **more))
        send(upload, DATA)
        return upload


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


WAYS = [
    pytest.param(conflict, kind, taken, id=f"{conflict}-{kind.__name__}-{'taken' if taken else 'free'}")
    for conflict in Conflict
    for kind in (FaultySystem, WithoutRenameat2)
    for taken in (False, True)
    if not (taken and conflict is Conflict.ERROR)
    if kind is FaultySystem or conflict is Conflict.RENAME
]


@pytest.mark.parametrize(("conflict", "kind", "taken"), WAYS)
def test_killed_before_any_step_of_publishing_the_file_is_absent_or_whole_and_never_twice(
    tmp_path: Path,
    conflict: Conflict,
    kind: type[FaultySystem],
    taken: bool,
) -> None:
    before = {"a/disk.img": OLD} if taken else {}
    skipped = taken and conflict is Conflict.SKIP
    final = "a/disk (1).img" if taken and conflict is Conflict.RENAME else "a/disk.img"
    after = before if skipped else before | {final: DATA}
    step = 0
    finished = False
    while not finished:
        (tmp_path / str(step)).mkdir()
        machine = Machine(tmp_path / str(step), kind)
        if taken:
            (machine.inbox / "a").mkdir()
            (machine.inbox / "a" / "disk.img").write_bytes(OLD)
        upload = machine.upload(conflict)
        machine.system.stop_at(step)
        try:
            publish(upload, DATA)
            finished = True
        except Stopped:
            pass
        assert machine.visible() in (before, after), step
        recovered = machine.restart()
        receipt = machine.store.receipt(upload.id)
        if receipt is None:
            # Nothing has happened, or the publication was taken back: it can be done again.
            assert machine.visible() == before, step
            again = machine.store.open(upload.id)
            again.recheck(range(3))
            receipt = publish(again, DATA)
        else:
            assert recovered in ([], [receipt])
            with pytest.raises(NotFound):
                machine.store.open(upload.id)
        assert machine.visible() == after, step
        assert (receipt.path, receipt.outcome) == (
            ("a/disk.img", Outcome.SKIPPED) if skipped else (final, Outcome.PUBLISHED)
        )
        assert machine.store.receipt(upload.id) == receipt
        assert machine.store.receipt_by_key(upload.spec.owner, "k") == receipt
        assert machine.left() == []
        machine.kill()
        step += 1
    assert step > 15


def test_killed_during_recovery_the_next_recovery_finishes(tmp_path: Path) -> None:
    step = 0
    finished = False
    while not finished:
        (tmp_path / str(step)).mkdir()
        machine = Machine(tmp_path / str(step))
        upload = machine.upload()
        machine.system.spoil("put receipts", Stopped())
        with pytest.raises(Stopped):
            publish(upload, DATA)
        machine.kill()
        machine.start()
        machine.system.stop_at(step)
        try:
            machine.store.recover()
            finished = True
        except Stopped:
            machine.restart()
        receipt = machine.store.receipt(upload.id)
        assert receipt is not None
        assert machine.visible() == {"a/disk.img": DATA}
        assert machine.left() == []
        machine.kill()
        step += 1
    assert step > 8


def test_an_upload_killed_while_it_was_made_is_whole_or_gone_after_the_next_start(tmp_path: Path) -> None:
    step = 0
    finished = False
    while not finished:
        (tmp_path / str(step)).mkdir()
        machine = Machine(tmp_path / str(step))
        machine.system.stop_at(step)
        try:
            machine.store.create(spec("disk.img", len(DATA), key="k"))
            finished = True
        except Stopped:
            pass
        machine.restart()
        assert machine.left() == [each.upload for each in machine.store.partials()], step
        machine.kill()
        step += 1
    assert step > 8


def test_everything_is_durable_before_the_next_step_builds_on_it(machine: Machine) -> None:
    upload = machine.upload(mode=0o640, mtime_ns=10**18)
    steps: list[str] = []
    folder = machine.inbox / ".tdx" / "uploads" / upload.id

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fsync":
            called += " " + os.readlink(f"/proc/self/fd/{arguments[0]}")
        if called == "open":
            called += " " + arguments[0]
        steps.append(called)

    machine.system.before = note
    receipt = publish(upload, DATA)
    assert receipt.outcome is Outcome.PUBLISHED
    wanted = [
        "fchmod",
        "utime",
        f"fsync {folder}/data",
        f"fsync {machine.inbox}/a",
        f"fsync {machine.inbox}",
        "open intent",
        f"fsync {folder}/intent",
        f"fsync {folder}",
        f"fsync {machine.inbox}/.tdx/uploads",
        "rename_noreplace",
        f"fsync {machine.inbox}/a",
        "put receipts",
        "rmdir",
    ]
    at = 0
    for step in wanted:
        assert step in steps[at:], (step, steps)
        at = steps.index(step, at) + 1
    assert steps.count(f"fsync {folder}") == 1


def test_mtime_and_permission_bits_travel_and_setuid_does_not(machine: Machine) -> None:
    mtime = 1_234_567_890_123_456_789
    publish(machine.upload(mode=0o6754, mtime_ns=mtime), DATA)
    found = (machine.inbox / "a" / "disk.img").stat()
    assert found.st_mode & 0o7777 == 0o754
    assert found.st_mtime_ns == mtime


def test_without_bits_of_its_own_a_file_gets_what_the_umask_leaves(machine: Machine) -> None:
    umask = os.umask(0)
    os.umask(umask)
    publish(machine.upload(), DATA)
    assert (machine.inbox / "a" / "disk.img").stat().st_mode & 0o7777 == 0o666 & ~umask


@pytest.mark.parametrize("mtime", [2**70, -(2**70)])
def test_an_impossible_date_costs_only_the_date(machine: Machine, mtime: int) -> None:
    publish(machine.upload(mtime_ns=mtime), DATA)
    assert machine.visible() == {"a/disk.img": DATA}


@pytest.mark.parametrize("call", ["fchmod", "utime"])
def test_a_filesystem_without_metadata_still_gets_the_file(machine: Machine, call: str) -> None:
    upload = machine.upload(mtime_ns=1)
    machine.system.fail(call, errno.EPERM)
    publish(upload, DATA)
    assert machine.visible() == {"a/disk.img": DATA}


def test_bytes_that_slipped_beyond_the_end_are_cut_off(machine: Machine) -> None:
    upload = machine.upload()
    os.pwrite(upload.descriptor, b"more", len(DATA))
    publish(upload, DATA)
    assert machine.visible() == {"a/disk.img": DATA}


def test_a_sparse_file_stays_sparse(machine: Machine) -> None:
    size = 64 << 20
    upload = machine.store.create(spec("hole", size, holes=(Span(0, size),)))
    upload.publish(root="r", verified=True)
    found = (machine.inbox / "hole").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 < 1 << 20


# --- failures that are answered, not crashes ------------------------------------------


FAILING = ["fstat", "ftruncate", "fsync", "open", "write", "rename_noreplace", "stat", "mkdir"]


@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_publication_changes_nothing_and_can_be_tried_again(
    machine: Machine, call: str, code: int
) -> None:
    upload = machine.store.create(spec("a/disk.img", 3 * EXTENT, holes=(Span(2 * EXTENT, 3 * EXTENT),)))
    data = content(2 * EXTENT) + bytes(EXTENT)
    send(upload, data, range(2))
    machine.system.fail(call, code)
    with pytest.raises((NoSpace, StorageError)):
        publish(upload, data)
    machine.system.heal()
    assert machine.visible() == {}
    upload.close()
    again = machine.store.open(upload.id)
    send(again, data, range(2))
    publish(again, data)
    assert machine.visible() == {"a/disk.img": data}


def test_a_failed_sync_of_the_data_is_final_for_what_no_mark_covers(machine: Machine) -> None:
    upload = machine.store.create(spec("f", len(DATA)))
    send(upload, DATA, range(1))
    upload.mark()
    send(upload, DATA, range(1, 3))
    machine.system.fail("fsync", errno.EIO)
    with pytest.raises(StorageError):
        publish(upload, DATA)
    with pytest.raises(StorageError):
        publish(upload, DATA)
    upload.close()
    again = machine.store.open(upload.id)
    assert set(again.digests) == {0}
    send(again, DATA, range(1, 3))
    publish(again, DATA)
    assert machine.visible() == {"f": DATA}


def test_a_name_taken_at_the_last_moment_is_not_clobbered(machine: Machine) -> None:
    upload = machine.upload(name="disk.img")
    taken = iter(["disk.img", "disk (1).img"])

    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "rename_noreplace" and (name := next(taken, None)):
            (machine.inbox / name).write_bytes(OLD)

    machine.system.before = race
    assert publish(upload, DATA).path == "disk (2).img"
    assert machine.visible() == {"disk.img": OLD, "disk (1).img": OLD, "disk (2).img": DATA}


def test_a_folder_made_at_the_last_moment_is_not_overwritten(machine: Machine) -> None:
    upload = machine.upload(Conflict.OVERWRITE, name="disk.img")

    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "rename" and arguments[1] == "disk.img" and not (machine.inbox / "disk.img").exists():
            (machine.inbox / "disk.img").mkdir()

    machine.system.before = race
    with pytest.raises(Exists):
        publish(upload, DATA)
    assert (machine.inbox / "disk.img").is_dir()


def test_a_name_taken_at_the_last_moment_is_skipped_with_skip_and_refused_with_error(
    machine: Machine,
) -> None:
    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "rename_noreplace":
            (machine.inbox / arguments[1]).write_bytes(OLD)

    machine.system.before = race
    upload = machine.upload(Conflict.SKIP, name="1")
    assert publish(upload, DATA).outcome is Outcome.SKIPPED
    upload = machine.upload(Conflict.ERROR, name="2")
    with pytest.raises(Exists):
        publish(upload, DATA)
    upload.discard()
    assert machine.visible() == {"1": OLD, "2": OLD}


@pytest.mark.parametrize(
    ("code", "message"), [(errno.EPERM, "--conflict overwrite"), (errno.EIO, "cannot be")]
)
def test_a_filesystem_that_cannot_but_overwrite_is_refused(tmp_path: Path, code: int, message: str) -> None:
    machine = Machine(tmp_path, WithoutRenameat2)
    upload = machine.upload()
    machine.system.fail("link", code)
    with pytest.raises(StorageError, match=message):
        publish(upload, DATA)
    machine.system.heal()
    upload.refresh(spec(conflict=Conflict.OVERWRITE))
    publish(upload, DATA)
    assert machine.visible() == {"a/disk.img": DATA}
    machine.kill()


def test_a_link_whose_source_cannot_be_unlinked_is_still_one_file(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WithoutRenameat2)
    upload = machine.upload()
    machine.system.fail("unlink", errno.EIO, times=99)
    assert publish(upload, DATA).path == "a/disk.img"
    with pytest.raises(NotFound):
        machine.store.open(upload.id)
    machine.system.heal()
    assert machine.restart() == []
    assert machine.visible() == {"a/disk.img": DATA}
    assert machine.left() == []
    machine.kill()


def test_what_a_publication_left_behind_does_not_expire_as_a_partial(tmp_path: Path) -> None:
    machine = Machine(tmp_path, WithoutRenameat2)
    upload = machine.upload()
    machine.system.fail("unlink", errno.EIO, times=99)
    publish(upload, DATA)
    machine.system.heal()
    assert [each.upload for each in machine.store.partials()] == [upload.id]
    assert machine.store.expire(1e9) == []
    assert machine.store.expire(time.time() + 3600, older_than=60) == []
    assert machine.left() == []
    assert machine.visible() == {"a/disk.img": DATA}
    machine.kill()


def test_a_file_in_a_folder_that_could_not_be_synced_is_acknowledged_by_a_new_start_only(
    machine: Machine,
) -> None:
    upload = machine.upload(name="f")

    def dying(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fsync" and os.readlink(f"/proc/self/fd/{arguments[0]}") == str(machine.inbox):
            raise OSError(errno.EIO, "disk on fire")

    machine.system.before = dying
    for _ in range(2):
        with pytest.raises(StorageError):
            publish(upload, DATA)
    with pytest.raises(StorageError):
        upload.write_at(memoryview(b"x"), 0)
    assert machine.store.receipt(upload.id) is None
    assert upload.spoiled
    upload.close()
    machine.system.heal()
    # A sync that succeeds now may have written nothing of what that one could not.
    assert machine.store.recover() == []
    for call in (
        lambda: machine.store.open(upload.id),
        lambda: machine.store.make_durable("f"),
        lambda: publish(machine.upload(Conflict.OVERWRITE, name="f"), DATA),
        lambda: machine.store.create(spec("f", len(DATA))).settle(
            Outcome.IDENTICAL, "f", root=root_of(DATA), verified=True
        ),
    ):
        with pytest.raises(StorageError, match="restart the receiver"):
            call()
    assert machine.store.receipt(upload.id) is None
    assert push(machine.store, b"other", "g").path == "g"
    assert [each.path for each in machine.restart()] == ["f"]
    assert machine.store.receipt(upload.id) is not None
    assert machine.visible() == {"f": DATA, "g": b"other"}


def test_a_directory_whose_first_sync_fails_at_the_start_is_not_believed_by_the_second(
    machine: Machine,
) -> None:
    upload = machine.upload(name="f")
    machine.system.spoil("put receipts", Stopped())
    with pytest.raises(Stopped):
        publish(upload, DATA)
    machine.kill()
    machine.start()
    machine.system.fail("fsync", errno.EIO)
    assert machine.store.recover() == []
    machine.system.heal()
    assert machine.store.recover() == []
    assert [each.path for each in machine.restart()] == ["f"]


def test_a_receipt_that_could_not_be_stored_is_stored_by_the_repeated_commit(machine: Machine) -> None:
    upload = machine.upload(name="f")
    machine.system.spoil("put receipts", StorageError("the receipts' disk is full"))
    with pytest.raises(StorageError):
        publish(upload, DATA)
    with pytest.raises(StorageError):
        upload.write_at(memoryview(b"x"), 0)
    receipt = publish(upload, DATA)
    assert machine.store.receipt(upload.id) == receipt
    assert machine.visible() == {"f": DATA}


def test_a_receipt_that_could_not_be_stored_is_stored_by_the_next_start(machine: Machine) -> None:
    upload = machine.upload(name="f")
    machine.system.spoil("put receipts", StorageError("the receipts' disk is full"), times=2)
    with pytest.raises(StorageError):
        publish(upload, DATA)
    upload.close()
    with pytest.raises(StorageError):
        machine.store.open(upload.id)
    with pytest.raises(NotFound):
        machine.store.open(upload.id)
    assert machine.store.receipt(upload.id) is not None
    assert machine.left() == []


def test_an_intent_whose_name_carries_another_file_is_taken_back(machine: Machine) -> None:
    upload = machine.upload(name="f")
    machine.system.spoil("rename_noreplace", Stopped())
    with pytest.raises(Stopped):
        publish(upload, DATA)
    (machine.inbox / "f").write_bytes(DATA)
    assert machine.restart() == []
    again = machine.store.open(upload.id)
    assert set(again.digests) == {0, 1, 2}
    assert again.recheck(again.suspects) == frozenset()
    assert publish(again, DATA).path == "f (1)"


def test_one_upload_that_defies_recovery_keeps_no_receiver_from_starting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = [machine.upload(name=name) for name in "ab"]
    for each in uploads:
        machine.system.spoil("put receipts", Stopped())
        with pytest.raises(Stopped):
            publish(each, DATA)
    machine.kill()
    machine.start()
    bad = min(each.id for each in uploads)
    recover = Destination.recover

    def defiant(self: Destination, folder: Folder) -> Receipt | None:
        if folder.upload == bad:
            raise RuntimeError("never thought of")
        return recover(self, folder)

    monkeypatch.setattr(Destination, "recover", defiant)
    assert len(machine.store.recover()) == 1
    assert bad in caplog.text


BROKEN_INTENTS = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"inode": 1, "lifetime": 1, "receipt": {}}',
    b'{"inode": Infinity, "lifetime": 1, "receipt": {"outcome": "published", "path": "f"}}',
    (
        b'{"inode": 1, "lifetime": 1, "receipt": {"upload": "u", "owner": "o", "key": null, "name": "f", '
        b'"path": 5, "size": 1, "root": "r", "verified": true, "outcome": "published", "published_at": 1}}'
    ),
]


@pytest.mark.parametrize("intent", BROKEN_INTENTS)
def test_a_broken_intent_is_taken_back(machine: Machine, intent: bytes) -> None:
    upload = machine.upload(name="f")
    (machine.inbox / ".tdx" / "uploads" / upload.id / "intent").write_bytes(intent)
    assert machine.restart() == []
    again = machine.store.open(upload.id)
    assert again.recheck(again.suspects) == frozenset()
    assert publish(again, DATA).path == "f"


@pytest.mark.parametrize("blocked", [False, True])
def test_a_file_moved_away_after_the_crash_gets_no_receipt(machine: Machine, blocked: bool) -> None:
    upload = machine.upload()
    machine.system.spoil("put receipts", Stopped())
    with pytest.raises(Stopped):
        publish(upload, DATA)
    (machine.inbox / "a").rename(machine.inbox / "b")
    if blocked:
        (machine.inbox / "a").write_bytes(b"")
    assert machine.restart() == []
    assert machine.store.receipt(upload.id) is None
    assert machine.left() == []


def test_an_upload_in_use_is_left_alone_by_recovery(machine: Machine) -> None:
    upload = machine.upload(name="f")
    assert machine.store.recover() == []
    publish(upload, DATA)
    assert machine.visible() == {"f": DATA}


def test_nothing_is_written_while_the_commit_runs(machine: Machine) -> None:
    upload = machine.upload(name="f")
    refused: list[str] = []

    def intrude(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "rename_noreplace":
            machine.system.heal()
            for attempt in (
                lambda: upload.write_at(memoryview(b"late"), 0),
                lambda: upload.invalidate([0]),
                upload.mark,
                lambda: publish(upload, DATA),
                upload.discard,
            ):
                try:
                    attempt()
                except UploadBusy as error:
                    refused.append(error.code)

    machine.system.before = intrude
    publish(upload, DATA)
    assert refused == ["upload-busy"] * 5
    assert machine.visible() == {"f": DATA}


@pytest.mark.parametrize("call", ["fsync", "fstat", "open"])
def test_an_identical_file_that_cannot_be_made_durable_is_not_acknowledged(
    machine: Machine, call: str
) -> None:
    push(machine.store, b"same", "f")
    upload = machine.store.create(spec("f", 4))
    machine.system.fail(call, errno.EIO)
    with pytest.raises(StorageError):
        upload.settle(Outcome.IDENTICAL, "f", root=root_of(b"same"), verified=True)
    machine.system.heal()
    if call == "fsync":
        with pytest.raises(StorageError, match="restart the receiver"):
            upload.settle(Outcome.IDENTICAL, "f", root=root_of(b"same"), verified=True)
        upload.close()
        machine.restart()
        upload = machine.store.open(upload.id)
    upload.settle(Outcome.IDENTICAL, "f", root=root_of(b"same"), verified=True)


@pytest.mark.parametrize(("call", "code"), [("open", errno.EACCES), ("preadv", errno.EIO)])
def test_a_published_file_that_cannot_be_read_is_there_and_identical_to_nothing(
    machine: Machine, call: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    push(machine.store, b"same", "f")
    machine.system.fail(call, code, times=99)
    assert machine.store.existing(FileName("f")) == Existing("f", 4)
    assert machine.store.existing_digests(FileName("f"), EXTENT) is None
    assert "'f' cannot be compared" in caplog.text
    machine.system.fail("stat", errno.EIO)
    with pytest.raises(StorageError):
        machine.store.existing(FileName("f"))
