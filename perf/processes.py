"""Processes seen from outside: whole commands timed, and the CPU time and memory of process trees."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

TDX: Final = (sys.executable, "-m", "tdx_cli")
"""The command ``tdx``, with the interpreter of the suite."""

ENVIRONMENT: Final = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""As a user has it: without compiled modules every start would compile tdx anew."""

LONGEST_SECONDS: Final = 900.0
"""After which a command is taken to hang."""

SHOWN: Final = 2000
"""Characters of what a failed command said that are shown."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One whole process, exec to exit. ``cpu`` is user plus system seconds, of the children it waited for
    too; ``memory`` the highest sum of PSS in bytes, where it was sampled."""

    seconds: float
    cpu: float
    output: str
    memory: int | None


def timed(
    command: Sequence[str],
    *,
    with_memory_of: Collection[int] | None = None,
    longest: float = LONGEST_SECONDS,
) -> Timed:
    """Run a command to its end. RuntimeError with what it said where that is not exit code 0.

    ``with_memory_of`` names the processes whose trees are measured together with the command's own; the
    sampling costs CPU time, so no figure but the memory of such a run should be quoted.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        alarm = threading.Timer(longest, _end_group, (process.pid,))
        alarm.start()
        memory = PeakMemory([process.pid, *with_memory_of]) if with_memory_of is not None else None
        try:
            with memory or contextlib.nullcontext():
                _, status, usage = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - started
        except BaseException:
            _end_group(process.pid)
            raise
        finally:
            alarm.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said, complained = (_text(file) for file in (output, errors))
    if process.returncode != 0:
        _end_group(process.pid)  # a shell's other half would go on
        what = "took too long and was killed" if seconds >= longest else f"exited with {process.returncode}"
        raise RuntimeError(f"{' '.join(command)[:SHOWN]} {what}: {(complained or said).strip()[-SHOWN:]}")
    return Timed(seconds, usage.ru_utime + usage.ru_stime, said, memory.peak if memory else None)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def reap(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Wait for a process that was started with pipes: what it printed, and its CPU seconds. RuntimeError
    where its exit code is not 0. For those that say little on standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        output, complaints = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!s} exited with {process.returncode}: {complaints[-SHOWN:]}")
    return output, usage.ru_utime + usage.ru_stime


# --- trees of processes --------------------------------------------------------


def tree(roots: Collection[int]) -> set[int]:
    """These processes and everything below them that is alive now."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in found:
            continue
        found.add(pid)
        waiting += children(pid)
    return found


def children(pid: int) -> list[int]:
    """The living children of all threads of a process; none once it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(each) for each in (task / "children").read_text().split()]
    return found


def cpu_seconds(roots: Collection[int]) -> float:
    """User plus system time of running process trees, with what their ended and reaped children took
    (proc(5), fields 14 to 17 of stat)."""
    ticks = 0
    for pid in tree(roots):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(each) for each in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_for_newcomers(roots: Collection[int], before: Collection[int], patience: float = 10.0) -> None:
    """Wait until nobody is left below ``roots`` who was not there ``before``: a session that a server
    forked for one transfer is accounted to it only when it has ended. What outlives ``patience`` seconds
    is taken for a worker that stays."""
    deadline = time.monotonic() + patience
    while tree(roots) - set(before) and time.monotonic() < deadline:
        time.sleep(0.01)


def pss_bytes(pid: int) -> int:
    """The proportional set size of a process, 0 once it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class PeakMemory:
    """Samples the sum of the PSS of process trees while it is entered; ``peak`` is the highest one."""

    INTERVAL: Final = 0.03

    def __init__(self, roots: Collection[int]) -> None:
        self.peak = 0
        self._roots = list(roots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, sum(pss_bytes(pid) for pid in tree(self._roots)))
            if self._stop.wait(self.INTERVAL):
                return


# --- servers -------------------------------------------------------------------


def said(process: subprocess.Popen[str], log: Path, beginning: str = "") -> str:
    """What follows ``beginning`` on the next line of a :func:`server` that begins so. RuntimeError with its
    ``log`` where it ends before it has said that."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise RuntimeError(f"{process.args!s:.{SHOWN}} ended at once: {log.read_text().strip()}")


@contextlib.contextmanager
def server(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a session of its own, its standard output a pipe, its complaints in ``log``. Asked to
    end afterwards; whatever of its group has not ended after 15 s is killed."""
    with log.open("wb") as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end_group(process.pid)
        if process.stdout is not None:
            process.stdout.close()
