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
import shutil
import socket
import stat
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from support.processes import PATIENCE, Processes, Running, wait_until
from support.spaces import _apart, _or_skip, inside

ALICE: Final = "alice@example.com"
BOB: Final = "bob@example.com"
TAG: Final = "tag:server"
CAPABILITY: Final = "example.com/cap/tdx"
"""What the policy grants to bob's nodes on those of alice, and to nobody else."""

SUFFIX: Final = "tailnet.test"
"""What ends the name of every node."""

DEVICE: Final = "tailscale0"
"""The network interface of every node that has one."""

RELAY: Final = "test"
"""What status calls the relay: DERP's region code."""

_HUB: Final = "10.214.0.1"
_CONTROL: Final = f"http://{_HUB}:8080"

_POLICY: Final = {
    "tagOwners": {TAG: [ALICE]},
    "grants": [
        {"src": ["*"], "dst": ["*"], "ip": ["*"]},
        {"src": [BOB], "dst": [ALICE], "app": {CAPABILITY: [{"push": True}]}},
    ],
}


class _Plan(NamedTuple):
    owner: str
    address: str
    gateway: str
    """The hub's address on this node's cable, or on the bridge that its cable is plugged into."""
    userspace: bool = False


_PLANS: Final = {
    "laptop": _Plan(ALICE, "10.214.0.2", _HUB),
    "desktop": _Plan(ALICE, "10.214.0.3", _HUB),
    "nas": _Plan(ALICE, "10.214.0.5", _HUB, userspace=True),
    "server": _Plan(TAG, "10.214.0.4", _HUB),
    "phone": _Plan(BOB, "10.214.1.2", "10.214.1.1"),
}


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
    """One machine. ``prefix`` comes before a command that is to run there, ``user`` is empty where
    it is tagged, ``name`` is as status has it but for the final dot."""

    host: str
    prefix: list[str]
    socket: Path
    daemon: Running
    user: str = ""
    tags: tuple[str, ...] = ()
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
        return _object(body)

    def whois(self, address: str) -> dict[str, Any] | None:
        """Who has ``address`` (IP or IP:port); None where nobody does."""
        code, body = self.ask("whois?" + urllib.parse.urlencode({"addr": address}))
        if code == 404:
            return None
        assert code == 200, body
        return _object(body)


@dataclass
class Tailnet:
    """A tailnet that is up: every node knows every other and has a way to it."""

    nodes: dict[str, Node] = field(default_factory=dict)

    def __getitem__(self, host: str) -> Node:
        return self.nodes[host]


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    assert isinstance(found, dict), body
    return found


# --- the programs ------------------------------------------------------------


@dataclass(frozen=True)
class _Programs:
    tailscaled: str
    tailscale: str
    headscale: str


def _programs() -> _Programs:
    """Where ``make test-tailnet`` puts them."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TDX_TEST_CACHE") or Path(caches, "tdx-test"), "bin")
    found = _Programs(*(str(folder / name) for name in ("tailscaled", "tailscale", "headscale")))
    for program in (found.tailscaled, found.tailscale, found.headscale):
        if not os.access(program, os.X_OK):
            pytest.skip(f"there is no {program}; `make test-tailnet` builds it")
    return found


def _check_machine() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    tun = Path("/dev/net/tun")
    if not tun.exists() or not stat.S_ISCHR(tun.stat().st_mode):
        pytest.skip("there is no /dev/net/tun")
    try:
        os.close(os.open(tun, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"{tun}: {error.strerror}")
    if shutil.which("ip") is None:
        pytest.skip("there is no ip")


# --- cables ------------------------------------------------------------------


def _wire(hub: Running, nodes: Mapping[str, Running]) -> None:
    """A bridge in the hub for those whose gateway is the hub's main address, a cable of its own for
    every other. The hub forwards nothing between the two."""
    in_hub = inside(hub, "net")
    script = ["echo 0 > /proc/sys/net/ipv4/ip_forward", "ip link set lo up", "ip link add bridge type bridge"]
    # Duplicate address detection would keep the first seconds for itself.
    script += ["echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad || true"]
    script += [f"ip address add {_HUB}/24 dev bridge", "ip link set bridge up"]
    for host, holder in nodes.items():
        plan = _PLANS[host]
        script += [
            f"ip link add {host} type veth peer name wire netns {holder.pid}",
            f"ip link set {host} up",
        ]
        if plan.gateway == _HUB:
            script += [f"ip link set {host} master bridge"]
        else:
            script += [f"ip address add {plan.gateway}/24 dev {host}"]
    _or_skip([*in_hub, "sh", "-ec", "\n".join(script)])
    for host, holder in nodes.items():
        plan = _PLANS[host]
        script = ["ip link set lo up", f"ip address add {plan.address}/24 dev wire", "ip link set wire up"]
        if plan.gateway != _HUB:
            script += [f"ip route add {_HUB}/32 via {plan.gateway}"]
        _or_skip([*inside(holder, "net"), "sh", "-ec", "\n".join(script)])


# --- the control server ------------------------------------------------------


class _Headscale:
    def __init__(self, processes: Processes, program: str, prefix: list[str], folder: Path) -> None:
        folder.mkdir()
        self._config = folder / "config.yaml"
        self._command = [*prefix, program, "--config", str(self._config)]
        self._environment = {**processes.environment, "HOME": str(folder)}
        policy = folder / "policy.json"
        policy.write_text(json.dumps(_POLICY))
        settings = {
            "server_url": _CONTROL,
            "listen_addr": urllib.parse.urlsplit(_CONTROL).netloc,
            "metrics_listen_addr": "",
            "grpc_listen_addr": "127.0.0.1:50443",
            "unix_socket": str(folder / "socket"),
            "unix_socket_permission": "0700",
            "noise": {"private_key_path": str(folder / "noise.key")},
            "prefixes": {"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
            "derp": {
                "server": {
                    "enabled": True,
                    "region_id": 999,
                    "region_code": RELAY,
                    "region_name": "Test",
                    "verify_clients": True,
                    "stun_listen_addr": f"{_HUB}:3478",
                    "private_key_path": str(folder / "derp.key"),
                    "automatically_add_embedded_derp_region": True,
                    "ipv4": _HUB,
                },
                "urls": [],
                "paths": [],
                "auto_update_enabled": False,
            },
            "disable_check_updates": True,
            "database": {"type": "sqlite", "sqlite": {"path": str(folder / "db.sqlite")}},
            "log": {"level": "info", "format": "text"},
            "policy": {"mode": "file", "path": str(policy)},
            "dns": {
                "magic_dns": True,
                "base_domain": SUFFIX,
                "override_local_dns": False,
                "nameservers": {"global": []},
            },
            "logtail": {"enabled": False},
        }
        self._config.write_text(json.dumps(settings))  # JSON is YAML
        self._server = processes.run("headscale", [*self._command, "serve"], env=self._environment)
        socket_path = folder / "socket"
        wait_until(lambda: socket_path.exists() or not self._server.running, "headscale listens")
        assert self._server.running, self._server.log()

    def tell(self, *arguments: str) -> Any:
        """What headscale answers to a command, decoded."""
        command = [*self._command, "--output", "json", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=self._environment
        )
        assert done.returncode == 0, f"{done.stderr}\n{self._server.log()}"
        return json.loads(done.stdout)

    def keys(self) -> dict[str, str]:
        """Of each user and tag, a key with which any number of its nodes may join."""
        keys: dict[str, str] = {}
        for email in (ALICE, BOB):
            made = self.tell("users", "create", email.partition("@")[0], "--email", email)
            keys[email] = self.tell("preauthkeys", "create", "--user", str(made["id"]), "--reusable")["key"]
        keys[TAG] = self.tell("preauthkeys", "create", "--tags", TAG, "--reusable")["key"]
        return keys


# --- the nodes ---------------------------------------------------------------


def _start(processes: Processes, program: str, host: str, holder: Running, folder: Path) -> Node:
    state = folder / host
    state.mkdir()
    prefix = inside(holder, "net")
    environment = {
        **processes.environment,
        "HOME": str(state),
        "TS_LOGS_DIR": str(state),
        "TS_NO_LOGS_NO_SUPPORT": "true",
        "TS_DEBUG_USE_DERP_HTTP": "true",  # the relay speaks what the control server speaks
    }
    command = [program, "--statedir", str(state), "--socket", str(state / "socket")]
    plan = _PLANS[host]
    command += ["--tun", "userspace-networking" if plan.userspace else DEVICE]
    daemon = processes.run(f"tailscaled-{host}", [*prefix, *command], env=environment)
    owner = plan.owner
    tagged = owner.startswith("tag:")
    return Node(
        host,
        prefix,
        state / "socket",
        daemon,
        user="" if tagged else owner,
        tags=(owner,) if tagged else (),
    )


def _join(processes: Processes, program: str, node: Node, key: str) -> Running:
    wait_until(lambda: node.socket.exists() or not node.daemon.running, f"{node.host}'s tailscaled listens")
    assert node.daemon.running, node.daemon.log()
    flags = ["--accept-dns=false", "--netfilter-mode=off", f"--timeout={PATIENCE:g}s"]
    to = [f"--login-server={_CONTROL}", f"--authkey={key}", f"--hostname={node.host}"]
    return processes.run(
        f"up-{node.host}", [*node.prefix, program, f"--socket={node.socket}", "up", *flags, *to]
    )


def _ready(node: Node, others: int) -> bool:
    """Whether it is up, with a relay, and every other node has been seen to be online."""
    assert node.daemon.running, node.daemon.log()
    status = node.status()
    peers = (status["Peer"] or {}).values()
    return (
        status["BackendState"] == "Running"
        and bool(status["Self"]["Relay"])
        and sum(peer["Online"] and bool(peer["Relay"]) for peer in peers) == others
    )


def _reach(processes: Processes, program: str, tailnet: Tailnet) -> None:
    """Have every node answered by every other: from then on, no packet waits for a handshake."""
    pings = [
        processes.run(
            f"ping-{node.host}-{other.host}", [*node.prefix, program, f"--socket={node.socket}", *ping]
        )
        for node in tailnet.nodes.values()
        for other in tailnet.nodes.values()
        if other is not node
        for ping in [["ping", "--tsmp", "--c=20", "--timeout=1s", other.ip4]]
    ]
    for each in pings:
        assert each.wait() == 0, f"{each.log()}\n{processes.logs_of_all()}"


def _fill_in(node: Node, others: int) -> None:
    """Wait until it is ready, and note what it is called."""
    wait_until(lambda: _ready(node, others), f"{node.host} knows the others")
    found = node.status()["Self"]
    node.name = found["DNSName"].rstrip(".")
    node.ip4, node.ip6 = sorted(found["TailscaleIPs"], key=lambda address: ":" in address)


@contextlib.contextmanager
def real_tailnet(processes: Processes) -> Iterator[Tailnet]:
    """Bring one up, with ``processes`` that are all ended afterwards."""
    _check_machine()
    programs = _programs()
    hub = _apart(processes, "net")
    holders = {host: _apart(processes, "net") for host in _PLANS}
    _wire(hub, holders)
    # Where the temporary folders of pytest are, the path of a socket may grow too long for one.
    with tempfile.TemporaryDirectory(prefix="tdx-tailnet-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # any user may ask tailscaled who is calling
        try:
            yield _bring_up(processes, programs, folder, hub, holders)
        finally:
            for process in reversed(processes.started):
                process.kill()


def _bring_up(
    processes: Processes, programs: _Programs, folder: Path, hub: Running, holders: Mapping[str, Running]
) -> Tailnet:
    nodes = {
        host: _start(processes, programs.tailscaled, host, holder, folder) for host, holder in holders.items()
    }
    keys = _Headscale(processes, programs.headscale, inside(hub, "net"), folder / "headscale").keys()
    joining = [
        _join(processes, programs.tailscale, node, keys[_PLANS[host].owner]) for host, node in nodes.items()
    ]
    for each in joining:
        assert each.wait() == 0, f"{each.log()}\n{processes.logs_of_all()}"
    for node in nodes.values():
        _fill_in(node, len(nodes) - 1)
    tailnet = Tailnet(nodes)
    _reach(processes, programs.tailscale, tailnet)
    return tailnet
