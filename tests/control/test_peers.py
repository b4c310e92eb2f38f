"""Who is known, and whether they answer: what takes a clock, a mesh, or somebody who hangs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.devices import introduce, trust
from support.processes import PROGRAM, Processes, Receiver, Running, reaped
from support.receiving import RunningReceiver
from support.vouching import Meshing
from support.wgmesh import INTERFACE, Machine, WgMesh, wgmesh
from tdx.control import peers
from tdx.control.peers import Seen, Standing, list_peers
from tdx.identity.registry import Identities
from tdx.identity.settings import IdentitySettings, TailscaleSettings

NO_MESHES = IdentitySettings(tailscale=TailscaleSettings(enabled=False))


def listed(state: Path, timeout: float = 10.0) -> tuple[list[Seen], list[str]]:
    """Those seen, and what was complained of."""
    complaints: list[str] = []
    return asyncio.run(list_peers(NO_MESHES, state, timeout, complaints.append)), complaints


def test_who_hangs_does_not_keep_the_others_from_being_listed(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    here = tmp_path / "laptop"
    with socket.create_server(("127.0.0.1", 0)) as mute:
        trust(here, "mute", tmp_path / "mute", f"127.0.0.1:{mute.getsockname()[1]}")
        introduce(receiver.state, here, f"127.0.0.1:{receiver.port}")
        seen, _ = listed(here, timeout=1.5)
    assert [(each.name, each.standing) for each in seen] == [
        ("mute", Standing.NO_ANSWER),
        ("nas", Standing.REACHABLE),
    ]
    assert seen[0].reason == "nothing came within 1.5 s"


def test_an_old_address_does_not_hide_a_good_one(receiver: RunningReceiver, tmp_path: Path) -> None:
    here = tmp_path / "laptop"
    introduce(receiver.state, here, "127.0.0.1:1")
    trust(here, "nas", receiver.state, "127.0.0.1:1", f"127.0.0.1:{receiver.port}")
    (nas,), _ = listed(here)
    assert (nas.standing, nas.reason) == (Standing.REACHABLE, "")


def test_a_mesh_that_is_silent_is_complained_of_and_the_rest_is_listed(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "laptop"
    introduce(receiver.state, here, f"127.0.0.1:{receiver.port}")
    mesh = Meshing("mesh:nas", name="a mesh", silent=True)
    monkeypatch.setattr(peers, "identities_of", lambda *_: Identities([mesh], [mesh]))
    seen, complaints = listed(here)
    assert [(each.name, each.standing) for each in seen] == [("nas", Standing.REACHABLE)]
    assert complaints == ["a mesh: the mesh is silent"]


# --- a real WireGuard mesh ------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


@pytest.fixture
def mesh(processes: Processes, tmp_path: Path) -> WgMesh:
    return wgmesh(processes, tmp_path / "keys")


class Site:
    """A receiver on the hub that knows the laptop, and commands of the others."""

    def __init__(self, processes: Processes, mesh: WgMesh, folder: Path) -> None:
        self._processes = processes
        self._mesh = mesh
        self._folder = folder
        (folder / "hub").mkdir()
        self.receiver: Receiver = processes.receiver(
            folder / "inbox",
            folder / "hub" / "state",
            program=[*mesh.hub.prefix, *PROGRAM],
            also=(f"{mesh.hub.address}:8390",),
            config=mesh.config(mesh.peer(mesh.laptop, "laptop")),
        )

    def says(self, machine: Machine, *arguments: str) -> tuple[Running, list[dict[str, Any]]]:
        """What a command on ``machine``, which knows all others, ends with and prints."""
        others = [each for each in (self._mesh.hub, self._mesh.laptop, self._mesh.guest) if each != machine]
        file = self._folder / f"{machine.name}.toml"
        file.write_text(self._mesh.config(*(self._mesh.peer(each, each.name) for each in others)))
        where = ("--config", str(file), "--state", str(self._folder / f"{machine.name}-state"))
        process = self._processes.run(arguments[0], [*machine.prefix, *PROGRAM, *arguments, "--json", *where])
        process.wait()
        return process, [json.loads(line) for line in process.stdout.splitlines()]


def test_on_a_mesh_everybody_sees_who_answers_who_refuses_and_why(
    processes: Processes, mesh: WgMesh, tmp_path: Path
) -> None:
    site = Site(processes, mesh, tmp_path)
    ran, rows = site.says(mesh.laptop, "peers", "--timeout", "5s")
    assert ran.code == 0, ran.log()
    guest, hub = rows
    assert [row["sources"] for row in rows] == [[f"wireguard {INTERFACE}"]] * 2
    # Nobody has told the laptop where the guest is.
    assert (guest["name"], guest["state"], guest["addresses"]) == ("guest", "no answer", [])
    assert (hub["name"], hub["state"]) == ("hub", "reachable")
    assert hub["owner"] == f"wireguard:{mesh.hub.key}"
    ran, rows = site.says(mesh.guest, "peers", "--timeout", "5s")
    hub = next(row for row in rows if row["name"] == "hub")
    assert hub["state"] == "refuses"
    assert "rule `default`" in hub["reason"]

    for name in ("hub", mesh.hub.address, f"{mesh.hub.address}:8390"):
        ran, (found,) = site.says(mesh.laptop, "whois", name)
        assert (found["provider"], found["node"]) == ("wireguard", "hub")
        assert found["owner"] == f"wireguard:{mesh.hub.key}"
    assert site.says(mesh.laptop, "whois", mesh.outsider.below)[0].code == 68

    ran, (*steps, summary) = site.says(mesh.laptop, "doctor", "hub", "--size", "4M")
    assert (ran.code, summary["exit_code"]) == (0, 0), ran.log()
    by_name = {step["step"]: step for step in steps}
    reached = next(step for step in steps if step["step"] == "reach" and step["state"] == "ok")
    assert (reached["address"], reached["interface"]) == (mesh.hub.address, INTERFACE)
    assert by_name["identity"]["owner"] == f"wireguard:{mesh.hub.key}"
    assert by_name["permission"]["you"]["owner"] == f"wireguard:{mesh.laptop.key}"
    assert by_name["throughput"]["bytes"] == 4 << 20
    ran, (*_, refused, summary) = site.says(mesh.guest, "doctor", "hub")
    assert (ran.code, refused["step"], summary["failed"]) == (77, "permission", "permission")
    assert (site.receiver.published, site.receiver.partials) == ([], [])
