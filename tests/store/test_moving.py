"""Moving on what has arrived: on one filesystem and to another, whatever fails or is killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.faulty import FaultySystem, Stopped, WithoutRenameat2
from support.inboxes import MTIME_NS, ArrivedIn, files_in, leftovers_in
from tdx.errors import (
    BadName,
    Exists,
    Interrupted,
    NoSpace,
    SourceChanged,
    StorageError,
    TdxError,
    UsageError,
    VerificationFailed,
)
from tdx.integrity import MIB
from tdx.model import Conflict
from tdx.store.copying import PREFIX
from tdx.store.inbox import Inbox
from tdx.store.moving import Mover

BIG = os.urandom(MIB + 12345)


class Apart(FaultySystem):
    """Folders called ``dest`` are on another mount, though the numbers of the devices do not tell."""

    def _check(self, source: int, target: int) -> None:
        if ("dest" in os.readlink(f"/proc/self/fd/{source}").split("/")) != (
            "dest" in os.readlink(f"/proc/self/fd/{target}").split("/")
        ):
            raise OSError(errno.EXDEV, "another mount")

    def rename(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._check(src_dir_fd, dst_dir_fd)
        super().rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def rename_noreplace(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._check(src_dir_fd, dst_dir_fd)
        super().rename_noreplace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


class Devices(Apart):
    """The numbers tell, too."""

    def fstat(self, fd: int) -> os.stat_result:
        found = list(os.fstat(fd))
        if "dest" in os.readlink(f"/proc/self/fd/{fd}").split("/"):
            found[2] += 1
        return _stat(os.fstat(fd), found)

    def stat(self, path: str, *, dir_fd: int) -> os.stat_result:
        there = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        found = list(there)
        if "dest" in os.readlink(f"/proc/self/fd/{dir_fd}").split("/"):
            found[2] += 1
        return _stat(there, found)


def _stat(there: os.stat_result, found: list[Any]) -> os.stat_result:
    exact = {name: getattr(there, name) for name in dir(there) if name.startswith("st_")}
    return os.stat_result(found, exact)


WAYS = {"renamed": FaultySystem, "linked": WithoutRenameat2, "across mounts": Apart, "across": Devices}
COPIES = {name: WAYS[name] for name in ("across mounts", "across")}


class Scene(ArrivedIn):
    def __init__(self, area: Path, kind: type[FaultySystem]) -> None:
        super().__init__(area / "inbox", area / "state")
        self.kind = kind
        self.dest = area / "dest"
        self.dest.mkdir()

    @contextlib.contextmanager
    def mover(
        self, conflict: Conflict = Conflict.RENAME, system: FaultySystem | None = None, **options: Any
    ) -> Iterator[tuple[Inbox, Mover]]:
        with (
            self.inbox(system or self.kind()) as inbox,
            Mover(inbox, self.dest, conflict, **options) as mover,
        ):
            yield inbox, mover

    def get(self, conflict: Conflict = Conflict.RENAME) -> list[str]:
        """Move everything; where it lies."""
        with self.mover(conflict) as (inbox, mover):
            moved = [mover.move(each) for each in inbox.files()]
            assert [each.error for each in mover.settle()] == [None] * sum(
                each is not None and not each.skipped for each in moved
            )
        return [each.path for each in moved if each is not None]


@pytest.fixture(params=sorted(WAYS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, WAYS[request.param])


@pytest.fixture(params=sorted(COPIES))
def apart(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(tmp_path, COPIES[request.param])


class TestMoving:
    def test_files_keep_their_paths_content_mode_and_time(self, scene: Scene) -> None:
        scene.arrive("a/b/big", BIG, mode=0o751)
        scene.arrive("empty", b"")
        assert scene.get() == ["a/b/big", "empty"]
        assert files_in(scene.dest) == {"a/b/big": BIG, "empty": b""}
        found = (scene.dest / "a/b/big").stat()
        assert (found.st_mode & 0o7777, found.st_mtime_ns) == (0o751, MTIME_NS)
        assert files_in(scene.folder) == {}
        assert scene.paths() == []

    def test_what_was_moved_counts_no_more_towards_quotas(self, scene: Scene) -> None:
        scene.arrive("a", b"content")
        scene.arrive("b", b"content")
        (scene.dest / "b").mkdir()
        with scene.mover(Conflict.SKIP) as (inbox, mover):
            for each in inbox.files():
                if each.path == "a":
                    mover.move(each)
            mover.settle()
        receipts = scene.receipts()
        assert [each.path for each in receipts.files()] == ["b"]
        receipts.close()

    def test_folders_that_became_empty_by_it_go_and_others_stay(self, scene: Scene) -> None:
        scene.arrive("a/b/c/file", b"1")
        scene.arrive("kept/file", b"2")
        (scene.folder / "kept" / "by hand").write_bytes(b"3")
        (scene.folder / "a" / "other").mkdir()
        (scene.folder / "empty before").mkdir()
        scene.get()
        left = {str(each.relative_to(scene.folder)) for each in scene.folder.rglob("*")}
        assert {each for each in left if not each.startswith(".tdx")} == {
            "a",
            "a/other",
            "kept",
            "kept/by hand",
            "empty before",
        }

    def test_another_file_of_the_name_is_kept_and_the_new_one_numbered(self, scene: Scene) -> None:
        (scene.dest / "f.txt").write_bytes(b"mine")
        (scene.dest / "f (1).txt").write_bytes(b"mine too")
        scene.arrive("f.txt", b"arrived")
        assert scene.get() == ["f (2).txt"]
        assert files_in(scene.dest) == {
            "f.txt": b"mine",
            "f (1).txt": b"mine too",
            "f (2).txt": b"arrived",
        }

    def test_overwrite_replaces_it(self, scene: Scene) -> None:
        (scene.dest / "f").write_bytes(b"mine")
        scene.arrive("f", b"arrived")
        assert scene.get(Conflict.OVERWRITE) == ["f"]
        assert files_in(scene.dest) == {"f": b"arrived"}

    def test_skip_leaves_both_where_they_are(self, scene: Scene) -> None:
        (scene.dest / "f").write_bytes(b"mine")
        scene.arrive("f", b"arrived")
        with scene.mover(Conflict.SKIP) as (inbox, mover):
            moved = mover.move(inbox.files()[0])
            assert moved is not None
            assert (moved.skipped, moved.path) == (True, "f")
            assert mover.settle() == []
        assert files_in(scene.dest) == {"f": b"mine"}
        assert scene.paths() == ["f"]

    @pytest.mark.parametrize("conflict", [Conflict.ERROR, Conflict.OVERWRITE])
    def test_what_cannot_be_replaced_is_an_error_and_stays(self, scene: Scene, conflict: Conflict) -> None:
        (scene.dest / "f").mkdir()
        scene.arrive("f", b"arrived")
        with scene.mover(conflict) as (inbox, mover), pytest.raises(Exists):
            mover.move(inbox.files()[0])
        assert scene.paths() == ["f"]
        assert leftovers_in(scene.dest) == []

    def test_a_name_that_is_taken_at_the_last_moment_is_not_replaced(self, scene: Scene) -> None:
        scene.arrive("f", b"arrived")
        system = scene.kind()

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "rename_noreplace":
                (scene.dest / "f").write_bytes(b"mine")

        with scene.mover(system=system) as (inbox, mover):
            system.before = before
            moved = mover.move(inbox.files()[0])
            assert moved is not None
            assert moved.path == "f (1)"
            mover.settle()
        assert files_in(scene.dest) == {"f": b"mine", "f (1)": b"arrived"}

    def test_no_link_leads_out_of_the_destination(self, scene: Scene, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (scene.dest / "a").symlink_to(tmp_path / "elsewhere")
        scene.arrive("a/f", b"arrived")
        with scene.mover() as (inbox, mover), pytest.raises(BadName, match="is not a folder"):
            mover.move(inbox.files()[0])
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_what_was_listed_and_is_gone_is_nothing(self, scene: Scene) -> None:
        for name in ("a", "b", "c"):
            scene.arrive(name, b"content")
        with scene.mover() as (inbox, mover):
            files = inbox.files()
            (scene.folder / "a").unlink()
            (scene.folder / "b").write_bytes(b"of another size")
            with scene.inbox() as other, other.claimed(files[2]):
                assert [mover.move(each) for each in files] == [None] * 3
        assert files_in(scene.dest) == {}

    def test_a_folder_at_the_destination_that_is_removed_meanwhile_is_made_again(self, scene: Scene) -> None:
        scene.arrive("a/f", b"arrived")
        system = scene.kind()
        left = ["once"]

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name in {"rename_noreplace", "fstatvfs"} and left:
                left.clear()
                (scene.dest / "a").rmdir()

        with scene.mover(system=system) as (inbox, mover):
            system.before = before
            assert mover.move(inbox.files()[0]) is not None
            mover.settle()
        assert files_in(scene.dest) == {"a/f": b"arrived"}

    def test_a_destination_that_is_removed_is_told(self, scene: Scene) -> None:
        scene.arrive("a/f", b"arrived")
        with scene.mover() as (inbox, mover):
            scene.dest.rmdir()
            with pytest.raises(BadName, match="has been removed"):
                mover.move(inbox.files()[0])
        assert scene.paths() == ["a/f"]

    def test_the_receivers_own_folder_is_no_destination(self, scene: Scene) -> None:
        with scene.inbox() as inbox:
            for folder in (scene.folder, scene.folder / ".tdx"):
                with pytest.raises(UsageError, match="the receiver's own folder"):
                    Mover(inbox, folder, Conflict.RENAME)
            with pytest.raises(BadName, match="no folder to move to"):
                Mover(inbox, scene.folder / "nowhere", Conflict.RENAME)

    def test_a_sync_that_fails_is_told_of_every_file_in_that_folder(self, scene: Scene) -> None:
        for name in ("a/1", "a/2", "b/3"):
            scene.arrive(name, b"content")
        system = scene.kind()
        with scene.mover(system=system) as (inbox, mover):
            for each in inbox.files():
                mover.move(each)
            system.fail("fsync", errno.EIO)
            settled = mover.settle()
        assert [isinstance(each.error, StorageError) for each in settled] == [True, True, False]
        receipts = scene.receipts()
        assert [each.path for each in receipts.files()] == ["a/1", "a/2"]
        receipts.close()
        assert len(files_in(scene.dest)) == 3


class TestCopying:
    def test_holes_stay_holes(self, apart: Scene) -> None:
        content = bytes(8 * MIB) + BIG + bytes(9 * MIB)
        apart.arrive("sparse", content)
        with (apart.folder / "sparse").open("r+b") as file:
            file.truncate(0)
            file.truncate(len(content))
            os.pwrite(file.fileno(), BIG, 8 * MIB)
        apart.get()
        assert files_in(apart.dest) == {"sparse": content}
        assert (apart.dest / "sparse").stat().st_blocks * 512 < 4 * MIB

    def test_a_filesystem_that_does_not_tell_of_holes_is_read_whole(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()
        system.fail("next_data", errno.EINVAL, times=100)
        with apart.mover(system=system) as (inbox, mover):
            mover.move(inbox.files()[0])
            mover.settle()
        assert files_in(apart.dest) == {"f": BIG}

    @pytest.mark.parametrize("size", [3, MIB, 4 * MIB, 5 * MIB + 1])
    def test_what_is_not_what_was_received_is_not_moved(self, apart: Scene, size: int) -> None:
        apart.arrive("f", bytes(size - 1) + b"x")
        (apart.folder / "f").write_bytes(bytes(size - 1) + b"y")
        with apart.mover() as (inbox, mover), pytest.raises(VerificationFailed) as failed:
            mover.move(inbox.files()[0])
        assert failed.value.exit_code == 65
        assert files_in(apart.dest) == {}
        assert leftovers_in(apart.dest) == []
        assert apart.paths() == ["f"]

    def test_a_file_whose_receipt_has_expired_is_copied_all_the_same(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        receipts = apart.receipts()
        receipts.expire(1e12)
        receipts.close()
        assert apart.get() == ["f"]
        assert files_in(apart.dest) == {"f": BIG}

    def test_too_little_room_is_told_before_a_byte_is_copied(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()
        with apart.mover(system=system) as (inbox, mover):
            system.free = MIB
            system.log.clear()
            with pytest.raises(NoSpace, match="the destination's disk"):
                mover.move(inbox.files()[0])
        assert "pwrite" not in system.log
        assert apart.paths() == ["f"]

    def test_a_disk_that_fills_up_leaves_nothing_behind(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()
        with apart.mover(system=system) as (inbox, mover):
            system.fail("pwrite", errno.ENOSPC, skip=1)
            with pytest.raises(NoSpace):
                mover.move(inbox.files()[0])
        assert (files_in(apart.dest), leftovers_in(apart.dest), apart.paths()) == ({}, [], ["f"])

    def test_a_source_that_changes_is_not_removed(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "preadv":
                os.truncate(apart.folder / "f", 10)

        with apart.mover(system=system) as (inbox, mover):
            system.before = before
            with pytest.raises(SourceChanged):
                mover.move(inbox.files()[0])
        assert files_in(apart.folder) == {"f": BIG[:10]}
        assert leftovers_in(apart.dest) == []

    def test_a_source_that_is_replaced_before_it_is_opened_is_told(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "open" and arguments[0] == "f":
                (apart.folder / "g").write_bytes(BIG)
                (apart.folder / "g").rename(apart.folder / "f")

        with apart.mover(system=system) as (inbox, mover):
            system.before = before
            with pytest.raises(SourceChanged):
                mover.move(inbox.files()[0])
        assert files_in(apart.folder) == {"f": BIG}

    def test_a_file_that_was_published_over_the_source_meanwhile_is_not_lost(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name in {"rename_noreplace", "rename"} and str(arguments[0]).startswith(PREFIX):
                (apart.folder / "g").write_bytes(b"newer")
                (apart.folder / "g").rename(apart.folder / "f")

        with apart.mover(system=system) as (inbox, mover):
            system.before = before
            assert mover.move(inbox.files()[0]) is not None
            mover.settle()
        assert files_in(apart.dest) == {"f": BIG}
        assert files_in(apart.folder) == {"f": b"newer"}

    def test_the_last_look_and_the_removal_wait_for_a_publication_under_way(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        own = os.open(apart.folder / ".tdx", os.O_RDONLY)
        fcntl.flock(own, fcntl.LOCK_SH)
        moving = threading.Thread(target=apart.get)
        moving.start()
        moving.join(0.3)
        assert moving.is_alive()
        assert files_in(apart.folder) == {"f": BIG}
        os.close(own)
        moving.join(60)
        assert files_in(apart.folder) == {}

    def test_it_ends_in_the_middle_of_a_file_when_it_is_told_to(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        asked: list[int] = []

        def check() -> None:
            asked.append(1)
            if len(asked) == 2:
                raise Interrupted("stopped")

        with apart.mover(check=check) as (inbox, mover), pytest.raises(Interrupted):
            mover.move(inbox.files()[0])
        assert (files_in(apart.dest), leftovers_in(apart.dest), apart.paths()) == ({}, [], ["f"])

    def test_and_in_the_middle_of_comparing_one(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        (apart.dest / "f").write_bytes(BIG)
        mtime_ns = (apart.folder / "f").stat().st_mtime_ns
        os.utime(apart.dest / "f", ns=(mtime_ns, mtime_ns))
        system = apart.kind()

        def check() -> None:
            if "preadv" in system.log:
                raise Interrupted("stopped")

        with apart.mover(system=system, check=check) as (inbox, mover), pytest.raises(Interrupted):
            mover.move(inbox.files()[0])
        assert system.log.count("preadv") == 1
        assert (files_in(apart.dest), apart.paths()) == ({"f": BIG}, ["f"])


class TestLeftovers:
    NAME = PREFIX + "0123456789abcdef"

    def test_what_a_killed_run_left_is_removed_by_the_next(self, apart: Scene) -> None:
        apart.arrive("a/f", BIG)
        (apart.dest / "a").mkdir()
        (apart.dest / "a" / self.NAME).write_bytes(b"half a file")
        apart.get()
        assert leftovers_in(apart.dest) == []

    def test_so_is_what_another_run_left_of_a_file_since_its_folder_was_looked_at(self, apart: Scene) -> None:
        for name in ("a", "b"):
            apart.arrive(name, BIG)

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name in {"utime", "unlink"}:  # with the copy made; nothing is tidied up any more
                raise Stopped

        with apart.mover() as (inbox, mover):
            first, second = inbox.files()
            mover.move(first)
            system = apart.kind()
            killed = apart.inbox(system)
            system.before = before
            with contextlib.suppress(Stopped):
                Mover(killed, apart.dest, Conflict.RENAME).move(second)
            system.die()
            killed._receipts.close()
            assert len(leftovers_in(apart.dest)) == 1
            mover.move(second)
            mover.settle()
        assert (files_in(apart.dest), leftovers_in(apart.dest)) == ({"a": BIG, "b": BIG}, [])

    def test_what_another_run_is_writing_is_left_alone(self, apart: Scene) -> None:
        apart.arrive("f", BIG)
        with (apart.dest / self.NAME).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            apart.get()
            assert leftovers_in(apart.dest) == [self.NAME]

    @pytest.mark.parametrize("name", [PREFIX + "0123", PREFIX + "0123456789abcdeg", "." + NAME, NAME + "0"])
    def test_what_is_not_ours_is_left_alone(self, apart: Scene, name: str) -> None:
        apart.arrive("f", BIG)
        (apart.dest / name).write_bytes(b"somebody's")
        apart.get()
        assert (apart.dest / name).exists()

    def test_neither_a_folder_nor_a_link_nor_a_pipe_of_that_name_does_harm(
        self, apart: Scene, tmp_path: Path
    ) -> None:
        apart.arrive("f", BIG)
        (tmp_path / "precious").write_bytes(b"content")
        (apart.dest / self.NAME).symlink_to(tmp_path / "precious")
        (apart.dest / (PREFIX + "1" * 16)).mkdir()
        os.mkfifo(apart.dest / (PREFIX + "2" * 16))
        apart.get()
        assert (tmp_path / "precious").read_bytes() == b"content"
        assert len(leftovers_in(apart.dest)) == 3

    def test_a_copy_that_is_taken_for_a_leftover_before_it_is_locked_is_begun_anew(
        self, apart: Scene
    ) -> None:
        apart.arrive("f", BIG)
        system = apart.kind()
        seen: list[str] = []

        def before(name: str, arguments: tuple[Any, ...]) -> None:
            if name == "flock" and leftovers_in(apart.dest) and len(seen) < 2:
                seen.append(name)
                if len(seen) == 2:
                    raise BlockingIOError(errno.EAGAIN, "locked")
                (apart.dest / leftovers_in(apart.dest)[0]).unlink()

        with apart.mover(system=system) as (inbox, mover):
            system.before = before
            mover.move(inbox.files()[0])
            mover.settle()
        assert len(seen) == 2
        assert (files_in(apart.dest), leftovers_in(apart.dest)) == ({"f": BIG}, [])


FILES = {"a/big": BIG[: 600 << 10], "top": b""}


def _arrive(scene: Scene) -> None:
    for path, content in FILES.items():
        scene.arrive(path, content)


def _move_all(inbox: Inbox, mover: Mover) -> list[TdxError]:
    errors: list[TdxError] = []
    for each in inbox.files():
        try:
            mover.move(each)
        except TdxError as error:
            errors.append(error)
    errors += [each.error for each in mover.settle() if each.error is not None]
    return errors


def _steps(scene: Scene) -> int:
    """Calls that moving everything takes."""
    with scene.mover() as (inbox, mover):
        assert isinstance(inbox.system, FaultySystem)
        inbox.system.log.clear()
        _move_all(inbox, mover)
        return len(inbox.system.log)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder without a disk, where there is one: every scene has its syncs."""
    fast = os.access("/dev/shm", os.W_OK)
    with tempfile.TemporaryDirectory(prefix="tdx-moving-", dir="/dev/shm" if fast else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.OVERWRITE, Conflict.ERROR])
@pytest.mark.parametrize("way", sorted(WAYS))
class TestAtEveryCall:
    """Of each kind of move, one scene for every call of the system that it makes."""

    def scenes(self, memory: Path, way: str) -> Iterator[tuple[int, Scene]]:
        first = Scene(memory / "first", WAYS[way])
        _arrive(first)
        steps = _steps(first)
        assert steps > 20
        for step in range(steps):
            scene = Scene(memory / str(step), WAYS[way])
            _arrive(scene)
            yield step, scene
            shutil.rmtree(scene.folder.parent)

    def test_a_kill_loses_nothing_and_the_next_run_makes_it_whole(
        self, memory: Path, way: str, conflict: Conflict
    ) -> None:
        for step, scene in self.scenes(memory, way):
            system = scene.kind()
            inbox = scene.inbox(system)
            mover = Mover(inbox, scene.dest, conflict)
            system.stop_at(step)
            with contextlib.suppress(Stopped):
                _move_all(inbox, mover)
            system.die()
            inbox._receipts.close()
            for path, content in FILES.items():
                there = [files_in(each).get(path) for each in (scene.folder, scene.dest)]
                assert content in there, (step, path)
                assert set(there) <= {content, None}, (step, path)
            scene.get(conflict)
            assert files_in(scene.dest) == FILES, step
            assert files_in(scene.folder) == {}, step
            assert leftovers_in(scene.dest) == [], step

    def test_a_failure_is_told_or_borne_and_the_next_run_makes_it_whole(
        self, memory: Path, way: str, conflict: Conflict
    ) -> None:
        for step, scene in self.scenes(memory, way):
            system = scene.kind()
            with scene.mover(conflict, system) as (inbox, mover):
                left = [step]

                def before(name: str, arguments: tuple[Any, ...], left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] == -1 and name not in {"close", "monotonic"}:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))

                system.before = before
                errors = _move_all(inbox, mover)
                system.heal()
            for path, content in FILES.items():
                there = [files_in(each).get(path) for each in (scene.folder, scene.dest)]
                assert content in there, (step, path, errors)
                assert set(there) <= {content, None}, (step, path, errors)
                assert there[1] == content or errors, (step, path)
            scene.get(conflict)
            assert files_in(scene.dest) == FILES, step
            assert files_in(scene.folder) == {}, step
            assert system.fds == set(), step
