from __future__ import annotations

import re
import time
from pathlib import Path

from support.commands import RunningReceiver, Tdx, parsed
from support.inboxes import ArrivedIn


def test_people_get_a_table_and_scripts_an_object_for_each(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    (tmp_path / "first").write_bytes(b"1" * 2048)
    (tmp_path / "second").write_bytes(b"2")
    before = time.time()
    for name in ("first", "second"):
        assert tdx("push", tmp_path / name, receiver.address, "-q").returncode == 0
    done = tdx("inbox", "--dir", receiver.folder)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["RECEIVED", "SIZE", "VERIFIED", "FROM", "PATH"]
    assert [row.split()[2:] for row in rows] == [
        ["2.0", "KiB", "yes", rows[0].split()[5], "first"],
        ["1", "B", "yes", rows[0].split()[5], "second"],
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d  ", row) for row in rows)
    done = tdx("inbox", "--dir", receiver.folder, "--json")
    first, second = parsed(done.stdout)
    assert list(first) == ["event", "path", "size", "published_at", "owner", "verified", "root"]
    assert (first["event"], first["path"], first["size"], first["verified"]) == (
        "arrived",
        "first",
        2048,
        True,
    )
    assert before <= first["published_at"] <= second["published_at"] <= time.time()
    assert first["root"].startswith("xxh3-128:4194304:")


def test_nothing_of_the_receivers_own_is_shown_and_nothing_is_a_line_on_standard_error(
    tdx: Tdx, receiver: RunningReceiver
) -> None:
    (receiver.folder / "by hand").write_bytes(b"content")
    done = tdx("inbox", "--dir", receiver.folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("tdx: nothing has arrived in ")


def test_without_a_receiver_the_configuration_names_the_folder(tdx: Tdx, tmp_path: Path) -> None:
    arrived = ArrivedIn(tmp_path / "inbox", tmp_path / "other state")
    arrived.arrive("bad\nname", b"content")
    config = tmp_path / "tdx.toml"
    config.write_text('dir = "inbox"\nstate = "other state"\n')
    done = tdx("inbox", "--config", config)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].endswith("bad\N{REPLACEMENT CHARACTER}name")


def test_no_folder_at_all_is_an_error_of_usage(tdx: Tdx) -> None:
    for command in ("inbox", "get"):
        done = tdx(command)
        assert (done.returncode, done.stdout) == (64, "")
        assert done.stderr.startswith("tdx: no folder: give --dir DIR")


def test_a_folder_that_is_not_there_is_78(tdx: Tdx) -> None:
    for command in ("inbox", "get"):
        done = tdx(command, "--dir", "/no/such/folder")
        assert (done.returncode, done.stderr) == (78, "tdx: /no/such/folder: is no folder\n")


def test_long_owners_are_cut_for_people_and_expired_receipts_known_as_such(tdx: Tdx, tmp_path: Path) -> None:
    arrived = ArrivedIn(tmp_path / "inbox", tmp_path / "state")
    arrived.arrive("a", b"content")
    receipts = arrived.receipts()
    with receipts._database.cursor() as cursor:
        cursor.execute("UPDATE files SET owner = ?", ("tls:" + "f" * 64,))
    receipts.expire(1e12)
    receipts.close()
    done = tdx("inbox", "--dir", arrived.folder)
    assert re.search(r" -\s+tls:f{20}…\s+a$", done.stdout)
