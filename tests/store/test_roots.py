"""What a sender remembers of the files that it has read."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from tdx.integrity import MIB, Root, digest_of
from tdx.store import roots as module
from tdx.store.roots import DATABASE, KEPT_DAYS, Roots

DAY = 86400.0
NOW = 20_000 * DAY


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"f{number}" for number in range(3)]
    for number, path in enumerate(found):
        path.write_bytes(bytes(number))
    return found


def root_of(path: Path) -> str:
    content = path.read_bytes()
    return str(Root.over([digest_of(content)] if content else [], len(content), 4 * MIB))


def remembered(state: Path, files: list[Path], now: float = NOW) -> None:
    roots = Roots(state, now)
    for path in files:
        roots.remember(path.stat(), root_of(path))
    roots.close()


def known(state: Path, files: list[Path], now: float = NOW) -> list[str | None]:
    roots = Roots(state, now)
    try:
        return roots.known([path.stat() for path in files])
    finally:
        roots.close()


def rows(state: Path) -> int:
    with sqlite3.connect(state / DATABASE) as database:
        (count,) = database.execute("SELECT count(*) FROM roots").fetchone()
    database.close()
    return int(count)


def test_another_run_knows_what_one_has_read(state: Path, files: list[Path]) -> None:
    assert known(state, files) == [None] * 3
    remembered(state, files[1:])
    assert known(state, files) == [None, root_of(files[1]), root_of(files[2])]


def test_the_folder_is_nobody_elses(state: Path, files: list[Path]) -> None:
    remembered(state, files)
    assert state.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_where_nothing_is_asked(state: Path) -> None:
    Roots(state, NOW).close()
    assert not state.exists()


def test_content_of_the_same_size_under_the_old_mtime_is_not_taken_for_the_old(
    state: Path, files: list[Path]
) -> None:
    before = files[2].stat()
    remembered(state, files)
    files[2].write_bytes(b"xy")
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (files[2].stat().st_size, files[2].stat().st_mtime_ns) == (2, before.st_mtime_ns)
    assert known(state, files) == [root_of(files[0]), root_of(files[1]), None]


def test_a_file_that_was_renamed_over_another_is_another(state: Path, files: list[Path]) -> None:
    remembered(state, files)
    files[1].rename(files[2])
    assert known(state, files[:1] + files[2:]) == [root_of(files[0]), None]


def test_the_last_state_counts(state: Path, files: list[Path]) -> None:
    remembered(state, files)
    files[1].write_bytes(b"z")
    os.utime(files[1], ns=(7, 7))
    remembered(state, files[1:2])
    assert known(state, files) == [root_of(path) for path in files]


def test_the_root_of_a_stream_is_none_that_a_file_has(state: Path, files: list[Path]) -> None:
    roots = Roots(state, NOW)
    roots.remember(files[1].stat(), str(Root.over([digest_of(b"\0")], 1, 16 * MIB)))
    assert roots.unsaved == 0
    roots.close()


def test_more_files_than_one_query_takes(
    state: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    remembered(state, files)
    assert known(state, files) == [root_of(path) for path in files]


def test_what_no_run_comes_across_any_more_is_forgotten_in_the_end(state: Path, files: list[Path]) -> None:
    remembered(state, files)
    for days in (10, 50):  # one of them is met again and again
        assert known(state, files[:1], NOW + days * DAY) == [root_of(files[0])]
    remembered(state, files[1:2], NOW + (KEPT_DAYS + 1) * DAY)
    assert known(state, files, NOW + (KEPT_DAYS + 1) * DAY) == [root_of(files[0]), root_of(files[1]), None]
    assert rows(state) == 2


def test_a_run_that_meets_only_what_is_known_writes_nothing(state: Path, files: list[Path]) -> None:
    remembered(state, files)
    before = (state / DATABASE).stat()
    assert known(state, files, NOW + 6 * DAY) == [root_of(path) for path in files]
    after = (state / DATABASE).stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_it_can_be_told_to_forget(state: Path, files: list[Path]) -> None:
    assert Roots.prune(state, NOW, 0.0) == 0
    assert not state.exists()
    remembered(state, files[:2])
    remembered(state, files[2:], NOW + 3 * DAY)
    assert Roots.prune(state, NOW + 3 * DAY, 4 * DAY) == 0
    assert Roots.prune(state, NOW + 3 * DAY, 2 * DAY) == 2
    assert known(state, files, NOW + 3 * DAY) == [None, None, root_of(files[2])]
    assert Roots.prune(state, NOW + 3 * DAY, 0.0) == 1


class TestFailures:
    @pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
    def test_a_broken_database_is_gone_without_and_the_next_run_begins_anew(
        self, state: Path, files: list[Path], content: bytes
    ) -> None:
        state.mkdir()
        (state / DATABASE).write_bytes(content)
        remembered(state, files)
        assert known(state, files) == [None] * 3
        remembered(state, files)
        assert known(state, files) == [root_of(path) for path in files]

    def test_pages_that_break_are_gone_without(self, state: Path, files: list[Path]) -> None:
        remembered(state, files)
        with (state / DATABASE).open("r+b") as database:
            database.seek(4096)
            database.write(os.urandom(4096))
        for _ in range(2):
            for each, path in zip(known(state, files), files, strict=True):
                assert each in (None, root_of(path))
            remembered(state, files)
        assert known(state, files) == [root_of(path) for path in files]

    def test_a_locked_database_is_gone_without(
        self, state: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_PATIENCE", 0.01)
        remembered(state, files[:1])
        other = sqlite3.connect(state / DATABASE, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        roots = Roots(state, NOW)
        roots.remember(files[1].stat(), root_of(files[1]))
        roots.save()
        roots.close()
        other.execute("ROLLBACK")
        other.close()
        assert known(state, files) == [root_of(files[0]), None, None]

    def test_a_folder_that_cannot_be_made_is_gone_without(self, state: Path, files: list[Path]) -> None:
        state.write_text("a file")
        remembered(state, files)
        assert known(state, files) == [None] * 3
        assert state.read_text() == "a file"

    def test_rows_that_make_no_sense_are_not_believed(self, state: Path, files: list[Path]) -> None:
        remembered(state, files)
        with sqlite3.connect(state / DATABASE) as database:
            database.execute("UPDATE roots SET root = x'00'")
        database.close()
        assert known(state, files) == [None] * 3

    def test_what_comes_after_the_end_is_forgotten(self, state: Path, files: list[Path]) -> None:
        roots = Roots(state, NOW)
        roots.close()
        roots.remember(files[0].stat(), root_of(files[0]))
        roots.close()
        assert roots.known([files[0].stat()]) == [None]


def test_several_threads_and_runs_may_share_it(state: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"shared{number}" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number))
    both = [Roots(state, NOW), Roots(state, NOW)]

    def work(roots: Roots, some: list[Path]) -> None:
        for path in some:
            roots.remember(path.stat(), root_of(path))
            roots.save()
            roots.known([each.stat() for each in some])

    threads = [
        threading.Thread(target=work, args=(both[number % 2], paths[number::4])) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for roots in both:
        roots.close()
    assert known(state, paths) == [root_of(path) for path in paths]
