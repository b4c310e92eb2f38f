"""``tdx doctor``: lines for people, events for scripts, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx, parsed
from support.processes import wait_until

STEPS = ["name", "reach", "identity", "path", "permission", "space", "clock", "throughput"]


def test_every_step_is_a_line_with_its_state(tdx: Tdx, receiver: RunningReceiver) -> None:
    done = tdx("doctor", receiver.address, "--size", "4M")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [("ok", step) for step in STEPS]
    assert "/s: 4.0 MiB in" in done.stdout
    assert "rule `yourself`" in done.stdout
    assert (receiver.visible(), receiver.partials()) == ([], [])


def test_scripts_get_events_and_a_summary(tdx: Tdx, receiver: RunningReceiver) -> None:
    done = tdx("doctor", receiver.address, "--json", "--size", "1M")
    assert (done.returncode, done.stderr) == (0, "")
    *steps, summary = parsed(done.stdout)
    assert [(step["event"], step["step"], step["state"]) for step in steps] == [
        ("step", step, "ok") for step in STEPS
    ]
    by_name = {step["step"]: step for step in steps}
    assert by_name["permission"]["you"]["owner"] == f"local:{os.getuid()}"
    assert by_name["permission"]["grant"]["rule"] == "yourself"
    assert by_name["throughput"]["bytes"] == 1 << 20
    assert set(by_name["throughput"]["ours"]) == {"read", "hash", "send", "receive", "write", "sync", "limit"}
    assert summary == {"event": "summary", "peer": receiver.address, "failed": None, "exit_code": 0}


def test_the_exit_code_is_that_of_the_first_failure(tdx: Tdx) -> None:
    done = tdx("doctor", "127.0.0.1:1")
    assert done.returncode == 69
    assert done.stdout.splitlines()[-1].startswith("failed  reach ")
    assert "is `tdx serve` running there" in done.stdout
    *_, summary = parsed(tdx("doctor", "127.0.0.1:1", "--json").stdout)
    assert (summary["failed"], summary["exit_code"]) == ("reach", 69)


def test_the_device_key_is_that_of_the_state_directory(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    """Two machines, as far as their keys go, one of which does not know the other."""
    pem = tdx("id", "--certificate").stdout
    there = tmp_path / "there"
    assert (
        tdx("trust", "add", "nas", "-", "--address", receiver.address, "--state", there, input=pem).returncode
        == 0
    )
    done = tdx("doctor", "nas", "--state", there)
    assert done.returncode == 77
    assert "tdx pair" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "missing argument"),
        (("a b",), "not a peer"),
        (("127.0.0.1", "--size", "1k"), "--size is between 1M and 1G"),
        (("127.0.0.1", "--size", "2G"), "--size is between 1M and 1G"),
        (("127.0.0.1", "--size", "much"), "is not a size"),
    ],
)
def test_what_makes_no_sense_is_64(tdx: Tdx, arguments: tuple[str, ...], says: str) -> None:
    done = tdx("doctor", *arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_back_what_was_sent(tdx: Tdx, receiver: RunningReceiver, number: int) -> None:
    process = tdx.start(
        "doctor", receiver.address, "--size", "1G", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        wait_until(receiver.partials, "the measurement has begun")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (75, b"tdx: interrupted\n")
    wait_until(lambda: receiver.partials() == [], "nothing is staged")
    assert receiver.visible() == []
