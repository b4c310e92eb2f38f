"""Two nodes of a real tailnet: Taildrop, which is tailscale's own way to send files, and tdx beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perf.contestants.programs import Serving, built, says
from perf.contestants.tdx import DOES, recursive
from perf.model import Missing, Running
from perf.processes import TDX, said, server

if TYPE_CHECKING:
    from support.tailnet import Node

_TESTS: Final = Path(__file__).resolve().parents[2] / "tests"

SENDER: Final = "laptop"
RECEIVER: Final = "desktop"


@dataclass(frozen=True)
class Mesh:
    """Two nodes that reach each other directly, each with a tailscaled that does WireGuard in user space."""

    sender: Node
    receiver: Node

    @property
    def daemons(self) -> Sequence[int]:
        return (self.sender.daemon.pid, self.receiver.daemon.pid)


@contextmanager
def mesh(logs: Path, memory: Path) -> Iterator[Mesh]:
    """The tailnet of the tests, its nodes' state in ``memory``. Missing where it cannot be brought up."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    try:
        import pytest

        from support.processes import Processes
        from support.tailnet import real_tailnet
    except ModuleNotFoundError as error:
        raise Missing(f"the tailnet is that of the tests, which need {error.name}: `make test`") from None
    try:
        with Processes(logs) as processes, real_tailnet(processes, memory) as found:
            yield Mesh(found[SENDER], found[RECEIVER])
    except pytest.skip.Exception as skipped:
        raise Missing(str(skipped)) from None


@dataclass(frozen=True)
class Taildrop:
    """``tailscale file cp`` between two nodes of one user.

    The time ends when the receiving tailscaled has the file, in its own folder; ``tailscale file get``,
    which moves it from there, comes after it. There is nothing to tune: Taildrop sends one file over one
    connection. Both ends' tailscaled count as servers.
    """

    mesh: Mesh
    name: str = "tailscale file cp"
    does: str = "WireGuard, no hash, no fsync, not yet moved to its folder"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        yield _Dropping(self.mesh, target)

    def version(self) -> str:
        return "tailscale " + says(built("bin", "tailscale"), "version")


@dataclass(frozen=True)
class _Dropping:
    mesh: Mesh
    target: Path

    @property
    def servers(self) -> Sequence[int]:
        return self.mesh.daemons

    def command(self, source: Path) -> Sequence[str]:
        if source.is_dir():
            raise Missing("tailscale sends files, not folders")
        return [*self.mesh.sender.tool, "file", "cp", str(source), f"{self.mesh.receiver.host}:"]

    def arrived(self, source: Path) -> Path:
        get = [*self.mesh.receiver.tool, "file", "get", "--conflict=overwrite", str(self.target)]
        subprocess.run(get, check=True, capture_output=True)
        return self.target / source.name


@dataclass(frozen=True)
class MeshTdx:
    """``tdx push`` to the same node by its name, who is calling told by tailscaled. Both ends' tailscaled
    count as servers, as does ``tdx serve``."""

    mesh: Mesh
    name: str = "tdx"
    does: str = f"WireGuard, {DOES}"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        receiver = self.mesh.receiver
        log = home / "serve.log"
        command = [*_as_on(receiver, home), *TDX, "serve", "--dir", str(target)]
        with server(command, log) as process:
            said(process, log, f"listening {receiver.ip4}:")
            push = [*_as_on(self.mesh.sender, home), *TDX, "push", "-q"]
            yield Serving(
                (process.pid, *self.mesh.daemons),
                target,
                lambda source: [*push, *recursive(source), str(source), receiver.host],
            )


def _as_on(node: Node, home: Path) -> Sequence[str]:
    """What comes before a command of tdx so that it runs on that node, with a state of its own."""
    configuration = home / f"{node.host}.toml"
    configuration.write_text(f'[tailscale]\nsocket = "{node.socket}"\n')
    settings = (f"TDX_CONFIG={configuration}", f"TDX_STATE_DIR={home / node.host}")
    return [*node.prefix, "env", *settings]
