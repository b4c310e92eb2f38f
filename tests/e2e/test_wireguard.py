"""A real WireGuard mesh: who is let in is who has the key that the receiver's owner has named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver, Running, wait_until
from support.spaces import STRANGER, Ear, as_stranger
from support.wgmesh import CABLE, Machine, WgMesh, attempt, wgmesh

PORT = 8390

COULD_NOT_CONNECT = 7
"""curl's exit code; were there no answer at all, it would be another one."""


@pytest.fixture
def mesh(processes: Processes, tmp_path: Path) -> WgMesh:
    return wgmesh(processes, tmp_path / "keys")


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", 20 * MIB)


class Hub:
    """A receiver on the hub, and those who push to it under the name ``hub``."""

    def __init__(
        self,
        processes: Processes,
        mesh: WgMesh,
        area: Path,
        config: str,
        host: str = "",
        port: int = PORT,
        user: Sequence[str] = (),
    ) -> None:
        """``host`` and ``port``: where it listens; ``user``: what comes before a command that another
        user runs, here and of those who push."""
        self._processes = processes
        self._area = area
        self._user = user
        self._port = port
        self.receiver: Receiver = processes.receiver(
            area / "inbox",
            area / "hub" / "state",
            program=[*mesh.hub.prefix, *user, *PROGRAM],
            also=(f"{host or mesh.hub.address}:{port}",),
            config=config,
        )

    def pushed_by(self, machine: Machine, config: str, source: Path, peer: str = "hub") -> Running:
        """``tdx push SOURCE PEER`` on ``machine``, which has this configuration, to its end."""
        file = self._area / f"{machine.name}.toml"
        file.write_text(config)
        environment = {**self._processes.environment, "TDX_CONFIG": str(file)}
        command = [*machine.prefix, *self._user, *PROGRAM, "push", str(source), f"{peer}:{self._port}"]
        push = self._processes.run("push", command, env=environment)
        push.wait()
        return push

    def has_nothing(self) -> bool:
        return self.receiver.published == [] and self.receiver.partials == []


@pytest.fixture
def folder(area: Path) -> Path:
    (area / "hub").mkdir()
    return area


def hub_of(mesh: WgMesh, *, configured: bool = False) -> dict[str, Any]:
    """What the other machines' configuration says of the hub."""
    addresses = (f"{mesh.hub.address}/32", f"{mesh.hub.address6}/128") if configured else ()
    return mesh.peer(mesh.hub, "hub", *addresses)


@pytest.mark.parametrize("configured", [True, False])
def test_a_peer_that_is_named_pushes_by_name(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path, configured: bool
) -> None:
    addresses = (f"{mesh.laptop.address}/32",) if configured else ()
    hub = Hub(processes, mesh, folder, mesh.config(mesh.peer(mesh.laptop, "laptop", *addresses)))
    push = hub.pushed_by(mesh.laptop, mesh.config(hub_of(mesh, configured=configured)), source)
    assert push.code == 0, push.log()
    assert hub.receiver.published == [source.name]
    assert sha256_of(hub.receiver.folder / source.name) == sha256_of(source)


def test_a_peer_pushes_over_ipv6_too(processes: Processes, mesh: WgMesh, folder: Path, source: Path) -> None:
    config = mesh.config(mesh.peer(mesh.laptop, "laptop"))
    hub = Hub(processes, mesh, folder, config, host=f"[{mesh.hub.address6}]")
    theirs = mesh.config(mesh.peer(mesh.hub, "hub", f"{mesh.hub.address6}/128"))
    push = hub.pushed_by(mesh.laptop, theirs, source)
    assert push.code == 0, push.log()
    assert hub.receiver.published == [source.name]


def test_a_peer_that_is_not_named_is_refused_and_told_its_key_until_a_rule_lets_it_in(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    config = mesh.config(mesh.peer(mesh.laptop, "laptop"))
    hub = Hub(processes, mesh, folder, config)
    push = hub.pushed_by(mesh.guest, mesh.config(hub_of(mesh)), source)
    assert push.code == 77, push.log()
    (line,) = push.stderr.splitlines()
    assert "rule `default`" in line
    assert f"wireguard:{mesh.guest.key}" in line
    assert hub.has_nothing()
    hub.receiver.stop()
    (folder / "hub" / "tdx.toml").write_text(
        f'{config}[[rule]]\nname = "guests"\nkey = "{mesh.guest.key}"\ninto = "guests"\n'
    )
    hub.receiver.restart()
    push = hub.pushed_by(mesh.guest, mesh.config(hub_of(mesh)), source)
    assert push.code == 0, push.log()
    assert hub.receiver.published == ["guests", f"guests/{source.name}"]


def test_where_wg_is_not_asked_a_peer_that_is_not_named_is_nobody(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    laptop = mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32")
    hub = Hub(processes, mesh, folder, mesh.config(laptop))
    push = hub.pushed_by(mesh.guest, mesh.config(hub_of(mesh)), source)
    assert push.code == 77, push.log()
    (line,) = push.stderr.splitlines()
    assert "rule `identified`" in line
    assert hub.has_nothing()


def test_a_spoofed_source_address_from_the_network_below_does_not_get_in(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    mesh.lure_replies_below()
    laptop = mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32")
    hub = Hub(processes, mesh, folder, mesh.config(laptop))
    spoofing = ("--interface", mesh.laptop.address, "-T", source)
    put = processes.curl(
        *spoofing, f"http://{mesh.hub.address}:{PORT}/files/spoofed", prefix=mesh.outsider.prefix
    )
    assert put.wait() == COULD_NOT_CONNECT, put.log()
    assert hub.has_nothing()
    # There is a way, both there and back: only nobody listens at its end.
    ear = Ear(processes, mesh.hub.address, prefix=mesh.hub.prefix)
    processes.curl(*spoofing, f"http://{ear.address}/files/spoofed", prefix=mesh.outsider.prefix)
    wait_until(lambda: ear.heard, "the spoofed request is heard")


def test_a_spoofed_source_address_at_a_receiver_that_listens_everywhere_is_nobodys(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    mesh.lure_replies_below()
    laptop = mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32")
    hub = Hub(processes, mesh, folder, mesh.config(laptop), host="0.0.0.0")
    for host in (mesh.hub.address, mesh.hub.below):
        mesh.outsider.run("ip", "route", "replace", f"{host}/32", "dev", CABLE, "src", mesh.laptop.address)
        put = processes.curl(
            *("--interface", mesh.laptop.address, "-T", source, f"http://{host}:{PORT}/files/spoofed"),
            prefix=mesh.outsider.prefix,
        )
        assert put.status == 403
        assert put.body["type"] == "urn:tdx:problem:forbidden"
    assert hub.has_nothing()


def test_a_peer_cannot_take_the_address_of_another(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    laptop = mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32")
    hub = Hub(processes, mesh, folder, mesh.config(laptop))
    mesh.guest.run("ip", "address", "add", f"{mesh.laptop.address}/32", "dev", "wg0")
    attempt(processes, mesh.guest, mesh.laptop.address, mesh.hub.address, PORT)
    # A tunnel keeps the order of packets: once this has been answered, the one before has been dropped.
    url = f"http://{mesh.hub.address}:{PORT}/v1/hello"
    answered = processes.curl("--interface", mesh.guest.address, url, prefix=mesh.guest.prefix)
    assert answered.status == 403
    reached = mesh.hub.run("ss", "-Htan", "src", f"{mesh.hub.address}", "dst", mesh.laptop.address)
    assert reached == ""
    assert hub.has_nothing()


def test_a_push_to_a_peer_never_goes_by_another_network(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    # The laptop's routes lead to somebody who has taken the hub's address.
    mesh.outsider.run("ip", "address", "add", f"{mesh.hub.address}/32", "dev", CABLE)
    mesh.laptop.run("ip", "route", "add", f"{mesh.hub.address}/32", "via", mesh.outsider.below)
    ear = Ear(processes, mesh.hub.address, prefix=mesh.outsider.prefix)
    processes.curl(f"http://{ear.address}/", prefix=mesh.laptop.prefix)
    wait_until(lambda: ear.heard, "what does not come from tdx is heard")
    port = int(ear.address.rpartition(":")[2])
    hub = Hub(processes, mesh, folder, mesh.config(mesh.peer(mesh.laptop, "laptop")), port=port)
    push = hub.pushed_by(mesh.laptop, mesh.config(hub_of(mesh)), source)
    assert push.code == 0, push.log()
    assert ear.heard.count(b"HTTP/1.1") == 1
    assert hub.receiver.published == [source.name]


def test_the_machine_itself_is_known_by_its_user_at_its_own_address_on_the_mesh(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    hub = Hub(processes, mesh, folder, mesh.config(mesh.peer(mesh.laptop, "laptop")))
    url = f"http://{mesh.hub.address}:{PORT}/files/"
    assert processes.curl("-T", source, url + "own", prefix=mesh.hub.prefix).status == 201
    other = processes.curl("-T", source, url + "other", prefix=[*mesh.hub.prefix, *as_stranger()])
    assert other.status == 403
    assert hub.receiver.published == ["own"]


def test_no_privilege_is_needed_where_the_configuration_says_who_is_who(
    processes: Processes, mesh: WgMesh, folder: Path, source: Path
) -> None:
    for path in (folder, folder / "hub", folder / "theirs"):
        path.mkdir(exist_ok=True)
        os.chown(path, STRANGER, STRANGER)
    processes.environment["TDX_STATE_DIR"] = str(folder / "theirs")
    config = mesh.config(mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32"))
    hub = Hub(processes, mesh, folder, config, user=as_stranger())
    push = hub.pushed_by(mesh.laptop, mesh.config(hub_of(mesh, configured=True)), source)
    assert push.code == 0, push.log()
    assert hub.receiver.published == [source.name]
    # Where it does not, nobody but root can learn which key an address leads to.
    push = hub.pushed_by(mesh.laptop, mesh.config(hub_of(mesh)), source, mesh.hub.address)
    assert push.code == 75, push.log()
    (line,) = push.stderr.splitlines()
    assert "allowed_ips" in line
