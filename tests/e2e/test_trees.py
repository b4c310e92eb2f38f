"""Trees by ``tdx push -r`` into ``tdx serve``: what arrives, and what a second run costs."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from support.content import MIB, random_file
from support.processes import Processes, Push, Receiver, wait_until
from support.trees import described, make_tree

FILES = 10_000


def same(source: Path, copy: Path) -> None:
    """Content by diff, and all else that is to arrive."""
    command = ["diff", "-r", "--no-dereference", str(source), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert described(copy) == described(source)


def counts(end: dict[str, object]) -> list[object]:
    return [end[key] for key in ("files", "done", "identical", "failed", "refused", "sent_bytes")]


def size_of(top: Path) -> int:
    return sum(path.stat().st_size for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def test_ten_thousand_mixed_files_arrive_as_they_are_and_a_second_run_sends_nothing(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    make_tree(area / "tree", FILES, random.Random(1))
    command = ("-r", "--links", "preserve", area / "tree", receiver.address)
    first = processes.push(*command).ends(0, "summary")
    assert counts(first) == [FILES, FILES, 0, 0, 0, size_of(area / "tree")]
    same(area / "tree", receiver.folder / "tree")
    asked = receiver.scrape()
    second = processes.push(*command).ends(0, "summary")
    assert counts(second) == [FILES, 0, FILES, 0, 0, 0]
    assert (second["folders"], second["links"]) == (first["folders"], first["links"]) == (501, 200)
    assert described(receiver.folder / "tree") == described(area / "tree")
    requests = {
        name: value - asked.get(name, 0)
        for name, value in receiver.scrape().items()
        if name.startswith("tdx_http_requests_total") and value != asked.get(name, 0)
    }
    assert sum(requests.values()) <= 4, requests
    assert receiver.partials == []


@pytest.mark.parametrize("conflict", ["rename", "overwrite"])
def test_of_a_tree_that_has_changed_only_the_changes_travel(
    processes: Processes, receiver: Receiver, area: Path, conflict: str
) -> None:
    tree = area / "tree"
    make_tree(tree, 200, random.Random(2))
    command = ("-r", "--links", "preserve", "--conflict", conflict, tree, receiver.address)
    processes.push(*command).ends(0, "summary")
    files = sorted(path for path in tree.rglob("file *") if path.stat().st_size > 1)
    changed, renamed, touched = files[10], files[20], files[30]
    before = changed.stat()
    changed.chmod(0o644)
    changed.write_bytes(os.urandom(before.st_size))
    changed.chmod(before.st_mode & 0o777)
    # As rsync would miss it: of the same size, under the old time.
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    renamed.rename(renamed.with_name("another name"))
    touched.chmod(0o640)
    os.utime(touched, ns=(5, 5))
    (tree / "new folder").mkdir()
    end = processes.push(*command).ends(0, "summary")
    sent = before.st_size + (renamed.parent / "another name").stat().st_size
    assert counts(end) == [200, 2, 198, 0, 0, sent]
    if conflict == "overwrite":
        old = receiver.folder / "tree" / renamed.relative_to(tree)
        assert old.read_bytes() == (renamed.parent / "another name").read_bytes()
        old.unlink()
        os.utime(old.parent, ns=(0, renamed.parent.stat().st_mtime_ns))
        same(tree, receiver.folder / "tree")
    else:
        copy = receiver.folder / "tree" / changed.relative_to(tree)
        assert copy.with_name(copy.name + " (1)").read_bytes() == changed.read_bytes()
        assert copy.read_bytes() != changed.read_bytes()
    assert processes.push(*command).ends(0, "summary")["sent_bytes"] == 0


def has_published(receiver: Receiver, push: Push, least: int) -> None:
    def enough() -> bool:
        return len(receiver.published) >= least or not push.running

    wait_until(enough, f"{least} files have arrived")
    assert push.running, push.log()


def test_after_a_run_that_was_killed_another_sends_only_the_rest(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    tree = area / "tree"
    tree.mkdir()
    for number in range(60):
        random_file(tree / f"f{number:02}", MIB)
    push = processes.push("-r", tree, receiver.address, "--limit-rate", "20M")
    has_published(receiver, push, 15)
    push.kill()
    receiver.await_silence()
    there = sum(name.startswith("tree/") for name in receiver.published)
    end = processes.push("-r", tree, receiver.address).ends(0, "summary")
    assert counts(end) == [60, 60 - there, there, 0, 0, (60 - there) * MIB]
    same(tree, receiver.folder / "tree")


def test_files_and_folders_that_go_away_while_they_are_pushed_are_told_and_the_rest_arrives(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    tree = area / "tree"
    for folder in range(30):
        (tree / f"d{folder:02}").mkdir(parents=True)
        for number in range(40):
            random_file(tree / f"d{folder:02}" / f"f{number:02}", 20_000)
        random_file(tree / f"d{folder:02}" / "large", MIB // 2)
    push = processes.push("-r", tree, receiver.address, "--limit-rate", "8M")
    has_published(receiver, push, 60)
    (tree / "d29").rename(area / "moved")
    gone = [
        tree / f"d{folder:02}" / f"f{number:02}" for folder in range(10, 29) for number in range(0, 40, 3)
    ]
    for path in gone:
        path.unlink()
    end = push.ends(66, "summary")
    failed = {event["name"] for event in push.events if event["event"] == "failed"}
    expected = {str(path.relative_to(area)) for path in gone}
    assert {name for name in failed if "d29" not in name} <= expected
    assert any("d29" in name for name in failed)
    assert len(failed) == end["failed"] > 100
    assert push.stderr.count("No such file or directory") >= len(failed) - end["refused"]
    assert "Traceback" not in push.stderr
    for path in tree.rglob("*"):
        if path.is_file():
            assert (receiver.folder / path.relative_to(area)).read_bytes() == path.read_bytes()
    assert receiver.partials == []
