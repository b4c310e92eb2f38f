from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from support.commands import PATIENCE, RunningReceiver, Tdx, events_of, parsed
from tdx.integrity import MIB, Root
from tdx.store.roots import Roots


def leave_partial(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    """A partial that nobody is using any more, by ending its push and its receiver."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(12 * MIB))
    done = tdx("push", source, receiver.address, "--limit-rate", "10M", "--timeout", "900ms", "-q")
    assert done.returncode == 75
    assert len(receiver.partials()) == 1
    assert receiver.stop() == 0


def test_a_partial_is_removed_once_it_is_old_enough(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    leave_partial(tdx, receiver, tmp_path)
    kept = tdx("gc", "--dir", receiver.folder, "--json")
    assert (kept.returncode, kept.stderr) == (0, "")
    assert parsed(kept.stdout) == [
        {"event": "summary", "uploads": 0, "bytes": 0, "digest_logs": 0, "roots": 0}
    ]
    assert len(receiver.partials()) == 1
    removed = tdx("gc", "--dir", receiver.folder, "--older-than", "0", "--json")
    assert (removed.returncode, removed.stderr) == (0, "")
    first, summary = parsed(removed.stdout)
    assert list(first) == ["event", "upload", "name", "bytes", "idle_seconds"]
    assert (first["event"], first["name"]) == ("removed", "big")
    assert first["bytes"] >= 4 * MIB
    assert (summary["uploads"], summary["bytes"]) == (1, first["bytes"])
    assert receiver.partials() == []


def test_people_get_a_line_for_each(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    leave_partial(tdx, receiver, tmp_path)
    lines = tdx("gc", "--dir", receiver.folder, "--older-than", "0").stdout.splitlines()
    assert re.fullmatch(r"removed big: [0-9.]+ MiB, idle for [0-9.:]+( s)?", lines[0])
    assert lines[1].startswith("1 uploads (")


def test_an_upload_in_use_is_never_removed(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(12 * MIB))
    process = tdx.start(
        "push", source, receiver.address, "--limit-rate", "8M", "--json", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        next(event for event in events_of(process) if event.get("sent_bytes"))
        done = tdx("gc", "--dir", receiver.folder, "--older-than", "0", "--json")
        assert parsed(done.stdout)[-1]["uploads"] == 0
        assert list(events_of(process))[-1]["event"] == "done"
        assert process.wait(PATIENCE) == 0
    assert receiver.visible() == ["big"]


def test_old_digests_are_removed_and_new_ones_kept(tdx: Tdx, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "digests"
    folder.mkdir(parents=True)
    for name, age in (("old", 40 * 86400), ("new", 20 * 86400)):
        (folder / f"{name}.digests").write_text("")
        os.utime(folder / f"{name}.digests", (time.time() - age, time.time() - age))
    roots = Roots(tmp_path / "state", time.time() - 50 * 86400)
    roots.remember((folder / "new.digests").stat(), str(Root.over([], 0, 4 * MIB)))
    roots.close()
    said = "0 uploads (0 B), the digests of {} sources and the roots of {} files removed\n"
    done = tdx("gc")
    assert (done.returncode, done.stdout) == (0, said.format(1, 0))
    assert [path.name for path in folder.iterdir()] == ["new.digests"]
    assert tdx("gc", "--older-than", "45d").stdout == said.format(0, 1)


def test_a_folder_that_never_received_is_left_as_it_is(tdx: Tdx, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    assert tdx("gc", "--dir", folder).returncode == 0
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_not_there_is_78(tdx: Tdx) -> None:
    done = tdx("gc", "--dir", "/no/such/folder")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "tdx: /no/such/folder: is no folder\n"
