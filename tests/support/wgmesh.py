"""A real WireGuard mesh of three machines and an outsider, each in namespaces of its own, with
wireguard-go on a network that connects them all. Nothing is left behind.

``hub`` knows two peers by their keys: ``laptop`` and ``guest``. ``outsider`` is on the network
below the mesh, and no member of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.processes import Processes, Running, wait_until
from support.spaces import inside, namespaces, needs, or_skip

INTERFACE: Final = "wg0"
"""The name of the mesh's interface on every member."""

CABLE: Final = "below"
"""The name of the interface to the network below on every machine."""

BEHIND: Final = "10.9.2.5"
"""An address of laptop in a network behind it, which hub routes to laptop."""

BEHIND_NETWORK: Final = "10.9.2.0/24"

_LISTENS: Final = "UAPI listener started"
_PORT: Final = 51820
_RUN: Final = os.path.realpath("/var/run")

_LISTENER: Final = """
import json, logging, socket, sys
from tdx.errors import IdentityUnavailable
from tdx.identity.port import Endpoint, Link
from tdx.identity.settings import WireguardPeer, WireguardSettings
from tdx.identity.wireguard import WireguardProvider

logging.basicConfig()
host, interface, peers = json.loads(sys.argv[1])
provider = WireguardProvider(
    WireguardSettings("wg0", tuple(WireguardPeer(**{**peer, "allowed_ips": tuple(peer["allowed_ips"])})
                                   for peer in peers)))
listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
if interface:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\\0")
listener.bind((host, 0))
listener.listen()
print(json.dumps(listener.getsockname()[1]), flush=True)
while True:
    accepted, (remote, port, *_) = listener.accept()
    with accepted:
        link = Link(Endpoint(*accepted.getsockname()[:2]), Endpoint(remote, port), interface)
        found, said = None, ""
        try:
            found = provider.whois(link) if provider.covers(remote) else None
        except IdentityUnavailable as error:
            said = error.message
        print(json.dumps({"from": remote, "owner": found and found.owner, "node": found and found.node,
                          "own": found and found.own, "unavailable": said}), flush=True)
        accepted.sendall(b"seen")
"""

_CALL: Final = """
import socket, sys
source, host, port = sys.argv[1:]
caller = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
caller.settimeout(30)
if source:
    caller.bind((source, 0))
try:
    caller.connect((host, int(port)))
except OSError as error:
    sys.exit(f"{error.strerror}")
if caller.recv(16) != b"seen":
    sys.exit("not seen")
"""

_ATTEMPT: Final = """
import signal, socket, sys
source, host, port = sys.argv[1:]
caller = socket.socket()
caller.setblocking(False)
caller.bind((source, 0))
print(caller.connect_ex((host, int(port))), flush=True)
print(caller.getsockname()[0], flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Machine:
    """One machine. ``prefix`` comes before a command that is to run there. ``below`` is its address
    on the network below, ``address`` and ``address6`` those on the mesh, ``key`` its public key."""

    name: str
    prefix: list[str]
    below: str
    address: str = ""
    address6: str = ""
    key: str = ""

    def run(self, *command: str) -> str:
        """Run to the end, which must be a good one; what it printed."""
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


@dataclass(frozen=True)
class WgMesh:
    """A mesh that is up: hub and its two peers reach each other by their addresses on it."""

    hub: Machine
    laptop: Machine
    guest: Machine
    outsider: Machine

    def peer(self, machine: Machine, name: str, *allowed_ips: str, subnet: bool = False) -> dict[str, Any]:
        """What the configuration says of ``machine``, whose key is given ``name``."""
        return {"name": name, "key": machine.key, "allowed_ips": list(allowed_ips), "subnet": subnet}

    def config(self, *peers: dict[str, Any]) -> str:
        """The part of a configuration file that names these peers."""
        lines = ["[tailscale]", "enabled = false", "[[wireguard]]", f'interface = "{INTERFACE}"']
        for peer in peers:
            lines.append("[[wireguard.peer]]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in peer.items() if value]
        return "\n".join(lines) + "\n"

    def lure_replies_below(self) -> None:
        """What the hub sends to laptop's address goes to the outsider from now on: the most that
        somebody on the network below can hope for."""
        self.hub.run("ip", "route", "add", f"{self.laptop.address}/32", "via", self.outsider.below)
        self.outsider.run("ip", "address", "add", f"{self.laptop.address}/32", "dev", CABLE)
        self.outsider.run("ip", "route", "add", f"{self.hub.address}/32", "via", self.hub.below)


class Listener:
    """A listener on ``machine`` that asks the provider about every caller."""

    def __init__(
        self,
        processes: Processes,
        machine: Machine,
        host: str,
        interface: str | None,
        peers: Sequence[dict[str, Any]],
        prefix: Sequence[str] = (),
    ) -> None:
        given = json.dumps([host, interface, peers])
        command = [*machine.prefix, *prefix, sys.executable, "-c", _LISTENER, given]
        self._process = processes.run("listener", command)
        self.host = host
        self.port = str(self._line(0))

    def _line(self, number: int) -> Any:
        def lines() -> list[str]:
            assert self._process.running, self._process.log()
            return self._process.stdout.split("\n")[:-1]

        wait_until(lambda: len(lines()) > number, "the listener tells more")
        return json.loads(lines()[number])

    @property
    def said(self) -> list[dict[str, Any]]:
        """What it has found out about each caller so far, in the order of their calls."""
        return [json.loads(line) for line in self._process.stdout.split("\n")[1:-1]]

    @property
    def log(self) -> str:
        return self._process.stderr

    def called_by(self, processes: Processes, machine: Machine, source: str = "") -> dict[str, Any]:
        """Call it, from the address ``source`` where one is given; what it finds out."""
        number = len(self.said)
        assert self.attempted_by(processes, machine, source) == ""
        found = self._line(number + 1)
        assert isinstance(found, dict)
        return found

    def attempted_by(self, processes: Processes, machine: Machine, source: str = "") -> str:
        """Call it; why the caller did not get through, empty where it did."""
        command = [*machine.prefix, sys.executable, "-c", _CALL, source, self.host, self.port]
        caller = processes.run("caller", command)
        caller.wait()
        return caller.stderr.strip() if caller.code else ""


def attempt(processes: Processes, machine: Machine, source: str, host: str, port: int | str) -> Running:
    """Begin to connect from ``source``, and go on trying; the first packet has been sent."""
    command = [*machine.prefix, sys.executable, "-c", _ATTEMPT, source, host, str(port)]
    caller = processes.run("attempt", command)
    wait_until(lambda: caller.stdout.count("\n") == 2 or not caller.running, "the connection is attempted")
    assert caller.stdout.split("\n")[1] == source, caller.log()
    return caller


# --- making it ---------------------------------------------------------------


def wgmesh(processes: Processes, folder: Path) -> WgMesh:
    """The mesh, with its keys in ``folder`` (which may be there already)."""
    needs("wg", "wireguard-go", "ip")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/net/tun")
    folder.mkdir(parents=True, exist_ok=True)
    holders = {name: namespaces(processes, "net", "mount") for name in ("hub", "laptop", "guest", "outsider")}
    _wire(holders)
    keys = {name: _new_key(folder, name) for name in holders}
    made = {
        name: Machine(
            name,
            inside(holder, "net", "mount"),
            f"10.215.0.{number}",
            *(() if name == "outsider" else (f"10.9.0.{number}", f"fd09::{number}", keys[name])),
        )
        for number, (name, holder) in enumerate(holders.items(), 1)
    }
    mesh = WgMesh(**made)
    for machine in (mesh.hub, mesh.laptop, mesh.guest):
        _join(processes, machine, folder / machine.name)
    for machine, behind in ((mesh.laptop, [BEHIND_NETWORK]), (mesh.guest, [])):
        allowed = ",".join([f"{machine.address}/32", f"{machine.address6}/128", *behind])
        mesh.hub.run("wg", "set", INTERFACE, "peer", machine.key, "allowed-ips", allowed)
        theirs = ["peer", mesh.hub.key, "allowed-ips", f"{mesh.hub.address}/32,{mesh.hub.address6}/128"]
        machine.run("wg", "set", INTERFACE, *theirs, "endpoint", f"{mesh.hub.below}:{_PORT}")
    mesh.hub.run("ip", "route", "add", BEHIND_NETWORK, "dev", INTERFACE)
    mesh.laptop.run("ip", "address", "add", f"{BEHIND}/32", "dev", "lo")
    return mesh


def _wire(holders: dict[str, Running]) -> None:
    """A cable for each machine, all plugged into a bridge in the hub, which has an address itself."""
    script = ["ip link set lo up", f"ip link add {CABLE} type bridge"]
    for number, (name, holder) in enumerate(holders.items(), 1):
        if name == "hub":
            script += [f"ip address add 10.215.0.{number}/24 dev {CABLE}", f"ip link set {CABLE} up"]
            continue
        script += [
            f"ip link add {name} type veth peer name {CABLE} netns {holder.pid}",
            f"ip link set {name} master {CABLE} up",
        ]
    or_skip([*inside(holders["hub"], "net"), "sh", "-ec", "\n".join(script)])
    for number, (name, holder) in enumerate(holders.items(), 1):
        script = [
            # Everything that the kernel could do against a spoofed source is off: tdx must not need it.
            "for each in all default; do echo 0 > /proc/sys/net/ipv4/conf/$each/rp_filter; done",
            "ip link set lo up",
        ]
        if name != "hub":
            script += [f"ip address add 10.215.0.{number}/24 dev {CABLE}", f"ip link set {CABLE} up"]
        else:
            script += [f"echo 0 > /proc/sys/net/ipv4/conf/{CABLE}/rp_filter"]
        or_skip([*inside(holder, "net"), "sh", "-ec", "\n".join(script)])


def _new_key(folder: Path, name: str) -> str:
    """Makes a private key in the file of this name; its public key."""
    private = subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout
    (folder / name).touch(0o600)
    (folder / name).write_bytes(private)
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, check=True).stdout
    return public.decode().strip()


def _join(processes: Processes, machine: Machine, private_key: Path) -> None:
    # wireguard-go's control sockets are in /var/run, and tests that run at the same time have the same names.
    or_skip([*machine.prefix, "mount", "-t", "tmpfs", "-o", "mode=755", "tdx-test", _RUN])
    environment = {**processes.environment, "LOG_LEVEL": "verbose"}
    command = [*machine.prefix, "wireguard-go", "-f", INTERFACE]
    daemon = processes.run("wireguard", command, env=environment)
    # Not asked with wg until it listens: wg takes a socket that refuses for a stale one and removes it,
    # and wireguard-go, whose socket is gone, ends.
    wait_until(lambda: _LISTENS in daemon.log() or not daemon.running, "wireguard-go listens")
    if "create TUN device" in daemon.stderr:
        pytest.skip(f"no WireGuard: {daemon.stderr.strip()[-300:]}")
    assert daemon.running, daemon.log()
    machine.run("wg", "set", INTERFACE, "private-key", str(private_key), "listen-port", str(_PORT))
    for address in (f"{machine.address}/24", f"{machine.address6}/64"):
        machine.run("ip", "address", "add", address, "dev", INTERFACE)
    machine.run("ip", "link", "set", INTERFACE, "up")
