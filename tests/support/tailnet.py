"""A real tailnet: headscale as its control server, and nodes that run tailscaled, each in a network
namespace of its own. Nothing outside is asked for anything, and nothing is left behind.

``laptop``, ``desktop`` and ``nas`` belong to alice and reach each other directly, as does ``server``,
which is tagged; ``phone`` belongs to bob, has no route to the others, and so depends on the relay.
``nas`` has no network device for it (userspace networking): what is sent to it arrives on loopback.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from support.headscale import Headscale
from support.processes import PATIENCE, Processes, Running, wait_until
from support.spaces import inside, namespaces, needs, needs_root, or_skip

ALICE: Final = "alice@example.com"
BOB: Final = "bob@example.com"
TAG: Final = "tag:server"
CAPABILITY: Final = "example.com/cap/tdx"
"""What the policy grants to bob's nodes on those of alice, and to nobody else."""

_HUB: Final = "10.214.0.1"
_TUN: Final = Path("/dev/net/tun")
_PROGRAMS: Final = ("tailscaled", "tailscale", "headscale")

_POLICY: Final = {
    "tagOwners": {TAG: [ALICE]},
    "grants": [
        {"src": ["*"], "dst": ["*"], "ip": ["*"]},
        {"src": [BOB], "dst": [ALICE], "app": {CAPABILITY: [{"push": True}]}},
    ],
}


class _Plan(NamedTuple):
    owner: str
    wire: str
    gateway: str = _HUB
    """The hub's address on this node's cable, or on the bridge that its cable is plugged into."""
    userspace: bool = False


_PLANS: Final = {
    "laptop": _Plan(ALICE, "10.214.0.2"),
    "desktop": _Plan(ALICE, "10.214.0.3"),
    "nas": _Plan(ALICE, "10.214.0.4", userspace=True),
    "server": _Plan(TAG, "10.214.0.5"),
    "phone": _Plan(BOB, "10.214.1.2", gateway="10.214.1.1"),
}

# --- a tailnet and its nodes -------------------------------------------------


class _LocalConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local-tailscaled.sock", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass
class Node:
    """One machine. ``prefix`` comes before a command that is to run there, ``tool`` before arguments
    of ``tailscale``. ``wire`` is its address outside the tailnet, on the interface of that name.
    ``user`` is empty where it is tagged; ``name`` is as status has it but for the final dot."""

    host: str
    prefix: list[str]
    socket: Path
    daemon: Running
    tool: list[str]
    wire: str
    user: str
    tags: tuple[str, ...]
    name: str = ""
    ip4: str = ""
    ip6: str = ""

    def ask(self, target: str) -> tuple[int, bytes]:
        """Status and body of what the LocalAPI answers to a GET."""
        with contextlib.closing(_LocalConnection(self.socket)) as connection:
            connection.request("GET", f"/localapi/v0/{target}")
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self) -> dict[str, Any]:
        code, body = self.ask("status")
        assert code == 200, body
        return dict(json.loads(body))

    def whois(self, address: str) -> dict[str, Any] | None:
        """Who has ``address`` (IP or IP:port); None where nobody does."""
        code, body = self.ask("whois?" + urllib.parse.urlencode({"addr": address}))
        if code == 404:
            return None
        assert code == 200, body
        return dict(json.loads(body))

    def await_others(self, count: int) -> None:
        """Wait until it is up, has a relay, and has seen ``count`` other nodes that are and have, too."""

        def ready() -> bool:
            assert self.daemon.running, self.daemon.log()
            status = self.status()
            peers = (status["Peer"] or {}).values()
            return (
                status["BackendState"] == "Running"
                and bool(status["Self"]["Relay"])
                and sum(peer["Online"] and bool(peer["Relay"]) for peer in peers) == count
            )

        wait_until(ready, f"{self.host} knows the others")


class Tailnet:
    """A tailnet that is up: every node knows every other and has a way to it."""

    def __init__(self, processes: Processes, nodes: Mapping[str, Node]) -> None:
        self._processes = processes
        self.nodes = dict(nodes)
        self._await_all()
        for node in self.nodes.values():
            found = node.status()["Self"]
            node.name = found["DNSName"].rstrip(".")
            node.ip4, node.ip6 = sorted(found["TailscaleIPs"], key=lambda address: ":" in address)
        self._meet()

    def __getitem__(self, host: str) -> Node:
        return self.nodes[host]

    @contextlib.contextmanager
    def down(self, host: str) -> Iterator[Node]:
        """Within, that node is not connected."""
        node = self.nodes[host]
        self._run([[*node.tool, "down"]])
        try:
            yield node
        finally:
            self._run([[*node.tool, "up"]])
            self._await_all()
            self._meet()

    def _await_all(self) -> None:
        for node in self.nodes.values():
            node.await_others(len(self.nodes) - 1)

    def _meet(self) -> None:
        """Have every node answered by every other: from then on, no packet waits for a handshake."""
        ping = ["ping", "--tsmp", "--c=20", "--timeout=1s"]
        nodes = self.nodes.values()
        self._run([[*one.tool, *ping, other.ip4] for one in nodes for other in nodes if other is not one])

    def _run(self, commands: list[list[str]]) -> None:
        """All at a time."""
        for process in [self._processes.run("tailscale", command) for command in commands]:
            assert process.wait() == 0, self._processes.logs_of_all()


# --- bringing it up ----------------------------------------------------------


@contextlib.contextmanager
def real_tailnet(processes: Processes, where: Path = Path("/tmp")) -> Iterator[Tailnet]:
    """Bring one up, with ``processes`` that are all ended afterwards. The nodes keep their state below
    ``where``, whose path is short."""
    programs = _programs()
    hub = namespaces(processes, "net")
    holders = {host: namespaces(processes, "net") for host in _PLANS}
    _wire(hub, holders)
    # Where the temporary folders of pytest are, the path of a socket may grow too long for one.
    with tempfile.TemporaryDirectory(prefix="tdx-tailnet-", dir=where) as name:
        folder = Path(name)
        folder.chmod(0o755)  # any user may ask tailscaled who is calling
        try:
            nodes = {host: _start(processes, programs, host, holders[host], folder) for host in _PLANS}
            prefix = inside(hub, "net")
            server = Headscale(processes, programs["headscale"], prefix, folder / "headscale", _HUB, _POLICY)
            keys = {user: server.key_of_user(user) for user in (ALICE, BOB)}
            keys[TAG] = server.key_of_tag(TAG)
            joining = [
                _join(processes, node, server.url, keys[_PLANS[node.host].owner]) for node in nodes.values()
            ]
            for each in joining:
                assert each.wait() == 0, processes.logs_of_all()
            yield Tailnet(processes, nodes)
        finally:
            for process in reversed(processes.started):
                process.kill()


def _programs() -> dict[str, str]:
    """Where ``make test-tailnet`` has put them. Skips the test where this machine cannot run them."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TDX_TEST_CACHE") or Path(caches, "tdx-test"), "bin")
    for name in _PROGRAMS:
        if not os.access(folder / name, os.X_OK):
            pytest.skip(f"there is no {folder / name}; `make test-tailnet` builds it")
    needs_root()
    needs("ip")
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"{_TUN}: {error.strerror}")
    return {name: str(folder / name) for name in _PROGRAMS}


def _wire(hub: Running, holders: Mapping[str, Running]) -> None:
    """A bridge in the hub for those whose gateway is the hub's main address, a cable of its own for
    every other. The hub forwards nothing between the two."""
    lines = ["echo 0 > /proc/sys/net/ipv4/ip_forward", "ip link set lo up", "ip link add bridge type bridge"]
    lines += [f"ip address add {_HUB}/24 dev bridge", "ip link set bridge up"]
    for host, holder in holders.items():
        gateway = _PLANS[host].gateway
        lines += [f"ip link add {host} type veth peer name wire netns {holder.pid}", f"ip link set {host} up"]
        if gateway == _HUB:
            lines += [f"ip link set {host} master bridge"]
        else:
            lines += [f"ip address add {gateway}/24 dev {host}"]
    or_skip([*inside(hub, "net"), "sh", "-ec", "\n".join(lines)])
    for host, holder in holders.items():
        plan = _PLANS[host]
        lines = ["ip link set lo up", f"ip address add {plan.wire}/24 dev wire", "ip link set wire up"]
        if plan.gateway != _HUB:
            lines += [f"ip route add {_HUB}/32 via {plan.gateway}"]
        or_skip([*inside(holder, "net"), "sh", "-ec", "\n".join(lines)])


def _start(
    processes: Processes, programs: Mapping[str, str], host: str, holder: Running, folder: Path
) -> Node:
    plan, prefix, state = _PLANS[host], inside(holder, "net"), folder / host
    state.mkdir()
    environment = {
        **processes.environment,
        "HOME": str(state),
        "TS_LOGS_DIR": str(state),
        "TS_NO_LOGS_NO_SUPPORT": "true",
        "TS_DEBUG_USE_DERP_HTTP": "true",  # the relay speaks what the control server speaks
    }
    where = [f"--statedir={state}", f"--socket={state / 'socket'}"]
    device = "userspace-networking" if plan.userspace else "tailscale0"
    daemon = processes.run(
        f"tailscaled-{host}",
        [*prefix, programs["tailscaled"], *where, f"--tun={device}"],
        env=environment,
    )
    tagged = plan.owner.startswith("tag:")
    return Node(
        host,
        prefix,
        state / "socket",
        daemon,
        tool=[*prefix, programs["tailscale"], f"--socket={state / 'socket'}"],
        wire=plan.wire,
        user="" if tagged else plan.owner,
        tags=(plan.owner,) if tagged else (),
    )


def _join(processes: Processes, node: Node, server: str, key: str) -> Running:
    wait_until(lambda: node.socket.exists() or not node.daemon.running, f"{node.host}'s tailscaled listens")
    assert node.daemon.running, node.daemon.log()
    # What tailscaled would do to the machine's resolver is none of a test's business.
    flags = ["--accept-dns=false", "--netfilter-mode=off", f"--timeout={PATIENCE:g}s"]
    to = [f"--login-server={server}", f"--authkey={key}", f"--hostname={node.host}"]
    return processes.run(f"up-{node.host}", [*node.tool, "up", *flags, *to])
