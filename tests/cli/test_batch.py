"""The real command with real receivers: what a batch pushes, tells and ends with."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.batches import events_in, make_source, outcomes, write_batch
from support.commands import PATIENCE, RunningReceiver, Tdx
from support.content import MIB

NOWHERE = "no..such..peer"


PART_KEYS = [
    *("item", "peer", "outcome", "files", "done", "identical", "skipped", "failed"),
    *("folders", "links", "refused", "sent_bytes", "resumed_bytes", "reused_bytes"),
    *("seconds", "error", "exit_code", "stages", "bottleneck", "retries"),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.toml"


def has_all(receiver: RunningReceiver, source: Path, prefix: str = "") -> bool:
    """Whether the receiver has the files of this folder, under the folder's name."""
    expected = {
        f"{prefix}{source.name}/{path.relative_to(source)}": path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    return {name: (receiver.folder / name).read_bytes() for name in receiver.visible()} == expected


# --- what arrives and what is told --------------------------------------------------


def test_every_item_arrives_and_a_table_says_so(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    items: list[dict[str, Any]] = [
        {"name": "tree", "sources": ["source"], "recursive": True, "into": "one"},
        {"name": "big ones", "sources": ["source/b*"], "into": "two", "as": "of.bin"},
    ]
    write_batch(file, items, peer=receiver.address, conflict="overwrite")
    done = tdx("batch", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert receiver.visible() == ["one/source/big", "one/source/small", "one/source/sub/deep", "two/of.bin"]
    assert (receiver.folder / "two/of.bin").read_bytes() == (source / "big").read_bytes()
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["ITEM", "PEER", "FILES", "SENT", "OUTCOME", "SECONDS"]
    assert [re.split(r" {2,}", row)[:5] for row in rows] == [
        ["tree", receiver.address, "3", "5.0 MiB", "done"],
        ["big ones", receiver.address, "1", "5.0 MiB", "done"],
    ]
    assert len({len(row) for row in done.stdout.splitlines()}) == 1
    again = tdx("batch", file)
    assert (again.returncode, again.stdout.count("  unchanged  ")) == (0, 2)


def test_events_say_which_item_and_which_peer_and_the_last_sums_up(
    tdx: Tdx, receiver: RunningReceiver, second: RunningReceiver, source: Path, file: Path
) -> None:
    peers = [receiver.address, second.address]
    write_batch(file, [{"sources": ["source/**"]}], peers=peers, conflict="error")
    done = tdx("batch", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    *events, summary = events_in(done.stdout)
    for peer in peers:
        of_peer = [event for event in events if event["peer"] == peer]
        assert {event["item"] for event in of_peer} == {"a"}
        for kind in ("started", "done"):
            assert sorted(event["name"] for event in of_peer if event["event"] == kind) == [
                *("big", "small", "sub/deep")
            ]
    assert {key: summary[key] for key in ("event", "batch", "files", "done", "failed", "exit_code")} == {
        "event": "summary",
        "batch": "nightly",
        "files": 6,
        "done": 6,
        "failed": 0,
        "exit_code": 0,
    }
    assert summary["sent_bytes"] == 2 * (5 * MIB + 1000)
    assert [list(part) for part in summary["items"]] == [PART_KEYS, PART_KEYS]
    assert [(part["item"], part["peer"], part["outcome"], part["files"]) for part in summary["items"]] == [
        ("a", peer, "done", 3) for peer in peers
    ]
    again = tdx("batch", file, "--json")
    assert outcomes(again) == {("a", peer): ("unchanged", 0) for peer in peers}


def test_quiet_says_nothing_but_errors(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    items: list[dict[str, Any]] = [{"sources": ["source/*"]}, {"sources": ["missing"]}]
    write_batch(file, items, peer=receiver.address, conflict="skip")
    assert tdx("batch", file, "-q", "--only", "a").stdout == ""
    done = tdx("batch", file, "-q")
    assert (done.returncode, done.stdout) == (66, "")
    assert done.stderr == f"tdx: b: missing: {file.parent}/missing: is not there\n"


def test_links_and_folders_that_are_left_out_are_noted(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    (source / "link").symlink_to("big")
    write_batch(
        file,
        [{"sources": ["source/*"]}, {"sources": ["source"], "recursive": True}],
        peer=receiver.address,
        conflict="skip",
    )
    done = tdx("batch", file)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"tdx: a: {source}/sub is a folder, and the item is not recursive; left out",
        f"tdx: b: {source}/link is a symbolic link; left out",
    ]


def test_conflict_modes_are_those_of_each_item(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    for name in "abcd":
        (receiver.folder / name).mkdir()
        (receiver.folder / name / "small").write_text("there")
    modes = ("skip", "overwrite", "rename", "error")
    items: list[dict[str, Any]] = [
        {"sources": ["source/small"], "into": name, "conflict": mode}
        for name, mode in zip("abcd", modes, strict=True)
    ]
    write_batch(file, items, peer=receiver.address)
    done = tdx("batch", file, "--json")
    assert [code for _, code in outcomes(done).values()] == [0, 0, 0, 73]
    assert (receiver.folder / "a" / "small").read_text() == "there"
    assert (receiver.folder / "b" / "small").read_bytes() == (source / "small").read_bytes()
    assert (receiver.folder / "c" / "small").read_text() == "there"
    assert (receiver.folder / "c" / "small (1)").read_bytes() == (source / "small").read_bytes()
    assert (receiver.folder / "d" / "small").read_text() == "there"


# --- what goes wrong ----------------------------------------------------------------


def test_a_failing_item_does_not_stop_the_others_and_the_worst_code_counts(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    (source / "twin").mkdir()
    (source / "twin" / "small").write_text("another")
    items: list[dict[str, Any]] = [
        {"sources": ["source/gone*"]},
        {"sources": ["source/small", "source/twin/small"]},
        {"sources": ["source/small"], "peer": NOWHERE},
        {"sources": ["source/gone*", "source/small"], "into": "d"},
        {"sources": ["source/gone*"], "optional": True},
        {"sources": ["source/big"]},
    ]
    write_batch(file, items, peer=receiver.address, conflict="overwrite")
    done = tdx("batch", file, "--json")
    assert done.returncode == 66
    assert list(outcomes(done).values()) == [
        ("failed", 66),
        ("failed", 64),
        ("failed", 68),
        ("failed", 66),
        ("nothing", 0),
        ("done", 0),
    ]
    assert receiver.visible() == ["big", "d/small"]
    assert len(done.stderr.splitlines()) == 4
    assert "failed, 1 of 2 files (66)" in tdx("batch", file).stdout


def test_a_peer_that_cannot_be_reached_is_not_asked_for_by_every_item(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    items: list[dict[str, Any]] = [{"sources": ["source/**"]} for _ in range(3)]
    peers = [NOWHERE, receiver.address]
    write_batch(file, items, peers=peers, conflict="skip")
    done = tdx("batch", file, "--json")
    assert outcomes(done) == {
        **{(name, f"{NOWHERE}:8390"): ("failed", 68) for name in "abc"},
        **{(name, receiver.address): ("done" if name == "a" else "unchanged", 0) for name in "abc"},
    }
    tried, *rest = done.stderr.splitlines()
    assert tried.startswith(f"tdx: a at {NOWHERE}:8390: ")
    assert "not tried again" not in tried
    assert [line.partition(":")[2].partition(" at ")[0] for line in rest] == [" b", " c"]
    assert all(line.endswith(" (not tried again)") for line in rest)


def test_a_peer_that_falls_silent_ends_for_itself(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        items: list[dict[str, Any]] = [
            {"sources": ["source"], "recursive": True, "stall_timeout": 3, "retries": 0}
        ]
        write_batch(file, items, peers=[mute, receiver.address], conflict="skip")
        done = tdx("batch", file, "--json")
    assert outcomes(done) == {("a", mute): ("failed", 75), ("a", receiver.address): ("done", 0)}
    assert has_all(receiver, source)


@pytest.mark.parametrize("flags", [(), ("--json",), ("--dry-run",)])
def test_a_batch_that_does_not_say_its_conflict_mode_is_78(
    flags: tuple[str, ...], tdx: Tdx, file: Path
) -> None:
    write_batch(file, [{"sources": ["x"], "peer": "nas"}])
    done = tdx("batch", file, *flags)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        f'tdx: {file}: item "a": conflict is missing: a batch says what is done where a name is taken '
        "(rename, overwrite, skip, error), here or under [defaults]\n"
    )


def test_what_is_no_pattern_is_78(tdx: Tdx, file: Path) -> None:
    write_batch(file, [{"sources": ["x"], "exclude": ["!"]}], peer="nas", conflict="skip")
    done = tdx("batch", file)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f'tdx: {file}: item "a": ')


def test_a_tree_arrives_with_its_empty_folders_and_links(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    (source / "empty").mkdir()
    (source / "link").symlink_to("big")
    wanted = {"sources": ["source"], "recursive": True, "links": "preserve"}
    write_batch(file, [wanted], peer=receiver.address, conflict="overwrite")
    done = tdx("batch", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert (receiver.folder / "source" / "empty").is_dir()
    assert (receiver.folder / "source" / "link").readlink() == Path("big")
    summary = events_in(done.stdout)[-1]
    assert (summary["files"], summary["folders"], summary["links"], summary["refused"]) == (3, 3, 1, 0)


def test_what_links_lead_to_arrives_and_what_is_excluded_does_not(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    (source / "link").symlink_to("big")
    write_batch(
        file,
        [
            {
                "sources": ["source"],
                "recursive": True,
                "links": "follow",
                "exclude": ["b*"],
                "include": ["big"],
            }
        ],
        peer=receiver.address,
        conflict="overwrite",
        links="follow",
    )
    (source / "sub" / "bad").write_bytes(b"x")
    done = tdx("batch", file, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert receiver.visible() == ["source/big", "source/link", "source/small", "source/sub/deep"]
    assert events_in(done.stdout)[-1]["files"] == 4


@pytest.mark.parametrize(
    ("peers", "problem"),
    [
        (["a b"], "peer is not a peer: 'a b'"),
        (["nas", "nas:8390"], "peers lists one of them twice"),
        (["nas:0"], "peer is not a port"),
    ],
)
def test_what_cannot_be_a_peer_is_78(peers: list[str], problem: str, tdx: Tdx, file: Path) -> None:
    write_batch(file, [{"sources": ["x"]}, {"sources": ["x"], "peers": peers}], peer="ok", conflict="skip")
    done = tdx("batch", file, "--only", "a")
    assert (done.returncode, done.stdout) == (78, "")
    assert f'{file}: item "b": {problem}' in done.stderr


def test_a_file_that_is_not_there_is_78(tdx: Tdx, file: Path) -> None:
    done = tdx("batch", file)
    assert (done.returncode, done.stderr) == (
        78,
        f"tdx: cannot read the batch {file}: No such file or directory\n",
    )


BROKEN = """
import sys
from tdx_cli import batching
from tdx_cli.main import run
real = batching.find
def find(item):
    if item.name == "a":
        raise RuntimeError("broken")
    if item.name == "b":
        raise OSError(24, "Too many open files")
    return real(item)
batching.find = find
sys.exit(run(sys.argv[1:]))
"""


def test_what_one_item_meets_unexpectedly_is_no_matter_for_the_others(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    write_batch(file, [{"sources": ["source/**"]}] * 3, peer=receiver.address, conflict="skip")
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, "batch", str(file), "--json"],
        env=tdx.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 70
    assert list(outcomes(done).values()) == [("failed", 70), ("failed", 74), ("done", 0)]
    assert done.stderr.splitlines() == [
        "tdx: this should not happen: RuntimeError: broken (TDX_DEBUG=1 shows where)",
        "tdx: b: Too many open files",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_what_cannot_be_told_is_74(
    flags: tuple[str, ...], tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    write_batch(file, [{"sources": ["source/*"]}] * 2, peer=receiver.address, conflict="skip")
    with Path("/dev/full").open("w") as full:
        done = tdx("batch", file, *flags, stdout=full)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1] == "tdx: No space left on device: standard output"
