"""What the sending pump of bundles guarantees."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from support.datakit import STALL, Over, collector, end_stream, pattern, tcp_pair
from tdx.data import entries
from tdx.data.entries import EntriesSend, SmallFile
from tdx.data.port import Cancel, EarlyAnswer
from tdx.errors import ConnectionLost, Interrupted, SourceChanged
from tdx.integrity import digest_of
from tdx.model import Stages
from tdx.proto import bundle
from tdx.proto.bundle import Entry
from tdx.proto.chunked import ChunkedDecoder

MOST = 256 << 10
SIZES = [0, 1, 16384, 65537, MOST, MOST - 1, MOST, MOST, MOST, 5, 0]


def small_files(folder: Path, sizes: Sequence[int]) -> list[SmallFile]:
    files: list[SmallFile] = []
    for number, size in enumerate(sizes):
        path = folder / f"f{number}"
        path.write_bytes(pattern(size, number))
        path.chmod(0o640)
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
        files.append(SmallFile(str(path), f"tree/f{number}", f"key{number}"))
    return files


def parsed(coded: bytes) -> list[tuple[Entry, bytes]]:
    """The entries of a body in chunked coding, which must end where it says."""
    decoder = ChunkedDecoder()
    body = b"".join(decoder.feed(coded))
    assert decoder.finished
    assert decoder.leftover == b""
    found: list[tuple[Entry, bytes]] = []
    at = 0
    while True:
        (length,) = struct.unpack_from(">I", body, at)
        at += 4
        if not length:
            break
        entry = bundle.parse_head(body[at : at + length])
        at += length
        found.append((entry, body[at : at + entry.size]))
        at += entry.size
    assert at == len(body)
    return found


def sent_over(over: Callable[[], object], files: Sequence[SmallFile], pump: EntriesSend) -> bytes:
    with over() as (near, far):  # type: ignore[attr-defined]
        reading = collector(far)
        pump.send(near, files, Cancel(), STALL, Stages())
        end_stream(near)
        coded = reading.join()
        assert isinstance(coded, bytes)
        return coded


def pump(sent: Callable[[int], None] = lambda _: None) -> EntriesSend:
    return EntriesSend(MOST, sent, lambda _: 0.0)


def test_every_file_is_an_entry_with_its_bytes_its_time_and_its_mode(over: Over, tmp_path: Path) -> None:
    files = small_files(tmp_path, SIZES)
    counted: list[int] = []
    found = parsed(sent_over(over.tcp, files, pump(counted.append)))
    for number, (size, (entry, content)) in enumerate(zip(SIZES, found, strict=True)):
        data = pattern(size, number)
        assert content == data
        assert entry == Entry(
            f"tree/f{number}",
            size,
            digest_of(data),
            f"key{number}",
            1_600_000_000_123_456_789 + number,
            0o640,
        )
    assert sum(counted) == sum(SIZES)
    assert [(file.size, file.digest, file.sent) for file in files] == [
        (entry.size, entry.digest, entry.size) for entry, _ in found
    ]


def test_a_bundle_of_nothing_is_an_end_mark(over: Over) -> None:
    assert parsed(sent_over(over.tcp, [], pump())) == []


def spoiled(kind: str, file: SmallFile) -> None:
    path = Path(file.path)
    if kind == "missing":
        path.unlink()
    elif kind == "large":
        path.write_bytes(bytes(MOST + 1))
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "sizeless":
        file.path = "/proc/self/status"
    elif kind == "name":
        file.name = "\udcff"


@pytest.mark.parametrize("kind", ["missing", "large", "folder", "pipe", "sizeless", "name"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_no_matter_for_a_bundle_stays_out_and_the_rest_goes_on(
    tmp_path: Path, kind: str, which: int
) -> None:
    files = small_files(tmp_path, [10, 20, 30])
    spoiled(kind, files[which])
    found = parsed(sent_over(tcp_pair, files, pump()))
    assert [entry.key for entry, _ in found] == [f"key{n}" for n in range(3) if n != which]
    assert [file.aside for file in files] == [n == which for n in range(3)]
    assert all(file.error is None for file in files)


@pytest.mark.parametrize("change", ["grows", "shrinks", "touched"])
def test_a_file_that_is_written_to_while_it_is_read_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    files = small_files(tmp_path, [100, 200, 300])
    read = os.readv

    def meddled(descriptor: int, views: Sequence[memoryview]) -> int:
        got = read(descriptor, views)
        if got == 200:
            if change == "touched":
                os.utime(files[1].path)
            else:
                os.truncate(files[1].path, 199 if change == "shrinks" else 201)
        return got

    monkeypatch.setattr(os, "readv", meddled)
    found = parsed(sent_over(tcp_pair, files, pump()))
    assert [entry.size for entry, _ in found] == [100, 300]
    assert files[1].aside


def test_what_was_sent_once_is_sent_again_the_same(tmp_path: Path) -> None:
    files = small_files(tmp_path, SIZES)
    first = parsed(sent_over(tcp_pair, files, pump()))
    assert parsed(sent_over(tcp_pair, files, pump())) == first
    assert [file.sent for file in files] == [2 * size for size in SIZES]


@pytest.mark.parametrize("change", ["written", "missing"])
def test_what_was_sent_once_and_has_changed_since_is_an_error(tmp_path: Path, change: str) -> None:
    files = small_files(tmp_path, [10, 20])
    sent_over(tcp_pair, files, pump())
    if change == "written":
        Path(files[0].path).write_bytes(bytes(10))
    else:
        Path(files[0].path).unlink()
    assert [entry.size for entry, _ in parsed(sent_over(tcp_pair, files, pump()))] == [20]
    assert isinstance(files[0].error, SourceChanged)
    assert files[1].error is None


def test_no_bundle_has_more_content_than_a_receiver_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "MAX_CONTENT", 250)
    files = small_files(tmp_path, [100, 100, 100, 50])
    assert [entry.size for entry, _ in parsed(sent_over(tcp_pair, files, pump()))] == [100, 100, 50]
    assert files[2].aside


def test_a_limit_of_the_rate_is_kept_to(tmp_path: Path) -> None:
    files = small_files(tmp_path, SIZES)
    asked: list[int] = []

    def pace(n: int) -> float:
        asked.append(n)
        return 0.0

    coded = sent_over(tcp_pair, files, EntriesSend(MOST, lambda _: None, pace))
    assert sum(asked) == len(coded)


def test_a_stop_ends_it(tmp_path: Path) -> None:
    cancel = Cancel()
    cancel.stop()
    with tcp_pair() as (near, _), pytest.raises(Interrupted):
        pump().send(near, small_files(tmp_path, [1]), cancel, STALL, Stages())


def test_a_connection_that_breaks_ends_it_and_what_went_before_is_known(tmp_path: Path) -> None:
    files = small_files(tmp_path, [MOST] * 40)
    with tcp_pair() as (near, far):
        far.close()
        with pytest.raises(ConnectionLost):
            pump().send(near, files, Cancel(), STALL, Stages())
    assert sum(file.sent for file in files) < 40 * MOST


def test_an_early_answer_ends_it(tmp_path: Path) -> None:
    with tcp_pair() as (near, far):
        far.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
        with pytest.raises(EarlyAnswer):
            pump().send(near, small_files(tmp_path, [MOST] * 40), Cancel(), STALL, Stages())
