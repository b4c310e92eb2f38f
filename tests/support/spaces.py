"""Places apart, made by the tests and gone with their processes: a small disk, two machines on a
cable, another user. Each skips the test, with a reason, where this machine does not allow it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.processes import Processes, Running, wait_until

STRANGER: Final = 54321
"""A uid that nobody has."""

HERE: Final = "10.213.0.1"
THERE: Final = "10.213.0.2"

_EAR: Final = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(65536):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
"""


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can do this")


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}; `make test-deps` installs what the tests call")


def as_stranger() -> list[str]:
    """What to put before a command that another user is to run. It may read every file, since
    the interpreter need not be one that others can."""
    needs_root()
    needs("setpriv")
    user = [f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    may_read = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    prefix = ["setpriv", *user, *may_read, "--"]
    or_skip([*prefix, sys.executable, "-c", "import tdx"])
    return prefix


def inside(process: Running, *kinds: str) -> list[str]:
    """What to put before a command so that it runs in the namespaces of ``process``."""
    return ["nsenter", "-t", str(process.pid), *(f"--{kind}" for kind in kinds)]


def namespaces(processes: Processes, *kinds: str) -> Running:
    """A process that only waits, in namespaces of its own."""
    needs_root()
    needs("unshare", "nsenter")
    flags = [f"--{kind}" for kind in kinds]
    holder = processes.run("holder", ["unshare", *flags, "sh", "-c", "echo apart; exec sleep 3600"])
    wait_until(lambda: "apart" in holder.stdout or not holder.running, "the namespaces are there")
    if not holder.running:
        pytest.skip(f"no namespaces: {holder.stderr.strip()}")
    return holder


@dataclass(frozen=True)
class SmallDisk:
    """A filesystem in memory of ``size`` bytes, mounted at ``path`` in a namespace of its own."""

    path: Path
    size: int
    holder: Running

    @property
    def prefix(self) -> list[str]:
        """Put before a command that is to see it."""
        return inside(self.holder, "mount")

    @property
    def seen(self) -> Path:
        """The same folder, seen from outside."""
        return Path(f"/proc/{self.holder.pid}/root{self.path}")

    def fill(self) -> Path:
        """Take all the space that is left; the file that takes it."""
        filler = self.seen / "filler"
        with filler.open("wb", buffering=0) as file:
            for block in (1 << 16, 1):
                try:
                    while True:
                        file.write(bytes(block))
                except OSError:
                    continue
        return filler


def small_disk(processes: Processes, path: Path, size: int) -> SmallDisk:
    path.mkdir()
    holder = namespaces(processes, "mount")
    disk = SmallDisk(path, size, holder)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tdx-test", str(path)]
    or_skip([*disk.prefix, *mount])
    return disk


@dataclass(frozen=True)
class Cable:
    """Two machines, as far as the network goes: ``near`` has the address HERE, ``far`` THERE."""

    near: list[str]
    far: list[str]
    """What to put before a command that is to run there."""


def cable(processes: Processes) -> Cable:
    near, far = namespaces(processes, "net"), namespaces(processes, "net")
    made = Cable(inside(near, "net"), inside(far, "net"))
    needs("ip")
    peer = ["peer", "name", "tdx-far", "netns", str(far.pid)]
    or_skip([*made.near, "ip", "link", "add", "tdx-near", "type", "veth", *peer])
    for prefix, name, address in ((made.near, "tdx-near", HERE), (made.far, "tdx-far", THERE)):
        or_skip([*prefix, "ip", "address", "add", f"{address}/24", "dev", name])
        for link in ("lo", name):
            or_skip([*prefix, "ip", "link", "set", link, "up"])
    return made


class Ear:
    """A listener that notes every byte that is sent to it, and answers nothing."""

    def __init__(self, processes: Processes, host: str, prefix: Sequence[str]) -> None:
        self._process = processes.run("ear", [*prefix, sys.executable, "-c", _EAR, host])
        self.address = f"{host}:{int(wait_until(lambda: self._process.stdout, 'the ear listens'))}"

    @property
    def heard(self) -> bytes:
        assert self._process.running, self._process.log()
        return self._process.err.read_bytes()


def or_skip(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")
