"""Paths below DIR: no link, no mount and no name leads out of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.conformance import ME, publish, push, send, spec, visible
from store.faulty import FaultySystem
from tdx.errors import BadName, ConfigError, Exists, NoSpace, StorageError
from tdx.model import Conflict, FileName
from tdx.store.local import LocalStore
from tdx.store.paths import Tree


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def store(inbox: Path, tmp_path: Path, system: FaultySystem) -> Iterator[LocalStore]:
    store = LocalStore(inbox, tmp_path / "state", reserve=0, system=system)
    yield store
    system.heal()
    store.close()


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/x", "a//b", "a/", "", ".", "..", ".tdx", "a/.TDX", ".tdx/lock", "a\0b"]
)
def test_a_name_that_would_leave_or_enter_the_stores_own_is_refused(store: LocalStore, name: str) -> None:
    with pytest.raises(BadName):
        store.create(spec(name))
    with pytest.raises(BadName):
        store.existing(FileName(name))
    assert store.partials() == []


def test_a_component_of_256_bytes_is_a_bad_name(store: LocalStore) -> None:
    with pytest.raises(BadName):
        store.create(spec("x" * 256))
    with pytest.raises(BadName):
        push(store, b"1", "x" * 256 + "/y")


def test_a_link_planted_as_a_folder_is_not_followed(store: LocalStore, inbox: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (inbox / "a").symlink_to(outside)
    with pytest.raises(BadName):
        store.create(spec("a/evil"))
    with pytest.raises(BadName):
        store.existing(FileName("a/evil"))
    assert list(outside.iterdir()) == []


def test_a_link_swapped_in_during_the_transfer_is_not_followed(
    store: LocalStore, inbox: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    upload = store.create(spec("a/b", 3))
    send(upload, b"new")
    (inbox / "a").symlink_to(outside)
    with pytest.raises(BadName):
        publish(upload, b"new")
    assert list(outside.iterdir()) == []
    (inbox / "a").unlink()
    publish(upload, b"new")
    assert visible(inbox) == {"a/b": b"new"}


@pytest.mark.parametrize("conflict", list(Conflict))
def test_a_link_at_the_final_name_is_never_written_through(
    store: LocalStore, inbox: Path, tmp_path: Path, conflict: Conflict
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    upload = store.create(spec("disk.img", 3, conflict=conflict))
    send(upload, b"new")
    (inbox / "disk.img").symlink_to(target)
    assert store.existing(FileName("disk.img")) is None
    assert store.existing_digests(FileName("disk.img"), 4096) is None
    if conflict is Conflict.ERROR:
        with pytest.raises(Exists):
            publish(upload, b"new")
    else:
        publish(upload, b"new")
    assert target.read_bytes() == b"precious"
    assert (inbox / "disk.img").is_symlink() == (conflict is not Conflict.OVERWRITE)


def test_a_fifo_at_the_final_name_blocks_nobody(store: LocalStore, inbox: Path) -> None:
    os.mkfifo(inbox / "disk.img")
    assert store.existing(FileName("disk.img")) is None
    assert push(store, b"1").path == "disk (1).img"


class TwoFilesystems(FaultySystem):
    """Every directory but the first is on another filesystem."""

    foreign: int | None = None

    def fstat(self, fd: int) -> os.stat_result:
        found = list(os.fstat(fd))
        if found[1] == self.foreign:
            found[2] += 1
        return os.stat_result(found)


def test_a_folder_on_another_filesystem_is_not_entered(inbox: Path, tmp_path: Path) -> None:
    system = TwoFilesystems()
    store = LocalStore(inbox, tmp_path / "state", system=system)
    (inbox / "mnt").mkdir()
    system.foreign = (inbox / "mnt").stat().st_ino
    with pytest.raises(BadName, match="another filesystem"):
        store.create(spec("mnt/x"))
    store.close()
    assert system.fds == set()


def test_a_rename_across_mounts_is_a_bad_name_and_loses_nothing(
    store: LocalStore, system: FaultySystem
) -> None:
    upload = store.create(spec("disk.img", 3))
    send(upload, b"new")
    system.fail("rename_noreplace", errno.EXDEV)
    with pytest.raises(BadName):
        publish(upload, b"new")
    assert publish(upload, b"new").path == "disk.img"


@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.EILSEQ, BadName), (errno.EIO, StorageError), (errno.ENOTDIR, BadName)],
)
def test_a_failed_walk_says_what_is_wrong(
    store: LocalStore, system: FaultySystem, code: int, error: type[Exception]
) -> None:
    for call in ("open", "mkdir"):
        upload = store.create(spec("a/b", 1))
        send(upload, b"1")
        system.fail(call, code)
        with pytest.raises(error):
            publish(upload, b"1")
        system.heal()
        upload.discard()
    system.fail("stat", code)
    with pytest.raises(error):
        store.create(spec("f"))


def test_a_full_disk_found_while_making_a_folder_is_no_space(store: LocalStore, system: FaultySystem) -> None:
    upload = store.create(spec("a/b", 1))
    send(upload, b"1")
    system.fail("mkdir", errno.ENOSPC)
    with pytest.raises(NoSpace):
        publish(upload, b"1")
    assert publish(upload, b"1").path == "a/b"


def test_a_folder_that_could_not_be_made_durable_holds_nothing_until_it_is_made_anew(
    store: LocalStore, system: FaultySystem, inbox: Path
) -> None:
    upload = store.create(spec("a/b", 1))
    send(upload, b"1")
    upload.mark()
    system.fail("fsync", errno.EIO, skip=1)  # the data's passes
    with pytest.raises(StorageError):
        publish(upload, b"1")
    system.heal()
    with pytest.raises(StorageError, match="restart"):
        publish(upload, b"1")
    (inbox / "a").rmdir()
    publish(upload, b"1")


def test_a_folder_made_anew_with_the_inode_of_the_old_one_is_made_durable_again(
    inbox: Path, tmp_path: Path
) -> None:
    class Reusing(FaultySystem):
        """Every folder made in DIR gets the same inode, as on ext4 where the last one is free again."""

        def fstat(self, fd: int) -> os.stat_result:
            found = os.fstat(fd)
            if os.readlink(f"/proc/self/fd/{fd}") != str(inbox / "d"):
                return found
            return os.stat_result([found[0], 4711, *found[2:]])

    system = Reusing()
    store = LocalStore(inbox, tmp_path / "state", reserve=0, system=system)
    push(store, b"1", "d/a")
    (inbox / "d" / "a").unlink()
    (inbox / "d").rmdir()
    synced: list[str] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fsync":
            synced.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    system.before = note
    push(store, b"2", "d/b")
    assert str(inbox) in synced
    store.close()


def test_a_folder_made_at_the_same_moment_by_another_is_entered(
    store: LocalStore, system: FaultySystem, inbox: Path
) -> None:
    upload = store.create(spec("a/b", 1))
    send(upload, b"1")

    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "mkdir":
            (inbox / "a").mkdir()

    system.before = race
    assert publish(upload, b"1").path == "a/b"


def test_every_folder_on_the_way_is_durable_once_before_anything_in_it_is(
    store: LocalStore, system: FaultySystem, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "old").mkdir()
    synced: list[int] = []

    def note(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "fsync":
            synced.append(os.fstat(arguments[0]).st_ino)

    system.before = note
    push(store, b"1", "old/new/f")
    inodes = {name: (inbox / name).stat().st_ino for name in ("", "old", "old/new")}
    assert set(inodes.values()) <= set(synced)
    synced.clear()
    push(store, b"2", "old/new/g")
    assert inodes[""] not in synced
    assert inodes["old"] not in synced
    assert inodes["old/new"] in synced
    monkeypatch.setattr("tdx.store.paths._REMEMBERED", 0)
    push(store, b"3", "other/h")
    push(store, b"4", "other/i")
    assert set(visible(inbox)) == {"old/new/f", "old/new/g", "other/h", "other/i"}


# --- DIR itself ---------------------------------------------------------------------


def test_a_missing_folder_is_made_but_not_the_ones_above(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "inbox", tmp_path / "state")
    assert (tmp_path / "inbox" / ".tdx").stat().st_mode & 0o777 == 0o700
    store.close()
    with pytest.raises(ConfigError):
        LocalStore(tmp_path / "not" / "mounted", tmp_path / "state")
    assert not (tmp_path / "not").exists()


def refused(inbox: Path, tmp_path: Path, system: FaultySystem, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LocalStore(inbox, tmp_path / "state", system=system)
    assert system.fds == set()


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_a_folder_that_others_may_write_is_refused(
    inbox: Path, tmp_path: Path, system: FaultySystem, mode: int
) -> None:
    inbox.chmod(mode)
    refused(inbox, tmp_path, system, "chmod go-w")


def test_a_folder_of_somebody_else_is_refused(inbox: Path, tmp_path: Path) -> None:
    class Stranger(FaultySystem):
        def geteuid(self) -> int:
            return os.geteuid() + 1

    refused(inbox, tmp_path, Stranger(), "belongs to uid")


def test_a_file_for_a_folder_is_refused(tmp_path: Path, system: FaultySystem) -> None:
    (tmp_path / "inbox").write_bytes(b"")
    refused(tmp_path / "inbox", tmp_path, system, "cannot be used")


def test_a_link_to_a_folder_is_taken_as_the_folder(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inbox)
    store = LocalStore(tmp_path / "link", tmp_path / "state")
    push(store, b"1")
    store.close()
    assert visible(inbox) == {"disk.img": b"1"}


def test_a_link_for_the_stores_own_folder_is_refused(
    inbox: Path, tmp_path: Path, system: FaultySystem
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (inbox / ".tdx").symlink_to(tmp_path / "elsewhere")
    refused(inbox, tmp_path, system, "not a directory")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_for_the_stores_own_folder_is_refused(
    inbox: Path, tmp_path: Path, system: FaultySystem
) -> None:
    (inbox / ".tdx").write_bytes(b"")
    refused(inbox, tmp_path, system, "not a directory")


def test_an_own_folder_that_others_may_enter_is_refused(
    inbox: Path, tmp_path: Path, system: FaultySystem
) -> None:
    (inbox / ".tdx").mkdir(mode=0o755)
    refused(inbox, tmp_path, system, "chmod 700")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_an_own_folder_of_somebody_else_is_refused(inbox: Path, tmp_path: Path, system: FaultySystem) -> None:
    (inbox / ".tdx").mkdir(mode=0o700)
    os.chown(inbox / ".tdx", 12345, 12345)
    refused(inbox, tmp_path, system, "belongs to uid 12345")


def test_an_own_folder_on_another_filesystem_is_refused(inbox: Path, tmp_path: Path) -> None:
    (inbox / ".tdx").mkdir(mode=0o700)
    system = TwoFilesystems()
    system.foreign = (inbox / ".tdx").stat().st_ino
    refused(inbox, tmp_path, system, "another filesystem")


@pytest.mark.parametrize("call", ["mkdir", "open", "flock", "ftruncate", "write", "fsync", "link", "read"])
def test_a_folder_that_cannot_be_prepared_is_refused(inbox: Path, tmp_path: Path, call: str) -> None:
    system = FaultySystem()
    system.fail(call, errno.EROFS)
    refused(inbox, tmp_path, system, "inbox")


def test_a_folder_has_one_receiver(store: LocalStore, inbox: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        LocalStore(inbox, tmp_path / "state")
    beside = LocalStore(inbox, tmp_path / "state", exclusive=False)
    upload = store.create(spec())
    assert [each.upload for each in beside.partials()] == [upload.id]
    assert beside.expire(1e12) == []
    upload.close()
    assert [each.upload for each in beside.expire(1e12)] == [upload.id]
    beside.close()


def test_the_next_receiver_gets_the_folder_and_its_receipts(
    store: LocalStore, inbox: Path, tmp_path: Path
) -> None:
    receipt = push(store, b"1", key="k")
    store.close()
    moved = inbox.rename(tmp_path / "moved")
    again = LocalStore(moved, tmp_path / "state")
    assert again.receipt_by_key(ME, "k") == receipt
    again.close()
    other = LocalStore(inbox, tmp_path / "state")
    assert other.receipt_by_key(ME, "k") is None
    other.close()


@pytest.mark.parametrize("found", [b"", b"x" * 32, b"0" * 31, b"0" * 33])
def test_a_store_id_that_is_none_is_named_and_not_used(inbox: Path, tmp_path: Path, found: bytes) -> None:
    LocalStore(inbox, tmp_path / "state").close()
    (inbox / ".tdx" / "id").write_bytes(found)
    with pytest.raises(ConfigError, match=r"\.tdx/id: is not 32 hexadecimal digits"):
        LocalStore(inbox, tmp_path / "state")


def test_a_store_id_made_at_the_same_moment_by_another_is_taken(inbox: Path, tmp_path: Path) -> None:
    system = FaultySystem()

    def race(called: str, arguments: tuple[Any, ...]) -> None:
        if called == "link":
            (inbox / ".tdx" / "id").write_bytes(b"0" * 32)

    system.before = race
    store = LocalStore(inbox, tmp_path / "state", system=system)
    assert (inbox / ".tdx" / "id").read_bytes() == b"0" * 32
    assert sorted(os.listdir(inbox / ".tdx")) == ["bundles", "id", "lock", "uploads"]
    store.close()


def test_a_state_directory_that_cannot_be_used_is_refused(
    inbox: Path, tmp_path: Path, system: FaultySystem
) -> None:
    (tmp_path / "state").write_bytes(b"")
    refused(inbox, tmp_path, system, "receipts")


def test_a_tree_keeps_no_descriptor_open(inbox: Path, system: FaultySystem) -> None:
    tree = Tree(system, system.open(str(inbox), os.O_RDONLY))
    with tree.parent("a/b/c", make=True) as (fd, leaf):
        assert leaf == "c"
        assert len(system.fds) == 2
        assert fd in system.fds
    with pytest.raises(FileNotFoundError), tree.parent("a/x/y"):
        pytest.fail("never entered")
    tree.close()
    assert system.fds == set()
