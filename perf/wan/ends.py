"""Contestants whose two sides are at the two ends of a link."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.contestants.programs import Serving
from perf.contestants.tdx import DOES, PEER, introduce
from perf.model import Missing, Running
from perf.processes import TDX, said, server
from perf.wan import probe
from perf.wan.link import FAR, Link

PROBE: Final = (sys.executable, str(Path(probe.__file__)))


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
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        sender, receiving, log = home / "sender", home / "receiver", home / "serve.log"
        command = [*self.link.far, *TDX, "serve", "--dir", str(target), "--state", str(receiving)]
        with server([*command, "--listen", f"{FAR}:0"], log) as process:
            introduce(sender, receiving, said(process, log, "listening "))
            push = [*self.link.near, *TDX, "push"]
            options = [PEER, "-q", "--state", str(sender), *self.flags]
            yield Serving((process.pid,), target, lambda source: [*push, str(source), *options])


@dataclass(frozen=True)
class Curl:
    """One TCP connection: curl puts the file to a receiver that writes what comes, and does nothing else."""

    link: Link
    name: str = "curl, one connection"
    does: str = "no TLS, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        if shutil.which("curl") is None:
            raise Missing("there is no curl (apt-get install curl)")
        log = home / "take.log"
        with server([*self.link.far, *PROBE, "take", str(target)], log) as process:
            port = said(process, log)
            put = [*self.link.near, "curl", "-sS", "--fail", "-H", "Expect:", "-o", "/dev/null"]
            put += [f"http://{FAR}:{port}/", "-T"]
            yield Serving((process.pid,), target, lambda source: [*put, str(source)])
