"""`make observe` says where to look and what Prometheus says, ends when told to, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from observe.stack import PROGRAMS
from support.observing import ask, program
from support.processes import ROOT, Processes, Running, reaped, wait_until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


def observe(processes: Processes, tmp_path: Path, *flags: str, **environment: str) -> Running:
    (tmp_path / "tmp").mkdir()
    own = {"TMPDIR": str(tmp_path / "tmp"), **environment}
    command = [sys.executable, "-m", "observe", "--quick", *flags]
    env = {**processes.environment, **own}
    process = processes.run("observe", command, cwd=ROOT, env=env, start_new_session=True)

    def end_what_is_left() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    processes.resources.callback(end_what_is_left)
    return process


def descendants(pid: int) -> set[int]:
    """The processes that this one has started, and those that they have."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_to_look_and_ends_with_all_that_it_started(
    processes: Processes, tmp_path: Path, number: signal.Signals
) -> None:
    for name in PROGRAMS:
        program(name)
    process = observe(processes, tmp_path)
    wait_until(
        lambda: "alerts" in process.stdout.split("*.json")[-1] or not process.running, "there is a table"
    )
    assert process.running, process.log()
    for what in ("Prometheus", "the receiver's metrics", "node_exporter", "Pushgateway"):
        found = re.search(rf"(?m)^  {what} +http://(127\.0\.0\.1:\d+)(/\S*)$", process.stdout)
        assert found, process.stdout
        assert ask(found[1], found[2])[0] in {200, 302}, what  # Prometheus' first page leads to another
    started = descendants(process.pid)
    assert len(started) >= 4
    process.signal(number)
    assert process.wait() == 0, process.log()
    assert process.stdout.endswith("observe: ended\n")
    assert process.stderr == ""
    assert [pid for pid in started if alive(pid)] == []
    assert os.listdir(tmp_path / "tmp") == []


def test_it_ends_by_itself_after_so_long_and_draws_what_it_saw(processes: Processes, tmp_path: Path) -> None:
    for name in PROGRAMS:
        program(name)
    process = observe(processes, tmp_path, "--seconds", "8", "--plots", str(tmp_path / "plots"))
    assert process.wait() == 0, process.log()
    assert process.stderr == ""
    drawn = {path.stem: path.read_text() for path in (tmp_path / "plots").iterdir()}
    assert set(drawn) == {"receiver", "transfers", "jobs", "slow"}
    for text in drawn.values():
        assert text.rstrip().endswith("</svg>")
    assert ">published<" in drawn["receiver"]
    assert os.listdir(tmp_path / "tmp") == []


def test_a_program_that_is_missing_is_named_with_what_installs_it(
    processes: Processes, tmp_path: Path
) -> None:
    process = observe(processes, tmp_path, PATH=str(tmp_path))
    assert process.wait() == 69
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("observe: there is no prometheus, ")
    assert "`make test-deps`" in line
