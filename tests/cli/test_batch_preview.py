"""Choosing items of a batch, and looking at them first."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from support.batches import events_in, make_source, outcomes, write_batch
from support.commands import RunningReceiver, Tdx

NOWHERE = "no..such..peer"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.toml"


def test_only_some_items_are_run(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    items: list[dict[str, Any]] = [{"sources": ["source/*"], "into": name} for name in "abc"]
    write_batch(file, items, peer=receiver.address, conflict="skip")
    done = tdx("batch", file, "--only", "c", "--only", "a", "--json")
    assert [item for item, _ in outcomes(done)] == ["a", "c"]
    assert {name.partition("/")[0] for name in receiver.visible()} == {"a", "c"}


def test_an_item_that_is_not_there_is_64(tdx: Tdx, file: Path) -> None:
    write_batch(file, [{"sources": ["x"]}], peer="nas", conflict="skip")
    done = tdx("batch", file, "--only", "a", "--only", "z")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == f"tdx: {file}: no item is called 'z' (there are a)\n"


def test_a_dry_run_says_what_would_be_pushed_and_touches_nothing(
    tdx: Tdx, source: Path, file: Path, tmp_path: Path
) -> None:
    (source / "link").symlink_to("big")
    items: list[dict[str, Any]] = [
        {"sources": ["source"], "recursive": True, "peers": [NOWHERE, "nas"], "into": "x"},
        {"sources": ["gone"], "optional": True, "conflict": "error"},
    ]
    write_batch(file, items, 'jitter = "1d"', peer=NOWHERE, conflict="skip")
    done = tdx("batch", file, "--dry-run")
    assert (done.returncode, done.stderr) == (0, f"tdx: a: {source}/link is a symbolic link; left out\n")
    *lines, heading, first, second, third = done.stdout.splitlines()
    both = f"{NOWHERE}:8390, nas:8390"
    assert lines == [
        f"{source}/big -> x/source/big at {both}  5.0 MiB",
        f"{source}/small -> x/source/small at {both}  1000 B",
        f"{source}/sub/deep -> x/source/sub/deep at {both}  0 B",
    ]
    assert heading.split() == ["ITEM", "PEER", "FILES", "BYTES", "CONFLICT"]
    assert [re.split(r" {2,}", row) for row in (first, second, third)] == [
        ["a", f"{NOWHERE}:8390", "3", "5.0 MiB", "skip"],
        ["a", "nas:8390", "3", "5.0 MiB", "skip"],
        ["b", f"{NOWHERE}:8390", "0", "0 B", "error"],
    ]
    assert not (tmp_path / "state").exists()


def test_a_dry_run_tells_scripts_the_same(tdx: Tdx, source: Path, file: Path) -> None:
    items: list[dict[str, Any]] = [
        {"sources": ["source/small"], "peers": ["nas", "desk"]},
        {"sources": ["source/gone"]},
        {
            "sources": ["source/small", "source/sub/../small", "source/*/../small"],
            "as": "x",
            "recursive": True,
        },
    ]
    items.pop()
    write_batch(file, items, peer="nas", conflict="skip")
    done = tdx("batch", file, "--dry-run", "--json")
    assert done.returncode == 66
    assert done.stderr == f"tdx: b: {source}/gone: is not there\n"
    *events, summary = events_in(done.stdout)
    assert [(event["event"], event["item"], event["peer"], event["name"]) for event in events] == [
        ("planned", "a", "nas:8390", "small"),
        ("planned", "a", "desk:8390", "small"),
        ("planned", "b", "nas:8390", "gone"),
    ]
    assert (events[0]["size"], events[0]["source"], events[0]["error"]) == (1000, f"{source}/small", None)
    assert events[2]["error"]["exit_code"] == 66
    assert summary == {
        "event": "plan",
        "batch": "nightly",
        "items": [
            {
                "item": "a",
                "peer": peer,
                "conflict": "skip",
                "files": 1,
                "folders": 0,
                "links": 0,
                "bytes": 1000,
                "exit_code": 0,
            }
            for peer in ("nas:8390", "desk:8390")
        ]
        + [
            {
                "item": "b",
                "peer": "nas:8390",
                "conflict": "skip",
                "files": 0,
                "folders": 0,
                "links": 0,
                "bytes": 0,
                "exit_code": 66,
            }
        ],
        "exit_code": 66,
    }


def test_a_dry_run_names_sources_that_contradict_each_other(tdx: Tdx, source: Path, file: Path) -> None:
    (source / "twin").mkdir()
    (source / "twin" / "small").write_text("another")
    write_batch(file, [{"sources": ["source/small", "source/twin/small"]}], peer="nas", conflict="skip")
    done = tdx("batch", file, "--dry-run", "-q")
    assert (done.returncode, done.stdout) == (64, "")
    assert "would both be small at the peer" in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that is no file")
def test_a_dry_run_finds_what_cannot_be_read(tdx: Tdx, source: Path, file: Path) -> None:
    os.mkfifo(source / "pipe")
    write_batch(file, [{"sources": ["source/pipe"]}], peer="nas", conflict="skip")
    done = tdx("batch", file, "--dry-run")
    assert done.returncode == 66
    assert "is a named pipe; only regular files can be read" in done.stderr
