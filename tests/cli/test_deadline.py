"""Whoever does not end when the time is up is ended: in a process of its own, which the test may lose."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from support.commands import PATIENCE
from tdx_cli.deadline import Deadline

HANGS = """
import sys, threading
from tdx_cli.deadline import Deadline
with Deadline(0.05, grace=0.05) as deadline:
    {before}
    threading.Event().wait()
"""


def ended(before: str = "", shell: str = "") -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", HANGS.format(before=before or "pass")]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_what_hangs_is_ended_with_75_and_a_line() -> None:
    done = ended()
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr.startswith("tdx: not done after 0.05 s, and a disk, a name service or an output")
    assert done.stderr.count("\n") == 1


def test_what_has_told_how_it_ended_keeps_its_code_and_gets_no_other_line() -> None:
    done = ended("deadline.settle(69)")
    assert (done.returncode, done.stderr) == (69, "")


@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full"])
def test_it_ends_also_where_its_line_cannot_be_written(shell: str) -> None:
    assert ended(shell=shell).returncode == 75


def test_who_is_done_in_time_is_left_alone() -> None:
    with Deadline(0.01, grace=0.01):
        pass
    time.sleep(0.1)  # this process is still here


def test_without_a_limit_there_is_no_end() -> None:
    with Deadline(None) as deadline:
        deadline.settle(0)
