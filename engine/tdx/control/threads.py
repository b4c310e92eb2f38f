"""What this process's threads wait for, as the kernel tells (proc(5))."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TASKS: Final = Path("/proc/self/task")

_FUTEX: Final = {
    "x86_64": "202",
    "aarch64": "98",
    "riscv64": "98",
    "armv7l": "240",
    "i686": "240",
    "ppc64le": "221",
    "s390x": "238",
}
"""The number of futex(2), with which a thread waits for another, by machine."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A system call that a thread has been in since ``since`` (seconds) at the latest. ``switches`` tells
    one from the next: how often the thread was taken off a processor."""

    switches: str
    since: float


class Threads:
    """Remembers, from one :meth:`look` to the next, which threads are still in the same call."""

    def __init__(self, prefixes: Iterable[str], tasks: Path = TASKS, machine: str = "") -> None:
        """``prefixes`` of the names of the threads that are looked at."""
        self._prefixes = tuple(prefixes)
        self._tasks = tasks
        self._futex = _FUTEX.get(machine or os.uname().machine, "")
        self._waits: dict[int, Wait] = {}

    def look(self, now: float) -> None:
        """See what each of them is in now. Reads a few hundred small files of procfs at most, no disk."""
        waits: dict[int, Wait] = {}
        for thread in threading.enumerate():
            number = thread.native_id
            if number is None or not thread.name.startswith(self._prefixes):
                continue
            switches = self._waits_outside(number)
            if switches:
                earlier = self._waits.get(number)
                same = earlier is not None and earlier.switches == switches
                waits[number] = earlier if same and earlier is not None else Wait(switches, now)
        self._waits = waits

    def stuck(self, now: float, seconds: float) -> list[float]:
        """How long each of those has waited that has for so many seconds, the longest first: for the kernel,
        that is, a disk, not for another thread."""
        waited = (now - wait.since for wait in self._waits.values())
        return sorted((each for each in waited if each >= seconds), reverse=True)

    def all_stuck(self, prefix: str) -> bool:
        """Whether every thread with this prefix waits for the kernel."""
        named = [thread.native_id for thread in threading.enumerate() if thread.name.startswith(prefix)]
        return bool(named) and all(number in self._waits for number in named)

    def _waits_outside(self, number: int) -> str:
        """The switches of a thread that is in a system call, but in none that waits for another thread;
        else empty."""
        call = self._read(number, "syscall").partition(" ")[0]
        if not call.isdigit() or call == self._futex:  # "running", and -1 in no call
            return ""
        lines = self._read(number, "status").splitlines()
        return " ".join(line.partition("\t")[2] for line in lines if "ctxt_switches" in line)

    def _read(self, number: int, name: str) -> str:
        try:
            return (self._tasks / str(number) / name).read_text("ascii", "replace").strip()
        except OSError:  # it has ended, or the kernel does not say
            return ""
