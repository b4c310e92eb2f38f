"""Sources: what may be sent, what is told of it, and that changes are noticed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdx.data.source import MAX_HOLES, Source
from tdx.errors import SourceChanged, SourceError
from tdx.integrity import MIB, digest_of
from tdx.model import Span

X = 64 * 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB + 5))
    return path


def sparse(path: Path, length: int, data: list[tuple[int, int]]) -> Path:
    with path.open("wb") as out:
        out.truncate(length)
        for start, size in data:
            out.seek(start)
            out.write(b"x" * size)
    return path


def test_a_regular_file_is_described(file: Path) -> None:
    file.chmod(0o640)
    with Source.open(file) as source:
        status = file.stat()
        assert source.length == status.st_size
        assert source.mtime_ns == status.st_mtime_ns
        assert source.mode == 0o640
        assert source.path == str(file)
        assert os.fstat(source.descriptor).st_ino == status.st_ino
        for opaque in (source.source_id, source.fingerprint, source.stat_key):
            assert len(bytes.fromhex(opaque)) == 16


def test_setuid_does_not_travel(file: Path) -> None:
    file.chmod(0o4755)
    with Source.open(str(file)) as source:
        assert source.mode == 0o755


def test_symbolic_links_are_followed_as_cp_does(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    with Source.open(link) as source, Source.open(file) as direct:
        assert source.source_id == direct.source_id
        assert source.read_all() == file.read_bytes()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nothing, "No such file"),
        (dangling, "No such file"),
        (loop, "symbolic links"),
        (folder, "is a directory; only regular files can be read"),
        (fifo, "is a named pipe; only regular files"),
    ],
)
def test_anything_but_a_regular_file_is_refused_in_one_clear_line(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(SourceError, match=words) as refused:
        Source.open(path)
    assert refused.value.message.startswith(f"{path}: ")
    assert refused.value.exit_code == 66


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        with pytest.raises(SourceError, match="sock: is a socket"):
            Source.open("sock")


def test_a_device_is_refused() -> None:
    with pytest.raises(SourceError, match="is a character device"):
        Source.open("/dev/null")


def test_what_becomes_a_pipe_between_looking_and_opening_neither_hangs_nor_leaks(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = file.stat()
    monkeypatch.setattr(os, "stat", lambda *_: before)
    opened: list[int] = []
    real = os.open

    def record(*args: object) -> int:
        opened.append(real(*args))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(os, "open", record)
    with pytest.raises(SourceError, match="named pipe"):
        Source.open(pipe)
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_an_unreadable_file_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        Source.open(file)


def test_a_name_that_no_file_can_have_is_refused_and_shown_on_one_line() -> None:
    with pytest.raises(SourceError, match="null") as refused:
        Source.open("a\0b\nc\udcff")
    assert refused.value.message.isprintable()
    assert refused.value.message.startswith("a\ufffdb\ufffdc\ufffd: ")


def test_closing_twice_is_closing_once(file: Path) -> None:
    source = Source.open(file)
    descriptor = source.descriptor
    source.close()
    source.close()
    assert source.descriptor == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_filesystem_without_advice_is_used_without(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(os, "posix_fadvise", fail)
    with Source.open(file) as source:
        assert source.length == 3 * MIB + 5
    monkeypatch.delattr(os, "posix_fadvise")
    with Source.open(file) as source:
        assert source.length == 3 * MIB + 5


def test_a_new_state_keeps_the_source_id_and_changes_the_fingerprint(file: Path) -> None:
    with Source.open(file) as before:
        os.utime(file, ns=(0, before.mtime_ns + 1))
        with Source.open(file) as after:
            assert after.source_id == before.source_id
            assert after.fingerprint != before.fingerprint
            assert after.stat_key != before.stat_key


def test_setting_the_mtime_back_does_not_deceive_the_stat_key(file: Path) -> None:
    with Source.open(file) as before:
        changed = before
        while changed.stat_key == before.stat_key:  # until the clock of the filesystem has ticked
            file.write_bytes(os.urandom(before.length))
            os.utime(file, ns=(0, before.mtime_ns))
            changed = Source.open(file)
            changed.close()
        assert changed.fingerprint == before.fingerprint


def test_another_file_is_another_source(file: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.write_bytes(b"")
    with Source.open(file) as one, Source.open(twin) as other:
        assert one.source_id != other.source_id


def test_a_source_is_young_for_two_seconds(file: Path) -> None:
    os.utime(file, (0, 1000.0))
    with Source.open(file) as source:
        assert source.young(1001.9)
        assert source.young(999.0)
        assert not source.young(1002.0)
        assert not source.young(2000.0)


def digests_of(source: Source) -> list[bytes]:
    return [digest for _, digest in source.hash_extents(range(4), MIB)]


def clock_has_ticked(file: Path, since: int) -> None:
    """Touch the file's ctime until it differs from ``since``: a filesystem's clock is coarse."""
    while file.stat().st_ctime_ns == since:
        file.chmod(0o600)


def test_an_unchanged_source_passes_the_check_even_renamed_or_unlinked(file: Path, tmp_path: Path) -> None:
    with Source.open(file) as source:
        digests = digests_of(source)
        source.check_unchanged(digests, MIB)
        moved = file.rename(tmp_path / "moved")
        clock_has_ticked(moved, os.fstat(source.descriptor).st_ctime_ns)
        source.check_unchanged(digests, MIB)
        moved.unlink()
        source.check_unchanged(digests, MIB)


def test_a_source_written_to_whose_mtime_was_set_back_is_noticed(file: Path) -> None:
    before = file.stat()
    with Source.open(file) as source:
        digests = digests_of(source)
        with file.open("r+b") as out:
            out.seek(MIB)
            out.write(b"other")
        clock_has_ticked(file, before.st_ctime_ns)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(SourceChanged, match="written to"):
            source.check_unchanged(digests, MIB)


def test_a_source_is_read_again_only_after_its_ctime_has_moved_and_once_for_each_time(
    file: Path,
) -> None:
    with Source.open(file) as source:
        digests = digests_of(source)
        extents: list[None] = []
        source.check_unchanged(digests, MIB, lambda: extents.append(None))
        assert extents == []
        clock_has_ticked(file, os.fstat(source.descriptor).st_ctime_ns)
        for _ in range(2):
            source.check_unchanged(digests, MIB, lambda: extents.append(None))
            assert len(extents) == 4


def test_a_source_that_never_comes_to_rest_counts_as_changed(file: Path) -> None:
    with Source.open(file) as source:
        digests = digests_of(source)
        clock_has_ticked(file, file.stat().st_ctime_ns)

        def touch() -> None:
            clock_has_ticked(file, file.stat().st_ctime_ns)

        with pytest.raises(SourceChanged, match="written to"):
            source.check_unchanged(digests, MIB, touch)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_file_that_the_kernel_makes_up_is_refused_rather_than_taken_for_empty() -> None:
    with pytest.raises(SourceError, match="its size is unknown; push it through standard input"):
        Source.open("/proc/self/status")


def test_a_file_without_a_size_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(_descriptor: int, _n: int, _offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "empty").touch()
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(SourceError, match="cannot be read: Input/output error"):
        Source.open(tmp_path / "empty")


@pytest.mark.parametrize(("size", "words"), [(5, "now has 5"), (4 * MIB, "now has 4194304")])
def test_a_source_that_shrank_or_grew_is_noticed(file: Path, size: int, words: str) -> None:
    with Source.open(file) as source:
        os.truncate(file, size)
        with pytest.raises(SourceChanged, match=words):
            source.check_unchanged([], MIB)


def test_a_source_written_to_is_noticed(file: Path) -> None:
    with Source.open(file) as source:
        os.utime(file, ns=(0, source.mtime_ns + 1))
        with pytest.raises(SourceChanged, match="written to"):
            source.check_unchanged([], MIB)


def test_a_check_that_fails_is_a_source_error(file: Path) -> None:
    source = Source.open(file)
    source.close()
    with pytest.raises(SourceError, match="Bad file descriptor"):
        source.check_unchanged([], MIB)


def test_extents_are_hashed_in_the_order_asked_for(file: Path) -> None:
    content = file.read_bytes()
    size = 2 * MIB
    with Source.open(file) as source:
        assert list(source.hash_extents([1, 0, 1], size)) == [
            (1, digest_of(content[size:])),
            (0, digest_of(content[:size])),
            (1, digest_of(content[size:])),
        ]
        assert list(source.hash_extents([], size)) == []


def test_short_reads_are_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][:100_000]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with Source.open(file) as source:
        assert list(source.hash_extents([0], 4 * MIB)) == [(0, digest_of(file.read_bytes()))]
        assert source.read_all() == file.read_bytes()


def test_a_file_that_shrinks_while_it_is_hashed_is_noticed(file: Path) -> None:
    with Source.open(file) as source:
        digests = source.hash_extents(range(4), MIB)
        next(digests)
        os.truncate(file, MIB + 7)
        with pytest.raises(SourceChanged, match=f"shrank to {MIB + 7} of"):
            list(digests)
        with pytest.raises(SourceChanged, match=f"shrank to {MIB + 7} of"):
            source.read_all()


def test_a_failing_disk_is_a_source_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with Source.open(file) as source, pytest.raises(SourceError, match="Input/output error"):
        list(source.hash_extents([0], MIB))


def test_an_empty_file_is_an_empty_source(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with Source.open(path) as source:
        assert source.length == 0
        assert source.read_all() == b""
        assert source.holes(X) == []
        assert list(source.hash_extents([], X)) == []


def test_holes_are_told_in_whole_extents(tmp_path: Path) -> None:
    path = sparse(tmp_path / "sparse", 100 * X + 10, [(0, 5), (10 * X, X), (50 * X + 4096, 1)])
    with Source.open(path) as source:
        assert source.holes(X) == [Span(X, 10 * X), Span(11 * X, 50 * X), Span(51 * X, 100 * X + 10)]


def test_a_file_with_holes_is_sparse_and_one_without_is_not(file: Path, tmp_path: Path) -> None:
    with Source.open(file) as source:
        assert not source.sparse
    with Source.open(sparse(tmp_path / "sparse", 8 * X, [(0, 4096)])) as source:
        assert source.sparse
    (tmp_path / "empty").touch()
    with Source.open(tmp_path / "empty") as source:
        assert not source.sparse


def test_a_file_that_is_all_hole_is_one_hole(tmp_path: Path) -> None:
    with Source.open(sparse(tmp_path / "sparse", 1 << 40, [])) as source:
        assert source.holes(64 * MIB) == [Span(0, 1 << 40)]


def test_holes_smaller_than_an_extent_are_not_told(tmp_path: Path) -> None:
    path = sparse(tmp_path / "sparse", 8 * X, [(n * X // 2, 4096) for n in range(16)])
    with Source.open(path) as source:
        assert source.holes(X) == []


def test_a_file_without_holes_has_none(file: Path) -> None:
    with Source.open(file) as source:
        assert source.holes(X) == []


def test_of_too_many_holes_the_largest_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Data in every second extent and, in the end, one hole of two: more holes than are told.
    count = 2 * (MAX_HOLES + 50) + 1
    with Source.open(sparse(tmp_path / "sparse", count * X, [])) as source:

        def seek(descriptor: int, offset: int, whence: int) -> int:
            index = offset // X
            if whence == os.SEEK_DATA:
                if index >= count - 2:
                    raise OSError(errno.ENXIO, "no data")
                return offset if index % 2 == 0 else (index + 1) * X
            return (index + 1) * X

        monkeypatch.setattr(os, "lseek", seek)
        holes = source.holes(X)
        assert len(holes) == MAX_HOLES
        assert holes == sorted(holes)
        assert Span((count - 2) * X, count * X) in holes


@pytest.mark.parametrize("failing", [os.SEEK_DATA, os.SEEK_HOLE])
def test_a_filesystem_that_cannot_tell_has_no_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real = os.lseek

    def seek(descriptor: int, offset: int, whence: int) -> int:
        if whence == failing:
            raise OSError(errno.EINVAL, "what?")
        return real(descriptor, offset, whence)

    with Source.open(sparse(tmp_path / "sparse", 10 * X, [(0, 1)])) as source:
        monkeypatch.setattr(os, "lseek", seek)
        assert source.holes(X) == []


def test_a_system_that_cannot_tell_has_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "SEEK_DATA")
    with Source.open(sparse(tmp_path / "sparse", 10 * X, [])) as source:
        assert source.holes(X) == []


@settings(max_examples=60)
@given(
    st.integers(1, 20 * X),
    st.lists(st.tuples(st.integers(0, 20 * X), st.integers(1, 2 * X)), max_size=6),
)
def test_holes_are_zero_whole_extents_and_never_touch(
    tmp_path_factory: pytest.TempPathFactory, length: int, data: list[tuple[int, int]]
) -> None:
    inside = [(start, min(size, length - start)) for start, size in data if start < length]
    path = sparse(tmp_path_factory.mktemp("holes") / "sparse", length, inside)
    content = path.read_bytes()
    with Source.open(path) as source:
        holes = source.holes(X)
    path.unlink()
    for hole in holes:
        assert hole.start % X == 0
        assert hole.end % X == 0 or hole.end == length
        assert not any(content[hole.start : hole.end])
    assert all(one.end < other.start for one, other in zip(holes, holes[1:], strict=False))
