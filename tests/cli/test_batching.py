"""Runs of a batch: when they wait, when they are refused, how they are stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.batches import events_in, make_source, outcomes, write_batch
from support.commands import RunningReceiver, Tdx, events_of
from support.content import MIB

NOWHERE = "no..such..peer"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.toml"


def waiting(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    event = next(events_of(process))
    assert event["event"] == "waiting"
    return event


def test_a_run_waits_its_share_of_the_jitter_always_the_same(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    write_batch(file, [{"sources": ["source/*"]}], 'jitter = "10h"', peer=receiver.address, conflict="skip")
    told: list[float] = []
    for _ in range(2):
        process = tdx.start("batch", file, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            told.append(waiting(process)["seconds"])
            process.send_signal(signal.SIGTERM)
            summary = events_in(process.stdout.read().decode())[-1]
            said = process.stderr.read().decode()
        assert process.returncode == 75
        assert said == "tdx: nightly: stopped by SIGTERM; what arrived is kept: run the batch again\n"
        (part,) = summary["items"]
        assert (part["outcome"], part["exit_code"], part["error"]["code"]) == ("not begun", 75, "interrupted")
    assert told[0] == told[1]
    assert 0 < told[0] < 36_000
    assert receiver.visible() == []
    assert tdx("batch", file, "--now").returncode == 0
    assert receiver.visible() == ["big", "small"]


def test_what_a_run_waits_for_is_said(tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path) -> None:
    write_batch(file, [{"sources": ["source/big"]}], "jitter = 0.1", peer=receiver.address, conflict="skip")
    done = tdx("batch", file)
    assert done.returncode == 0
    assert re.fullmatch(r"tdx: nightly: begins in [^;]+; --now would begin at once\n", done.stderr)
    assert tdx("batch", file, "-q").stderr == ""


def test_a_second_run_ends_at_once_with_75_and_says_who_is_at_it(
    tdx: Tdx, receiver: RunningReceiver, source: Path, file: Path
) -> None:
    write_batch(file, [{"sources": ["source/*"]}], 'jitter = "10h"', peer=receiver.address, conflict="skip")
    holder = tdx.start("batch", file, "--json", stdout=subprocess.PIPE)
    with holder:
        waiting(holder)
        done = tdx("batch", file, "--now")
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.startswith(
            f"tdx: {file}: is being run already by process {holder.pid} on {os.uname().nodename} since "
        )
        assert tdx("batch", file, "--dry-run").returncode == 0
        holder.kill()
    assert receiver.visible() == []
    assert tdx("batch", file, "--now").returncode == 0


# --- stopping -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_75_and_tells_what_had_not_begun(
    number: signal.Signals, tdx: Tdx, receiver: RunningReceiver, second: RunningReceiver, file: Path
) -> None:
    source = file.parent / "big"
    source.write_bytes(os.urandom(20 * MIB))
    peers = [receiver.address, second.address]
    items: list[dict[str, Any]] = [
        {"sources": ["big"], "limit_rate": "10M"},
        {"sources": ["big"], "into": "b"},
    ]
    write_batch(file, items, peers=peers, conflict="overwrite")
    process = tdx.start("batch", file, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stderr is not None
        events = events_of(process)
        seen = dict.fromkeys(peers, 0)
        for event in events:
            if event["event"] == "progress":
                seen[event["peer"]] = event["sent_bytes"]
            if min(seen.values()) > 9 * MIB:
                break
        process.send_signal(number)
        *rest, summary = events
        said = process.stderr.read().decode()
    assert process.returncode == 75
    assert said == f"tdx: nightly: stopped by {number.name}; what arrived is kept: run the batch again\n"
    assert {event["peer"] for event in rest if event["event"] == "failed"} == set(peers)
    assert {(part["item"], part["outcome"]) for part in summary["items"]} == {
        ("a", "stopped"),
        ("b", "not begun"),
    }
    assert summary["exit_code"] == 75
    assert receiver.visible() == second.visible() == []
    again = tdx("batch", file, "--json")
    assert {outcome for outcome, _ in outcomes(again).values()} == {"done"}
    resumed = [part["resumed_bytes"] for part in events_in(again.stdout)[-1]["items"]]
    assert min(resumed[:2]) >= 4 * MIB
    for each in (receiver, second):
        assert each.visible() == ["b/big", "big"]
        assert (each.folder / "big").read_bytes() == source.read_bytes()
        assert each.partials() == []


@pytest.mark.parametrize("of", ["file", "flag", "item"])
def test_what_takes_too_long_is_75(of: str, tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    (file.parent / "big").write_bytes(os.urandom(20 * MIB))
    slow: dict[str, Any] = {"sources": ["big"], "limit_rate": "1M"}
    if of == "item":
        slow["timeout"] = "1s"
    items = [slow, {"sources": ["big"], "into": "b"}]
    top = 'timeout = "1s"' if of == "file" else 'timeout = "1h"'
    write_batch(file, items, top, peer=receiver.address, conflict="overwrite")
    done = tdx("batch", file, "--json", *(("--timeout", "1s") if of == "flag" else ()))
    assert done.returncode == 75
    ended = [outcome for outcome, _ in outcomes(done).values()]
    assert ended == ["stopped", "done" if of == "item" else "not begun"]
    about = "a: big" if of == "item" else "nightly"
    assert done.stderr == f"tdx: {about}: not done after 1.0 s; what arrived is kept: run the batch again\n"


def test_a_second_signal_ends_it_at_once(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    (file.parent / "big").write_bytes(os.urandom(20 * MIB))
    write_batch(file, [{"sources": ["big"], "limit_rate": "1M"}], peer=receiver.address, conflict="skip")
    process = tdx.start("batch", file, "--json", stdout=subprocess.PIPE)
    with process:
        next(event for event in events_of(process) if event["event"] == "progress")
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 75


# --- several at a time ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "flag"])
def test_several_items_are_on_their_way_at_once(
    how: str, tdx: Tdx, receiver: RunningReceiver, file: Path
) -> None:
    (file.parent / "big").write_bytes(os.urandom(9 * MIB))
    items: list[dict[str, Any]] = [{"sources": ["big"], "into": name, "limit_rate": "5M"} for name in "abc"]
    write_batch(file, items, "parallel = 3" if how == "file" else "", peer=receiver.address, conflict="skip")
    done = tdx("batch", file, "--json", *(("--parallel", "3") if how == "flag" else ()))
    assert done.returncode == 0
    kinds = [event["event"] for event in events_in(done.stdout) if event["event"] in {"started", "done"}]
    assert kinds == ["started"] * 3 + ["done"] * 3
    one = tdx("batch", file, "--json", "--parallel", "1")
    kinds = [event["event"] for event in events_in(one.stdout) if event["event"] in {"started", "skipped"}]
    assert kinds == ["started", "skipped"] * 3
