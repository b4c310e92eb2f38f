"""``tdx push -r``: folders, links, patterns, and what a second run says."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx, parsed
from support.trees import described


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a.txt").write_text("a")
    (top / "sub" / "b.o").write_text("b")
    (top / "sub" / "deep" / "c.txt").write_text("c")
    (top / "link").symlink_to("sub/b.o")
    return top


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_folders_arrive_with_permissions_and_times(tdx: Tdx, receiver: RunningReceiver, tree: Path) -> None:
    (tree / "empty").chmod(0o710)
    for number, folder in enumerate((tree / "sub" / "deep", tree / "sub", tree / "empty", tree)):
        os.utime(folder, ns=(0, 1234567890_000000001 + number))
    assert tdx("push", "-r", "--links", "preserve", tree, receiver.address).returncode == 0
    assert described(receiver.folder / "tree") == described(tree)


def test_a_folder_that_may_not_be_written_to_here_may_be_there(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / "sub").chmod(0o555)
    try:
        assert tdx("push", "-r", tree, receiver.address).returncode == 0
    finally:
        (tree / "sub").chmod(0o755)
    assert stat.S_IMODE((receiver.folder / "tree" / "sub").stat().st_mode) == 0o755
    assert (receiver.folder / "tree" / "sub" / "b.o").read_text() == "b"


def test_a_second_run_says_nothing_but_the_sum_unless_asked(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    first = tdx("push", "-r", "--links", "preserve", tree, receiver.address).stdout.splitlines()
    assert [line.partition(" ")[0] for line in first] == [
        *("tree/a.txt", "tree/sub/b.o", "tree/sub/deep/c.txt", "3")
    ]
    assert first[-1].startswith("3 files: 3 done; 4 folders; 1 link; 3 B sent in ")
    second = tdx("push", "-r", "--links", "preserve", tree, receiver.address).stdout.splitlines()
    assert len(second) == 1
    assert second[0].startswith("3 files: 3 identical; 4 folders; 1 link; 0 B sent in ")
    third = tdx("push", "-r", "-v", "--links", "preserve", tree, receiver.address).stdout.splitlines()
    assert f"tree/a.txt: already at {receiver.address} as tree/a.txt, identical" in third
    assert f"tree/empty: folder already at {receiver.address} as tree/empty" in third
    assert f"tree/link: link already at {receiver.address} as tree/link" in third
    assert len(third) == 3 + 4 + 1 + 1
    assert tdx("push", "-r", "-q", tree, receiver.address).stdout == ""


def test_events_are_one_for_each_file_folder_and_link(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    for outcome, event in (("made", "done"), ("same", "identical")):
        done = tdx("push", "-r", "--links", "preserve", tree, receiver.address, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        events = parsed(done.stdout)
        parts = [each for each in events if each["event"] in ("folder", "link")]
        assert [list(each) for each in parts] == [["event", "name", "outcome", "path", "error"]] * 5
        assert {each["name"]: each["outcome"] for each in parts} == dict.fromkeys(
            ("tree", "tree/sub", "tree/sub/deep", "tree/empty", "tree/link"), outcome
        )
        files = ["tree/a.txt", "tree/sub/b.o", "tree/sub/deep/c.txt"]
        assert [each["name"] for each in events if each["event"] == "started"] == files
        assert sorted(each["name"] for each in events if each["event"] == event) == files
        assert [events[-1][key] for key in ("files", event, "folders", "links", "refused")] == [3, 3, 4, 1, 0]


def test_links_are_followed_where_that_is_asked_for(tdx: Tdx, receiver: RunningReceiver, tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to("..")
    done = tdx("push", "-r", "--links", "follow", tree, receiver.address)
    assert done.returncode == 0
    assert done.stderr == f"tdx: {tree}/sub/loop is a symbolic link to a folder that it lies in; left out\n"
    copy = receiver.folder / "tree" / "link"
    assert not copy.is_symlink()
    assert copy.read_text() == "b"


def test_links_that_lead_out_are_left_out_where_others_are_preserved(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / "out").symlink_to("../elsewhere")
    done = tdx("push", "-r", "--links", "preserve", tree, receiver.address)
    assert done.returncode == 0
    why = "is a symbolic link to ../elsewhere, which leads out of the pushed folder"
    assert done.stderr == f"tdx: {tree}/out {why}; left out\n"
    assert os.readlink(receiver.folder / "tree" / "link") == "sub/b.o"
    assert not (receiver.folder / "tree" / "out").is_symlink()


def test_a_name_that_no_receiver_stores_refuses_that_one_only(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / ".tdx").mkdir()
    (tree / "\udcff").write_text("no Unicode")
    done = tdx("push", "-r", tree, receiver.address, "--json")
    assert done.returncode == 73
    events = parsed(done.stdout)
    assert {each["name"] for each in events if (each.get("error") or {}).get("code") == "bad-name"} == {
        *("tree/.tdx", "tree/\udcff")
    }
    assert [events[-1][key] for key in ("done", "failed", "folders", "refused")] == [3, 1, 4, 1]
    assert (receiver.folder / "tree" / "empty").is_dir()


class TestPatterns:
    @pytest.mark.parametrize(
        ("flags", "arrives"),
        [
            (["--exclude", "*.o"], ["a.txt", "empty", "sub", "sub/deep", "sub/deep/c.txt"]),
            (["--exclude", "sub/"], ["a.txt", "empty"]),
            (["--exclude", "/deep"], ["a.txt", "empty", "sub", "sub/b.o", "sub/deep", "sub/deep/c.txt"]),
            (["--exclude", "*.txt", "--include", "/a.txt"], ["a.txt", "empty", "sub", "sub/b.o", "sub/deep"]),
            (["--include", "/a.txt", "--exclude", "*.txt"], ["empty", "sub", "sub/b.o", "sub/deep"]),
            (
                ["--exclude", "*", "--include", "*/", "--include", "*.txt"],
                ["a.txt", "empty", "sub", "sub/deep", "sub/deep/c.txt"],
            ),
            (["--exclude", "*", "--exclude-from", "{patterns}", "--exclude", "empty"], ["a.txt"]),
        ],
    )
    def test_what_they_leave_out_does_not_arrive_and_their_order_counts(
        self,
        tdx: Tdx,
        receiver: RunningReceiver,
        tree: Path,
        tmp_path: Path,
        flags: list[str],
        arrives: list[str],
    ) -> None:
        (tree / "link").unlink()
        (tmp_path / "patterns").write_text("# what is wanted\n!a.txt\n!empty\n")
        given = [flag.format(patterns=tmp_path / "patterns") for flag in flags]
        done = tdx("push", "-r", *given, tree, receiver.address)
        assert (done.returncode, done.stderr) == (0, "")
        assert below(receiver.folder / "tree") == arrives

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--exclude", "!"], "--exclude, --include: Invalid git pattern"),
            (["--exclude-from", "/no/such"], "/no/such: the patterns in it cannot be read: No such file"),
            (["--links", "both"], "invalid value for '--links'"),
        ],
    )
    def test_what_makes_no_sense_is_64(self, tdx: Tdx, tree: Path, flags: list[str], message: str) -> None:
        done = tdx("push", "-r", *flags, tree, "127.0.0.1:1")
        assert done.returncode == 64
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_read_is_66_and_the_rest_arrives(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / "empty").chmod(0)
    # Root may read everything, but for the capability that says so.
    through = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.getuid() == 0 else []
    try:
        done = tdx("push", "-r", tree, receiver.address, through=through)
    finally:
        (tree / "empty").chmod(0o755)
    assert done.returncode == 66
    assert f"tdx: tree/empty: {tree}/empty: cannot be read: Permission denied\n" in done.stderr
    assert (receiver.folder / "tree" / "sub" / "deep" / "c.txt").read_text() == "c"


@pytest.mark.parametrize("flags", [("-q",), ("--json",)])
def test_a_stop_before_anything_has_begun_is_told_and_summed_up(
    tdx: Tdx, tree: Path, flags: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # which never answers what it is asked
        peer = f"127.0.0.1:{listener.getsockname()[1]}"
        done = tdx("push", "-r", tree, peer, "--timeout", "300ms", *flags)
    assert done.returncode == 75
    assert done.stderr == "tdx: not done after 0.3 s; what arrived is kept: run again with --resume\n"
    assert [event["exit_code"] for event in parsed(done.stdout)] == ([75] if "--json" in flags else [])
