"""What every peer needs: its programs, ports on loopback, and servers that answer before they are used."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.model import Missing
from perf.processes import server

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
"""Seconds within which a server has to answer."""

_SHOWN: Final = 2000


@dataclass(frozen=True)
class Serving:
    """A receiving side that is up, and files what comes under its own name in ``target``: a
    :class:`perf.model.Running`. ``words`` are its command for a source."""

    servers: Sequence[int]
    target: Path
    words: Callable[[Path], Sequence[str]]

    def command(self, source: Path) -> Sequence[str]:
        return self.words(source)

    def arrived(self, source: Path) -> Path:
        return self.target / source.name


def cache() -> Path:
    """Where `make perf-deps` and `make test-tailnet` put what they build."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TDX_TEST_CACHE") or Path(caches, "tdx-test"))


def installed(name: str, package: str) -> str:
    """The path of a program of the system; Missing names the package that has it."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"there is no {name}: install {package}, or run `make perf-deps` as root")
    return found


def built(*parts: str) -> str:
    """The path of a program in :func:`cache`; Missing names what makes it."""
    path = cache().joinpath(*parts)
    if not os.access(path, os.X_OK):
        raise Missing(f"there is no {path}: `make perf-deps` makes it")
    return str(path)


def says(*command: str) -> str:
    """The first line that a program says, on whichever output: its version."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=PATIENCE
    )
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), "unknown")


@contextmanager
def reserved(host: str = HOST) -> Iterator[int]:
    """A port that nobody gets while this is entered but a server that asks for it with SO_REUSEADDR, as
    all of the peers do."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        yield int(holder.getsockname()[1])


@contextmanager
def listening(
    command: Sequence[str], log: Path, port: int, host: str = HOST
) -> Iterator[subprocess.Popen[str]]:
    """A server that accepts connections at ``port``. RuntimeError with its log where it does not."""
    with server(command, log) as process:
        deadline = time.monotonic() + PATIENCE
        while not _accepts(host, port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()[-_SHOWN:]
                raise RuntimeError(f"{command[0]} does not listen at {host}:{port}: {said}")
            time.sleep(0.02)
        yield process


def _accepts(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
