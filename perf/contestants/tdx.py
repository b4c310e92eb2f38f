"""tdx itself: one `tdx serve`, and a `tdx push` that is timed."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.processes import TDX, said, server
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted

DOES: Final = "XXH3-128 at both ends, journal, fsync"
PEER: Final = "receiver"


@dataclass(frozen=True)
class Receiver:
    """A running ``tdx serve`` and how to push to it: a :class:`perf.model.Running`."""

    pid: int
    address: str
    metrics: str
    peer: str
    inbox: Path
    state: Path
    flags: tuple[str, ...] = ()

    @property
    def servers(self) -> Sequence[int]:
        return (self.pid,)

    def command(self, source: Path) -> Sequence[str]:
        return [*TDX, "push", *recursive(source), str(source), self.peer, *self.options]

    @property
    def options(self) -> Sequence[str]:
        return ["-q", "--state", str(self.state), *self.flags]

    def arrived(self, source: Path) -> Path:
        return self.inbox / source.name

    def counter(self, name: str) -> float:
        """The sum of a metric's samples, as scraped now."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@dataclass(frozen=True)
class Tdx:
    """``flags`` are further ones of ``tdx push``, ``serve_flags`` of ``tdx serve``. With ``tls``, the two
    ends are paired devices, which always speak TLS 1.3."""

    name: str = "tdx"
    flags: tuple[str, ...] = ()
    serve_flags: tuple[str, ...] = ()
    tls: bool = False

    @property
    def does(self) -> str:
        return f"TLS 1.3, {DOES}" if self.tls else DOES

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Receiver]:
        sender, receiving = home / "sender", home / "receiver"
        command = [*TDX, "serve", "--dir", str(target), "--state", str(receiving)]
        command += ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *self.serve_flags]
        log = home / "serve.log"
        with server(command, log) as process:
            address, metrics = said(process, log, "listening "), said(process, log, "metrics ")
            if self.tls:
                introduce(sender, receiving, address)
            peer = PEER if self.tls else address
            yield Receiver(process.pid, address, metrics, peer, target, sender, self.flags)


def recursive(source: Path) -> Sequence[str]:
    """What a folder needs, and one file does not."""
    return ["-r"] if source.is_dir() else []


def introduce(sender: Path, receiving: Path, address: str) -> None:
    """Let the two state directories' devices trust each other, as ``tdx pair`` would."""
    for state, other, name, addresses in (
        (sender, receiving, PEER, (address,)),
        (receiving, sender, "sender", ()),
    ):
        device = TlsIdentities(other).device
        trusted = Trusted(name, device.key, device.certificate, addresses, added=time.time())
        TlsIdentities(state).trust.add(trusted)
