"""The sender's digest log: what it keeps, what it forgets, and that it never fails a push."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdx.integrity import digest_of
from tdx.store.digestlog import DigestLog

SIZE = 4 << 20


def digest(n: int) -> bytes:
    return digest_of(str(n).encode())


def opened(
    folder: Path, key: str = "state", *, source: str = "source", size: int = SIZE, trustworthy: bool = True
) -> DigestLog:
    return DigestLog.open(folder, source, key, size, trustworthy=trustworthy)


def written(folder: Path, count: int = 3) -> Path:
    with opened(folder) as log:
        for n in range(count):
            log.append(n, digest(n), trusted=True)
    (path,) = folder.iterdir()
    return path


def test_what_was_appended_is_there_in_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "digests"
    with opened(folder) as log:
        assert log.digests() == {}
        log.append(5, digest(5), trusted=True)
        log.append(0, digest(0), trusted=True)
        assert log.digests() == {5: digest(5), 0: digest(0)}
    with opened(folder) as log:
        assert log.digests() == {5: digest(5), 0: digest(0)}


def test_nobody_else_may_look(tmp_path: Path) -> None:
    folder = tmp_path / "digests"
    path = written(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_last_digest_of_an_extent_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(1, digest(1), trusted=True)
        log.append(1, digest(2), trusted=True)
    with opened(tmp_path) as log:
        assert log.digests() == {1: digest(2)}


def test_the_same_digest_again_is_not_written_again(tmp_path: Path) -> None:
    path = written(tmp_path)
    size = path.stat().st_size
    written(tmp_path)
    assert path.stat().st_size == size


def test_an_empty_run_leaves_no_file(tmp_path: Path) -> None:
    with opened(tmp_path / "digests"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changed", [{"key": "other"}, {"size": 2 * SIZE}])
def test_another_state_starts_the_log_anew(tmp_path: Path, changed: dict[str, str | int]) -> None:
    written(tmp_path)
    with opened(tmp_path, **changed) as log:  # type: ignore[arg-type]
        assert log.digests() == {}
        log.append(7, digest(7), trusted=True)
    with opened(tmp_path, **changed) as log:  # type: ignore[arg-type]
        assert log.digests() == {7: digest(7)}
    with opened(tmp_path) as log:
        assert log.digests() == {}


def test_another_source_has_another_log(tmp_path: Path) -> None:
    written(tmp_path)
    with opened(tmp_path, source="../../other") as log:
        assert log.digests() == {}
        log.append(1, digest(1), trusted=True)
    assert len(list(tmp_path.iterdir())) == 2
    with opened(tmp_path) as log:
        assert len(log.digests()) == 3


def test_a_run_that_saw_an_older_state_adds_nothing_to_the_newer_log(tmp_path: Path) -> None:
    with opened(tmp_path, "older") as older, opened(tmp_path, "newer") as newer:
        older.append(0, digest(0), trusted=True)
        newer.append(1, digest(1), trusted=True)
        older.append(2, digest(2), trusted=True)
    with opened(tmp_path, "newer") as log:
        assert log.digests() == {1: digest(1)}


def test_two_runs_of_one_state_share_the_log(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        one.append(0, digest(0), trusted=True)
        other.append(1, digest(1), trusted=True)
        one.append(2, digest(2), trusted=True)
    with opened(tmp_path) as log:
        assert log.digests() == {n: digest(n) for n in range(3)}


def test_a_young_source_gets_nothing_from_the_past_and_leaves_nothing(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with opened(tmp_path, trustworthy=False) as log:
        assert log.digests() == {}
        log.append(8, digest(8), trusted=False)
        assert log.digests() == {8: digest(8)}
    assert path.read_bytes() == before


def test_a_source_that_has_come_of_age_is_written_from_then_on(tmp_path: Path) -> None:
    with opened(tmp_path, trustworthy=False) as log:
        log.append(0, digest(0), trusted=False)
        log.append(1, digest(1), trusted=True)
        log.append(2, digest(2), trusted=False)
    with opened(tmp_path) as log:
        assert log.digests() == {1: digest(1)}
        log.append(3, digest(3), trusted=False)
    with opened(tmp_path) as log:
        assert log.digests() == {1: digest(1)}


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_a_torn_log_keeps_every_whole_record_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    path = written(folder, 10)
    whole = path.read_bytes()
    cut %= len(whole) + 1
    os.truncate(path, cut)
    # A last record that lacks nothing but its line end is whole.
    kept = 0 if cut < whole.index(b"\n") else sum(1 for at in record_ends(whole) if at <= cut)
    with opened(folder) as log:
        assert log.digests() == {n: digest(n) for n in range(kept)}
        log.append(99, digest(99), trusted=True)
    with opened(folder) as log:
        expected = {n: digest(n) for n in range(kept)} if cut > whole.index(b"\n") else {}
        assert log.digests() == expected | {99: digest(99)}


def record_ends(content: bytes) -> list[int]:
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")]
    return ends[1:]


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_corrupt_byte_never_yields_a_wrong_digest(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("corrupt")
    path = written(folder, 10)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(content)
    with opened(folder) as log:
        found = log.digests()
    assert found.items() <= {n: digest(n) for n in range(10)}.items()
    assert len(found) >= 8 or not found


@pytest.mark.parametrize("line", ["", "1", "a b c", "-1 00 00", "1 zz 0", "1 00 0 0", "9" * 5000 + " 00 0"])
def test_lines_that_are_no_records_are_dropped(tmp_path: Path, line: str) -> None:
    path = written(tmp_path)
    with path.open("a") as out:
        out.write(line + "\n")
    with opened(tmp_path) as log:
        assert len(log.digests()) == 3


@pytest.mark.parametrize("end", ["\r", "\r\n", "\x0b\n", "\x1c\n"])
def test_a_line_ends_only_as_it_was_written(tmp_path: Path, end: str) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + end.encode())
    with opened(tmp_path) as log:
        assert sorted(log.digests()) == [0, 1]


def test_threads_may_append_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as log:

        def every_fourth(first: int) -> None:
            for n in range(first, 400, 4):
                log.append(n, digest(n), trusted=True)

        threads = [threading.Thread(target=every_fourth, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with opened(tmp_path) as log:
        assert log.digests() == {n: digest(n) for n in range(400)}


def test_after_closing_it_remembers_but_writes_no_more(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    log = opened(tmp_path)
    log.close()
    log.close()
    log.append(50, digest(50), trusted=True)
    assert log.digests()[50] == digest(50)
    assert path.read_bytes() == before


@pytest.mark.parametrize("obstacle", ["file", "folder", "link", "pipe"])
def test_an_unusable_state_directory_never_fails_a_push(tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "digests"
    elsewhere = tmp_path / "elsewhere"
    if obstacle == "file":
        folder.write_text("in the way")
    else:
        path = written(folder)
        path.unlink()
        if obstacle == "folder":
            path.mkdir()
        elif obstacle == "link":
            elsewhere.write_text("precious")
            path.symlink_to(elsewhere)
        else:
            os.mkfifo(path)
    with opened(folder) as log:
        assert log.digests() == {}
        log.append(0, digest(0), trusted=True)
        log.append(1, digest(1), trusted=True)
        assert log.digests() == {0: digest(0), 1: digest(1)}
    if obstacle == "link":
        assert elsewhere.read_text() == "precious"


def test_a_full_disk_never_fails_a_push_and_spoils_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    room = [400]

    def write(descriptor: int, data: bytes) -> int:
        part = data[: room[0]]
        if not part:
            raise OSError(errno.ENOSPC, "full")
        room[0] -= len(part)
        return real(descriptor, part)

    monkeypatch.setattr(os, "write", write)
    with opened(tmp_path) as log:
        for n in range(10):
            log.append(n, digest(n), trusted=True)
        assert len(log.digests()) == 10
    monkeypatch.undo()
    with opened(tmp_path) as log:
        kept = log.digests()
        assert 0 < len(kept) < 10
        assert kept.items() <= {n: digest(n) for n in range(10)}.items()
        log.append(11, digest(11), trusted=True)
    with opened(tmp_path) as log:
        assert log.digests() == kept | {11: digest(11)}


def test_a_disk_too_full_for_the_header_never_fails_a_push(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    with opened(tmp_path) as log:
        log.append(0, digest(0), trusted=True)
    monkeypatch.undo()
    assert written(tmp_path, 1).stat().st_size > 5
    with opened(tmp_path) as log:
        assert log.digests() == {0: digest(0)}


def test_old_logs_are_pruned_and_nothing_else(tmp_path: Path) -> None:
    for source in ("old", "new"):
        with opened(tmp_path, source=source) as log:
            log.append(0, digest(0), trusted=True)
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (0, 1000.0 if source == "old" else 2000.0))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    os.utime(other, (0, 0))
    (tmp_path / "folder.digests").mkdir()
    os.utime(tmp_path / "folder.digests", (0, 0))
    assert DigestLog.prune(tmp_path, now=2500.0, older_than=1000.0) == 1
    assert other.exists()
    with opened(tmp_path, source="new") as log:
        assert log.digests() == {0: digest(0)}
    with opened(tmp_path, source="old") as log:
        assert log.digests() == {}


def test_pruning_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    assert DigestLog.prune(tmp_path / "nowhere", now=0.0, older_than=0.0) == 0
