"""A link of set rate, delay and loss between two network namespaces, for as long as it is needed."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import perf
from perf.model import Missing
from perf.wan.emulator import COUNTERS
from perf.wan.pipe import Conditions

NEAR: Final = "10.214.0.1"
FAR: Final = "10.214.0.2"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one direction has done so far. ``bytes`` are those of delivered packets, ``most_waiting`` the
    most bytes that ever waited for their turn."""

    lost: int
    overflowed: int
    delivered: int
    bytes: int
    most_waiting: int


@dataclass(frozen=True)
class Link:
    """A link that is up: one end has the address NEAR, the other FAR."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    """What to put before a command that is to run at this end."""
    pids: tuple[int, int]
    """The processes that carry packets to the far and to the near end."""
    _shared: mmap.mmap

    def counts(self) -> tuple[Counts, Counts]:
        """Of packets to the far end, and to the near end."""
        size = COUNTERS.size
        there, back = (COUNTERS.unpack_from(self._shared, at) for at in (0, size))
        return Counts(*there), Counts(*back)


@contextmanager
def link(conditions: Conditions, congestion_control: str) -> Iterator[Link]:
    """:class:`Missing` where this machine or user cannot make one.

    The namespaces have no names, and end with the processes in them; the devices end with the namespaces.
    """
    _check_possible()
    names = [f"tdx{os.getpid()}{end}" for end in "nf"]
    counters = os.memfd_create("tdx-wan")
    try:
        os.ftruncate(counters, 2 * COUNTERS.size)
        shared = mmap.mmap(counters, 2 * COUNTERS.size)
        told = {
            "parent": os.getpid(),
            "conditions": asdict(conditions),
            "congestion_control": congestion_control,
            "ends": list(zip(names, (NEAR, FAR), strict=True)),
            "counters": counters,
        }
        environment = {**os.environ, "PYTHONPATH": str(Path(perf.__file__).parents[1])}
        process = subprocess.Popen(
            [sys.executable, "-m", "perf.wan.emulator", json.dumps(told)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=[counters],
        )
    finally:
        os.close(counters)
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            if not line:
                raise Missing(f"no link between two network namespaces: {process.stderr.read().strip()}")
            ends = json.loads(line)
            prefix = {end: ("nsenter", f"--net=/proc/{pid}/ns/net", "--") for end, pid in ends.items()}
            yield Link(prefix["near"], prefix["far"], (ends["far"], ends["near"]), shared)
        finally:
            process.kill()


def _check_possible() -> None:
    if os.geteuid() != 0:
        raise Missing("only root can make network namespaces with TUN devices")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise Missing("there is no /dev/net/tun")
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            raise Missing(f"there is no {program} (apt-get install iproute2 util-linux)")
