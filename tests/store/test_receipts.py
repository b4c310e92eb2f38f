"""Receipts: safe between threads, receivers and processes, and apart for each folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from tdx.errors import ConfigError, StorageError, StorageUnusable
from tdx.model import FileName, Outcome, Owner, Receipt, UploadId
from tdx.store import database
from tdx.store import receipts as module
from tdx.store.known import (
    LONGEST_SPAN,
    SETTLED,
    KnownFile,
    Moment,
    Stamp,
    linked,
    moment_of,
    published,
    published_at,
    stamp_of,
)
from tdx.store.receipts import MOST_PATHS, Receipts

ME = Owner("local:1000")


def receipt(number: int, key: str | None = "k", at: float = 1000.0) -> Receipt:
    name = FileName(f"datei {number} ü🎉.txt")
    return Receipt(
        UploadId(f"{number:032x}"), ME, key, name, f"a/{name}", 2**40, "root", True, Outcome.PUBLISHED, at
    )


def test_a_receipt_comes_back_as_it_was(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path / "deep" / "state", "store")
    receipts.put(receipt(1), lifetime=10)
    receipts.close()
    receipts = Receipts(tmp_path / "deep" / "state", "store")
    assert receipts.get(UploadId(f"{1:032x}")) == receipt(1)
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700
    receipts.close()


def test_the_first_receipt_of_an_upload_stays(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    receipts.put(receipt(1), lifetime=10)
    receipts.put(receipt(1, at=2000.0), lifetime=10)
    assert receipts.get(UploadId(f"{1:032x}")) == receipt(1)
    receipts.close()


def test_who_published_a_file_outlives_the_receipt(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    receipts.put(receipt(1), lifetime=10)
    receipts.expire(1e12)
    assert receipts.files(ME) == receipts.files() == [(receipt(1).path, 2**40, receipt(1).upload)]
    assert receipts.files(Owner("local:1001")) == []
    receipts.close()


def test_a_file_that_was_published_anew_is_not_forgotten(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    for number in (1, 2):
        receipts.put(receipt(number), lifetime=10)
    found = receipts.files()
    again = dataclasses.replace(receipt(3), path=receipt(1).path, size=5)
    receipts.put(again, lifetime=10)
    receipts.forget_files(found)
    assert receipts.files() == [(again.path, 5, again.upload)]
    receipts.close()


def test_only_what_was_published_is_a_file(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    receipts.put(dataclasses.replace(receipt(1), outcome=Outcome.SKIPPED), lifetime=10)
    assert receipts.files() == []
    receipts.close()


def test_folders_do_not_see_each_others_receipts(tmp_path: Path) -> None:
    one, two = Receipts(tmp_path, "one"), Receipts(tmp_path, "two")
    one.put(receipt(1), lifetime=10)
    assert two.get(receipt(1).upload) is None
    assert two.files() == []
    assert two.by_key(ME, "k") is None
    two.expire(1e12)
    assert one.by_key(ME, "k") == receipt(1)
    one.expire(1e12)
    assert one.by_key(ME, "k") is None
    one.close()
    two.close()


def test_a_receipt_without_a_key_is_found_by_no_key(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    receipts.put(receipt(1, key=None), lifetime=10)
    assert receipts.by_key(ME, "None") is None
    assert receipts.by_key(ME, "") is None
    receipts.close()


def test_several_receivers_of_several_threads_lose_no_receipt(tmp_path: Path) -> None:
    receivers = [Receipts(tmp_path, "store") for _ in range(3)]
    failures: list[BaseException] = []

    def work(receipts: Receipts, first: int) -> None:
        try:
            for number in range(first, first + 15):
                receipts.put(receipt(number, key=str(number)), lifetime=10)
                assert receipts.by_key(ME, str(number)) == receipt(number, key=str(number))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(receipts, 1000 * number + 100 * again))
        for number, receipts in enumerate(receivers)
        for again in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for receipts in receivers:
        assert receipts.get(UploadId(f"{2114:032x}")) is not None
        receipts.close()


def test_receivers_that_start_at_the_same_moment_share_a_new_database(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from tdx.store.receipts import Receipts\n"
        "receipts = Receipts(pathlib.Path(sys.argv[1]), 'store'); receipts.expire(0); receipts.close()"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "state")],
            env={"PYTHONPATH": ":".join(sys.path)},
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    assert [(each.communicate()[1], each.returncode) for each in running] == [(b"", 0)] * 4


def test_of_those_that_begin_a_new_database_at_once_none_is_refused(tmp_path: Path) -> None:
    many = 6
    with ThreadPoolExecutor(many) as pool:
        for number in range(40):
            together = threading.Barrier(many)

            def begin(state: Path, together: threading.Barrier = together) -> None:
                together.wait()
                Receipts(state, "store").close()

            list(pool.map(begin, [tmp_path / str(number)] * many))


def test_a_database_that_stays_locked_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_PATIENCE", 0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / database.DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="locked"):
            Receipts(tmp_path, "store")


def test_a_database_that_fails_is_a_storage_error(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "store")
    receipts.close()
    with pytest.raises(StorageError):
        receipts.put(receipt(1), lifetime=10)


def _filled(state: Path) -> Path:
    """A database of some pages, closed well."""
    receipts = Receipts(state, "store")
    receipts.put_many([receipt(number, key=str(number)) for number in range(500)], lifetime=10)
    receipts.close()
    return state / "receipts.sqlite3"


@pytest.mark.parametrize("damage", ["no database", "cut short", "a page overwritten", "a header overwritten"])
def test_a_broken_database_is_put_aside_and_begun_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = _filled(tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "no database":
        content[:] = b"this is not SQLite" * 100
    elif damage == "cut short":
        del content[3 * 4096 :]
    elif damage == "a page overwritten":
        content[5 * 4096 : 6 * 4096] = b"garbage!" * 512
    else:
        content[16:100] = bytes(84)
    file.write_bytes(content)
    receipts = Receipts(tmp_path, "store")
    assert receipts.get(UploadId(f"{1:032x}")) is None
    receipts.put(receipt(1), lifetime=10)
    receipts.close()
    receipts = Receipts(tmp_path, "store")
    assert receipts.get(UploadId(f"{1:032x}")) == receipt(1)
    receipts.close()
    (aside,) = tmp_path.glob("receipts.sqlite3.broken-*")
    assert aside.read_bytes() == content
    assert f"the receipts are broken ({_reason(caplog)}): they begin anew; the old ones are in {aside}" in (
        caplog.messages
    )


def _reason(caplog: pytest.LogCaptureFixture) -> str:
    (message,) = caplog.messages
    return message.partition("(")[2].rpartition("):")[0]


def test_receivers_that_find_a_broken_database_at_the_same_moment_share_the_new_one(tmp_path: Path) -> None:
    _filled(tmp_path).write_bytes(b"this is not SQLite" * 100)
    program = (
        "import sys, pathlib; from tdx.store.receipts import Receipts\n"
        "receipts = Receipts(pathlib.Path(sys.argv[1]), 'store'); receipts.expire(0); print(receipts.files())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={"PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    ends = [(*each.communicate(), each.returncode) for each in running]
    assert [(out, code) for out, _, code in ends] == [(b"[]\n", 0)] * 4, ends
    assert len(list(tmp_path.glob("receipts.sqlite3.broken-*"))) == 1


def test_a_state_directory_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "receipts.sqlite3").mkdir()
    with pytest.raises(ConfigError, match="the receipts cannot be kept there"):
        Receipts(tmp_path, "store")


def test_receipts_that_are_no_database_any_more_are_a_lasting_error_that_names_the_file(
    tmp_path: Path,
) -> None:
    Receipts(tmp_path, "store").close()
    receipts = Receipts(tmp_path, "store")
    (tmp_path / "receipts.sqlite3").write_bytes(b"garbage" * 10_000)
    with receipts._database.cursor() as cursor:
        cursor.execute("PRAGMA shrink_memory")  # nothing is answered from memory
    with pytest.raises(StorageUnusable, match=r"receipts\.sqlite3 cannot be used.*restart the receiver"):
        receipts.get(UploadId(f"{1:032x}"))
    assert StorageUnusable.permanent
    receipts.close()


@pytest.mark.parametrize("question", ["_BY_UPLOAD", "_BY_KEY", "_PATHS", "_NUMBERED"])
def test_no_question_makes_it_look_at_every_receipt_of_a_store(tmp_path: Path, question: str) -> None:
    receipts = Receipts(tmp_path, "one")
    query: str = getattr(module, question).format("(?, ?), (?, ?)")
    values = ["x"] * query.count("?")
    with receipts._database.cursor() as cursor:
        plan = " ".join(str(row) for row in cursor.execute(f"EXPLAIN QUERY PLAN {query}", values))
    assert "SEARCH receipts USING" in plan
    assert "(store=?)" not in plan
    receipts.close()


def test_many_receipts_are_stored_together_or_not_at_all(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "one")
    many = [receipt(number, key=str(number)) for number in range(100)]
    unfit = dataclasses.replace(receipt(100), path=object())  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        receipts.put_many([*many, unfit], lifetime=10)
    assert receipts.get(many[0].upload) is None
    receipts.put_many(many, lifetime=10)
    assert [receipts.by_key(ME, str(number)) for number in range(100)] == many
    receipts.close()


# --- what is known of files ------------------------------------------------------------------


def known(path: str, ctime_ns: int = 5, *, durable: bool = True, inode: int = 1) -> KnownFile:
    return KnownFile(path, Stamp(inode, 7, -(2**63), ctime_ns), "root", durable)


def test_what_is_known_comes_back_as_it_was_and_is_replaced(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "one")
    other = Receipts(tmp_path, "other")
    many = {f"d/{number}": known(f"d/{number}", durable=number % 2 == 0) for number in range(1000)}
    receipts.remember(list(many.values()))
    assert receipts.known() == many
    assert (
        receipts.known(["d/5", "d/none", *(f"d/{number}" for number in range(900, 999))])["d/5"]
        == many["d/5"]
    )
    assert receipts.known([]) == {}
    assert other.known() == {}
    receipts.remember([known("d/5", 6)])
    receipts.close()
    receipts = Receipts(tmp_path, "one")
    assert receipts.known(["d/5"]) == {"d/5": known("d/5", 6)}
    receipts.close()
    other.close()


def test_what_is_known_goes_with_the_receipts_or_not_at_all(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "one")
    unfit = dataclasses.replace(receipt(2), path=object())  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        receipts.put_many([receipt(1), unfit], lifetime=10, known=[known("a")])
    assert receipts.known() == {}
    receipts.put_many([receipt(1)], lifetime=10, known=[known("a"), known("a", 9)])
    assert receipts.known() == {"a": known("a", 9)}
    receipts.close()


def test_what_has_been_learnt_meanwhile_is_not_forgotten(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "one")
    receipts.remember([known("a"), known("b")])
    stale = list(receipts.known().values())
    receipts.remember([known("b", 6)])
    receipts.forget(stale)
    assert receipts.known() == {"b": known("b", 6)}
    receipts.close()


def test_where_names_were_numbered_is_told_of_many_at_once(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "one")
    many = [
        dataclasses.replace(
            receipt(number, at=float(number)), name=FileName(f"f{number % 300}"), path=f"p{number}"
        )
        for number in range(600)
    ]
    receipts.put_many(many, lifetime=1e9)
    wanted = [(FileName(f"f{number}"), 2**40) for number in range(400)]
    found = receipts.numbered(ME, wanted)
    assert found == {(f"f{number}", 2**40): [f"p{number + 300}", f"p{number}"] for number in range(300)}
    assert all(receipts.paths(ME, FileName(name), size) == paths for (name, size), paths in found.items())
    assert receipts.numbered(Owner("local:2"), wanted) == {}
    copies = [
        dataclasses.replace(receipt(1000 + number), name=FileName("g"), path=f"g{number}")
        for number in range(20)
    ]
    receipts.put_many(copies, lifetime=1e9)
    assert len(receipts.numbered(ME, [(FileName("g"), 2**40)])["g", 2**40]) == MOST_PATHS
    receipts.close()


def test_a_database_of_before_is_taken_over_and_still_serves_the_program_of_before(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "receipts.sqlite3")
    old.executescript(database._SCHEMA.partition("CREATE TABLE IF NOT EXISTS roots")[0])
    row = ("one", "a" * 32, ME, None, "f", "f", 3, "root", 1, "published", 1.0, 1e12)
    old.execute(f"INSERT INTO receipts VALUES ({', '.join('?' * len(row))})", row)
    old.commit()
    receipts = Receipts(tmp_path, "one")
    found = receipts.get(UploadId("a" * 32))
    assert found is not None
    assert (found.path, found.root) == ("f", "root")
    assert [each.path for each in receipts.files()] == ["f"]
    assert receipts.known(["f"]) == {}
    receipts.put(receipt(1), lifetime=10, known=known("f"))
    assert receipts.known(["f"]) == {"f": known("f")}
    old.execute(f"INSERT INTO receipts VALUES ({', '.join('?' * len(row))})", ("one", "b" * 32, *row[2:]))
    old.commit()
    old.close()
    assert receipts.get(UploadId("b" * 32)) is not None
    receipts.close()


def test_numbers_that_no_database_holds_are_cut_or_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.utime(path, ns=(10**18, 10**18))
    status = os.stat(path)
    file = published("f", status, "root")
    assert file is not None
    assert file.stamp == stamp_of(status)

    class Strange:
        st_mode, st_size, st_ctime_ns = status.st_mode, 0, 0
        st_ino, st_mtime_ns = (1 << 64) - 1, 1 << 70

    strange = cast("os.stat_result", Strange())
    assert published("f", strange, "root") is None
    assert linked("f", strange) is None
    assert published_at(Moment(0, 0), "f", 1, 0, 1 << 70, "root") is None
    assert published_at(Moment(0, 0), "f", 1, 0, None, "root") is None
    assert stamp_of(strange).inode < 1 << 63


class At:
    """What stat tells of a file with this ctime."""

    def __init__(self, ctime_ns: int, mtime_ns: int = 0) -> None:
        self.st_ino, self.st_size, self.st_mtime_ns, self.st_ctime_ns = 1, 7, mtime_ns, ctime_ns


def at(ctime_ns: int, mtime_ns: int = 0) -> os.stat_result:
    return cast("os.stat_result", At(ctime_ns, mtime_ns))


def test_a_file_is_what_it_was_while_its_ctime_is_of_the_moment_that_it_was_published() -> None:
    now = 10**18
    moment = moment_of(at(now), at(now + 1000))
    assert moment is not None
    assert moment == Moment(now, 1000)
    file = published_at(moment, "f", 1, 7, 0, "root")
    assert file is not None
    assert [file.holds(at(now + later)) for later in (-1, 0, 500, 1000, 1001)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not file.holds(at(now, 1))
    assert moment_of(at(now), at(now - 1)) is None
    assert moment_of(at(now), at(now + LONGEST_SPAN)) is None


@pytest.mark.parametrize(("away", "taken"), [(-SETTLED, True), (1 - SETTLED, False), (SETTLED, False)])
def test_a_file_that_could_be_written_to_unnoticed_is_not_remembered(away: int, taken: bool) -> None:
    now = 10**18
    assert (published_at(Moment(now, 5), "f", 1, 7, now + away, "root") is not None) == taken
    assert published_at(Moment(now, 5), "f", 1, 7, now + 5 + SETTLED, "root") is not None
    assert (published("f", at(now, now + away), "root") is not None) == (abs(away) >= SETTLED)
