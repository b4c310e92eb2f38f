"""Contestants whose two sides are at the two ends of a link."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.contest import Missing
from perf.contestants.tdx import DOES, PEER, introduce
from perf.processes import TDX, server
from perf.wan import probe
from perf.wan.link import FAR, Link

PROBE: Final = (sys.executable, str(Path(probe.__file__)))


@dataclass(frozen=True)
class End:
    """The far side is up: a :class:`perf.contest.Running`. ``before`` and ``after`` go around the source."""

    pid: int
    target: Path
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def servers(self) -> Sequence[int]:
        return (self.pid,)

    def command(self, source: Path) -> Sequence[str]:
        return [*self.before, str(source), *self.after]

    def arrived(self, source: Path) -> Path:
        return self.target / source.name


@dataclass(frozen=True)
class TdxAcross:
    """``flags`` are further ones of ``tdx push``. A link that nobody vouches for is crossed in TLS."""

    link: Link
    name: str = "tdx"
    flags: tuple[str, ...] = ()

    @property
    def does(self) -> str:
        return f"TLS 1.3, {DOES}"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[End]:
        sender, receiving, log = home / "sender", home / "receiver", home / "serve.log"
        command = [*self.link.far, *TDX, "serve", "--dir", str(target), "--state", str(receiving)]
        with server([*command, "--listen", f"{FAR}:0"], log) as process:
            word, _, address = _first_line(process, log).partition(" ")
            if word != "listening":
                raise RuntimeError(f"tdx serve says {word} {address}")
            introduce(sender, receiving, address)
            after = (PEER, "-q", "--state", str(sender), *self.flags)
            yield End(process.pid, target, (*self.link.near, *TDX, "push"), after)


@dataclass(frozen=True)
class Curl:
    """One TCP connection: curl puts the file to a receiver that writes what comes, and does nothing else."""

    link: Link
    name: str = "curl, one connection"
    does: str = "no TLS, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[End]:
        if shutil.which("curl") is None:
            raise Missing("there is no curl (apt-get install curl)")
        log = home / "take.log"
        with server([*self.link.far, *PROBE, "take", str(target)], log) as process:
            port = _first_line(process, log)
            options = ("-sS", "--fail", "-H", "Expect:", "-o", "/dev/null", f"http://{FAR}:{port}/")
            yield End(process.pid, target, (*self.link.near, "curl", "-T"), options)


def _first_line(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"the receiver at the far end ended at once: {log.read_text().strip()}")
    return line
