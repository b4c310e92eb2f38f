"""Process trees: their CPU time and their memory, children included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perf.processes import (
    PeakMemory,
    children,
    cpu_seconds,
    pss_bytes,
    reap,
    said,
    server,
    timed,
    tree,
    wait_for_newcomers,
)
from support.processes import wait_until

MIB = 1 << 20
BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
FORKING = f"""
import os, sys
def child():
    held = bytearray(b"x" * {32 * MIB})
    exec({BURN!r})
    print("holding", flush=True)
    sys.stdin.readline()
    os._exit(0)
pid = os.fork()
if pid == 0:
    child()
os.waitpid(pid, 0)
print("reaped", flush=True)
sys.stdin.readline()
"""


@contextmanager
def forking() -> Iterator[subprocess.Popen[str]]:
    """A process with a child that burns 0.3 s, holds 32 MiB until it reads a line, and is then waited for;
    the parent ends at the next line."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holding\n"
            yield process
        finally:
            process.kill()
            for pid in children(process.pid):
                subprocess.run(["kill", "-9", str(pid)], check=False)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_tree_has_the_child_and_its_cpu_time_before_and_after_it_was_waited_for() -> None:
    with forking() as process:
        assert process.stdout is not None
        (child,) = children(process.pid)
        assert tree([process.pid]) == {process.pid, child}
        alive = cpu_seconds([process.pid])
        assert alive >= 0.25
        go_on(process)
        assert process.stdout.readline() == "reaped\n"
        assert tree([process.pid]) == {process.pid}
        assert cpu_seconds([process.pid]) >= alive


def test_memory_is_that_of_the_whole_tree() -> None:
    with forking() as process:
        with PeakMemory([process.pid]) as memory:
            pass
        (child,) = children(process.pid)
        assert memory.peak > pss_bytes(process.pid) + 30 * MIB
        assert pss_bytes(child) > 30 * MIB
    assert pss_bytes(process.pid) == 0


def test_waiting_for_newcomers_lasts_until_the_session_has_ended() -> None:
    with forking() as process:
        go_on(process)
        wait_for_newcomers([process.pid], {process.pid})
        assert tree([process.pid]) == {process.pid}


def test_a_worker_that_was_there_before_or_stays_is_not_waited_for() -> None:
    with forking() as process:
        before = tree([process.pid])
        wait_for_newcomers([process.pid], before, patience=float("inf"))
        wait_for_newcomers([process.pid], {process.pid}, patience=0.01)
        assert tree([process.pid]) == before


def test_a_command_is_timed_with_the_children_that_it_waited_for() -> None:
    burning = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}], check=True); print('ok')"
    )
    done = timed([sys.executable, "-c", burning])
    assert done.cpu >= 0.3
    assert done.seconds > 0
    assert done.output == "ok\n"
    assert done.memory is None


def test_memory_is_sampled_where_it_is_asked_for() -> None:
    done = timed([sys.executable, "-c", f"held = b'x' * {64 * MIB}; {BURN}"], with_memory_of=[])
    assert done.memory is not None
    assert done.memory > 60 * MIB


def test_a_command_that_fails_says_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="exited with 3: it broke"):
        timed(["sh", "-c", "echo it broke >&2; exit 3"])


def test_a_command_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    left = tmp_path / "left"
    with pytest.raises(RuntimeError, match="exited with 1"):
        timed(["sh", "-c", f"sleep 600 & echo $! > {left}; exit 1"])
    pid = int(left.read_text())
    wait_until(lambda: not runs(pid), "the other half has ended")


def runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_command_that_hangs_is_ended_with_its_children() -> None:
    with pytest.raises(RuntimeError, match="took too long"):
        timed(["sh", "-c", "sleep 600 & sleep 600"], longest=0.2)


def test_what_a_server_says_is_waited_for_and_told_without_its_beginning(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo first; echo listening HERE; echo third; cat"]
    with server(command, log := tmp_path / "log") as process:
        assert said(process, log, "listening ") == "HERE"
        assert said(process, log) == "third"


def test_a_server_that_ends_before_it_has_said_that_is_told_with_its_log(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo first; echo no luck >&2"]
    with (
        server(command, log := tmp_path / "log") as process,
        pytest.raises(RuntimeError, match="ended at once: no luck"),
    ):
        said(process, log, "listening ")


def test_reaping_tells_the_cpu_time_and_what_was_printed() -> None:
    def started(code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    output, cpu = reap(started(BURN + "print('done')"))
    assert output == "done\n"
    assert cpu >= 0.3
    with pytest.raises(RuntimeError, match="out of luck"):
        reap(started("raise SystemExit('out of luck')"))
