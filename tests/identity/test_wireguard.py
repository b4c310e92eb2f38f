from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path

import pytest

from support.processes import Processes, reaped
from support.spaces import as_stranger
from support.wgmesh import BEHIND, BEHIND_NETWORK, CABLE, Listener, WgMesh, attempt, wgmesh
from tdx.errors import ConfigError, IdentityUnavailable
from tdx.identity.netdev import Interface
from tdx.identity.port import Endpoint, KnownPeer, Link, Mesh, Place
from tdx.identity.settings import WireguardPeer, WireguardSettings
from tdx.identity.wg import Wg
from tdx.identity.wireguard import ALIVE_SECONDS, KEPT_SECONDS, WireguardProvider
from tdx.model import Identity, Owner

LAPTOP, ROUTER, STRANGER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2, 3))
NOW = 1_700_000_000.0
OWN = "198.51.100.1"


class ToldWg(Wg):
    """Says what it is told to say."""

    def __init__(self, said: str | IdentityUnavailable = "", shaken: str | IdentityUnavailable = "") -> None:
        super().__init__("wg0")
        self.said = said
        self.shaken = shaken
        self.asked = 0

    def allowed_ips(self) -> str:
        self.asked += 1
        return _or_raise(self.said)

    def latest_handshakes(self) -> str:
        return _or_raise(self.shaken)


def _or_raise(said: str | IdentityUnavailable) -> str:
    if isinstance(said, IdentityUnavailable):
        raise said
    return said


@dataclass
class ToldInterface(Interface):
    name: str = "wg0"
    up: bool = True
    tunnel: bool | None = True
    own: tuple[str, ...] = (f"{OWN}/24",)

    def is_up(self) -> bool:
        return self.up

    def is_tunnel(self) -> bool | None:
        return self.tunnel

    def addresses(self) -> list[IPv4Interface | IPv6Interface]:
        return [ip_interface(text) for text in self.own]


@dataclass
class Bench:
    """A provider with everything around it told."""

    peers: tuple[WireguardPeer, ...] = ()
    wg: ToldWg = field(default_factory=ToldWg)
    netdev: ToldInterface = field(default_factory=ToldInterface)
    time: float = 100.0

    def __post_init__(self) -> None:
        self.provider = WireguardProvider(
            WireguardSettings("wg0", self.peers),
            wg=self.wg,
            netdev=self.netdev,
            clock=lambda: self.time,
            now=lambda: NOW,
        )

    def whois(self, host: str, interface: str | None = "wg0") -> Identity | None:
        return self.provider.whois(Link(Endpoint(OWN, 8390), Endpoint(host, 50000), interface))


def peer(*allowed_ips: str, key: str = LAPTOP, name: str = "laptop", subnet: bool = False) -> WireguardPeer:
    return WireguardPeer(name, key, allowed_ips, subnet)


def named(name: str, key: str) -> Identity:
    return Identity(Owner(f"wireguard:{key}"), "wireguard", "", name, own=True)


REFUSED = IdentityUnavailable("wg said: Operation not permitted")


def test_it_is_a_mesh() -> None:
    mesh: Mesh = Bench().provider
    assert mesh.name == "wireguard"
    assert list(mesh.own_names()) == []


# --- allowed IPs from the configuration --------------------------------------


def test_a_single_address_is_the_peer_that_has_it_and_wg_is_not_asked() -> None:
    bench = Bench(
        (peer("198.51.100.2/32", "2001:db8::2/128"), peer("198.51.100.3", key=ROUTER, name="Router"))
    )
    assert bench.whois("198.51.100.2") == named("laptop", LAPTOP)
    assert bench.whois("::ffff:198.51.100.2") == named("laptop", LAPTOP)
    assert bench.whois("2001:db8::2") == named("laptop", LAPTOP)
    assert bench.whois("198.51.100.3") == named("Router", ROUTER)
    assert bench.whois("198.51.100.4") is None
    assert bench.wg.asked == 0


@pytest.mark.parametrize("host", ["", "laptop", "198.51.100.2/32", "127.0.0.1", "::1", "fe80::2"])
def test_what_is_not_surely_an_address_of_another_machine_is_nobody(host: str) -> None:
    bench = Bench((peer("0.0.0.0/0", "::/0", subnet=True),))
    assert bench.whois(host) is None
    assert bench.provider.confirms(Endpoint(host, 8390)) is None
    assert not bench.provider.covers(host)


def test_a_network_identifies_only_where_the_peer_says_so() -> None:
    assert Bench((peer("198.51.100.0/24"),)).whois("198.51.100.2") is None
    assert Bench((peer("198.51.100.0/24", subnet=True),)).whois("198.51.100.2") == named("laptop", LAPTOP)


def test_the_longest_match_decides_even_where_it_identifies_nobody() -> None:
    router = peer("198.51.100.0/24", key=ROUTER, name="router", subnet=True)
    bench = Bench((router, peer("198.51.100.2/32", "198.51.100.128/25")))
    assert bench.whois("198.51.100.2") == named("laptop", LAPTOP)
    assert bench.whois("198.51.100.3") == named("router", ROUTER)
    assert bench.whois("198.51.100.129") is None


@pytest.mark.parametrize("same", ["198.51.100.2/32", "198.51.100.0/24", "2001:db8::2/128"])
def test_two_peers_with_the_same_allowed_ip_are_an_error(same: str) -> None:
    with pytest.raises(ConfigError, match=f"laptop and router both have {same}"):
        Bench((peer(same), peer(same, key=ROUTER, name="router")))


@pytest.mark.parametrize("wrong", ["198.51.100.2/24", "laptop", "198.51.100.2/33"])
def test_an_allowed_ip_that_is_none_is_an_error(wrong: str) -> None:
    with pytest.raises(ConfigError, match="laptop"):
        Bench((peer(wrong),))


# --- the way in --------------------------------------------------------------


def test_a_connection_that_is_not_bound_to_the_interface_is_nobody_and_that_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench((peer("198.51.100.2/32"),))
    assert bench.whois("198.51.100.2", interface="eth0") is None
    assert caplog.messages == []
    for _ in range(3):
        assert bench.whois("198.51.100.2", interface=None) is None
    (told,) = caplog.messages
    assert "listen on the address that this machine has on wg0" in told


def test_an_interface_that_is_an_ordinary_network_vouches_for_nobody() -> None:
    bench = Bench((peer("198.51.100.2/32"),), netdev=ToldInterface(tunnel=False))
    with pytest.raises(IdentityUnavailable, match="wg0 is not a WireGuard interface"):
        bench.whois("198.51.100.2")
    with pytest.raises(IdentityUnavailable, match="wg0 is not a WireGuard interface"):
        bench.provider.confirms(Endpoint("198.51.100.2", 8390))
    with pytest.raises(IdentityUnavailable, match="wg0 is not a WireGuard interface"):
        bench.provider.places()


def test_without_the_interface_nobody_is_vouched_for() -> None:
    bench = Bench((peer("198.51.100.2/32"),), netdev=ToldInterface(up=False, tunnel=None, own=()))
    assert bench.whois("198.51.100.2") is None
    assert bench.provider.confirms(Endpoint("198.51.100.2", 8390)) is None
    assert list(bench.provider.places()) == []
    assert not bench.provider.covers("198.51.100.2")


def test_an_interface_that_is_not_there_keeps_no_other_from_being_asked() -> None:
    bench = Bench((peer(),), ToldWg(REFUSED), ToldInterface(up=False, tunnel=None, own=()))
    assert not bench.provider.covers("198.18.7.2")
    assert bench.wg.asked == 0


def test_a_sender_is_told_whose_the_destination_is() -> None:
    bench = Bench((peer("198.51.100.2/32"),))
    assert bench.provider.confirms(Endpoint("198.51.100.2", 1)) == named("laptop", LAPTOP)
    assert bench.provider.confirms(Endpoint("198.51.100.3", 1)) is None
    assert bench.provider.interface("198.51.100.2") == "wg0"


def test_it_covers_what_identifies_somebody_and_its_own_network() -> None:
    router = peer("203.0.113.0/24", key=ROUTER, name="router", subnet=True)
    covers = Bench((peer("198.18.7.2/32", "0.0.0.0/0"), router)).provider.covers
    assert covers("198.18.7.2")
    assert covers("203.0.113.9")
    assert covers("198.51.100.77")
    assert not covers("198.18.7.3")
    assert not covers("2001:db8::1")


def test_its_places_are_the_addresses_of_the_interface_while_it_is_up() -> None:
    bench = Bench(netdev=ToldInterface(own=("198.51.100.1/24", "fe80::1/64", "2001:db8::1/64")))
    assert list(bench.provider.places()) == [Place("198.51.100.1", "wg0"), Place("2001:db8::1", "wg0")]
    bench.netdev.up = False
    assert list(bench.provider.places()) == []


# --- allowed IPs from wg -----------------------------------------------------


def test_wg_is_asked_where_a_peer_has_no_allowed_ips() -> None:
    bench = Bench((peer(),), ToldWg(f"{LAPTOP}\t198.18.7.2/32 198.18.7.64/26\n{STRANGER}\t198.18.7.3/32\n"))
    assert bench.provider.covers("198.18.7.2")
    assert not bench.provider.covers("198.18.7.65")
    assert bench.whois("198.18.7.2") == named("laptop", LAPTOP)
    assert bench.whois("198.18.7.65") is None
    assert bench.provider.confirms(Endpoint("198.18.7.2", 1)) == named("laptop", LAPTOP)


def test_a_key_without_a_name_is_vouched_for_as_what_it_is_and_not_as_ones_own() -> None:
    bench = Bench(wg=ToldWg(f"{STRANGER}\t198.18.7.3/32 198.18.7.64/26\n"))
    found = bench.whois("198.18.7.3")
    assert found == Identity(Owner(f"wireguard:{STRANGER}"), "wireguard", "", f"{STRANGER[:8]}…", own=False)
    assert STRANGER in str(found)
    assert bench.whois("198.18.7.65") is None


def test_a_peer_with_configured_allowed_ips_is_identified_only_by_these() -> None:
    router = peer("198.51.100.0/24", key=ROUTER, name="router", subnet=True)
    wg = ToldWg(
        f"{LAPTOP}\t198.18.7.2/32\n{ROUTER}\t198.51.100.0/24 198.18.7.9/32\n{STRANGER}\t198.51.100.3/32\n"
    )
    bench = Bench((router, peer()), wg)
    assert bench.whois("198.51.100.4") == named("router", ROUTER)
    assert bench.whois("198.18.7.2") == named("laptop", LAPTOP)
    assert bench.whois("198.18.7.9") is None
    # wg knows better whose this address within the router's network is.
    stranger = bench.whois("198.51.100.3")
    assert stranger is not None
    assert stranger.owner == f"wireguard:{STRANGER}"


def test_where_wg_contradicts_the_configuration_about_a_network_nobody_is_vouched_for() -> None:
    router = peer("198.51.100.0/24", key=ROUTER, name="router", subnet=True)
    bench = Bench((router, peer(subnet=True)), ToldWg(f"{LAPTOP}\t198.51.100.0/24\n"))
    assert bench.whois("198.51.100.4") is None


def test_an_address_that_the_configuration_knows_needs_no_wg() -> None:
    bench = Bench((peer("198.18.7.2/32"), peer(key=ROUTER, name="router")), ToldWg(REFUSED, REFUSED))
    assert bench.whois("198.18.7.2") == named("laptop", LAPTOP)
    assert [found.addresses for found in bench.provider.peers()] == [("198.18.7.2",), ()]
    with pytest.raises(IdentityUnavailable, match="Operation not permitted"):
        bench.whois("198.51.100.4")


def test_an_answer_is_kept_for_a_few_seconds_and_so_is_a_failure() -> None:
    bench = Bench((peer(),), ToldWg(f"{LAPTOP}\t198.18.7.2/32\n"))
    assert bench.whois("198.18.7.2") == named("laptop", LAPTOP)
    bench.wg.said = REFUSED
    bench.time += KEPT_SECONDS - 0.1
    assert bench.whois("198.18.7.2") == named("laptop", LAPTOP)
    assert bench.wg.asked == 1
    bench.time += 0.1
    for _ in range(3):
        with pytest.raises(IdentityUnavailable):
            bench.whois("198.18.7.2")
    assert bench.wg.asked == 2
    bench.wg.said = f"{ROUTER}\t198.18.7.2/32\n"
    bench.time += KEPT_SECONDS
    moved = bench.whois("198.18.7.2")
    assert moved is not None
    assert moved.owner == f"wireguard:{ROUTER}"


def test_many_questions_at_once_ask_wg_once() -> None:
    all_there = threading.Barrier(8, timeout=60)
    bench = Bench((peer(),), ToldWg(f"{LAPTOP}\t198.18.7.2/32\n"))

    def ask() -> Identity | None:
        all_there.wait()
        return bench.whois("198.18.7.2")

    with ThreadPoolExecutor(8) as threads:
        found = [future.result() for future in [threads.submit(ask) for _ in range(8)]]
    assert found == [named("laptop", LAPTOP)] * 8
    assert bench.wg.asked == 1


def test_without_wg_nobody_knows_whose_an_address_is_and_it_says_what_to_do() -> None:
    bench = Bench((peer(),), ToldWg("garbage"))
    assert bench.provider.covers("198.51.100.2")
    for address in ("198.51.100.2", "198.18.7.2"):
        with pytest.raises(IdentityUnavailable, match=r"wg0.*makes no sense.*allowed_ips.*CAP_NET_ADMIN"):
            bench.whois(address)
    with pytest.raises(IdentityUnavailable, match="makes no sense"):
        bench.provider.covers("198.18.7.2")
    with pytest.raises(IdentityUnavailable, match="makes no sense"):
        bench.provider.peers()


# --- peers -------------------------------------------------------------------


def test_the_peers_are_those_with_names_by_their_single_addresses() -> None:
    told = f"{LAPTOP}\t198.18.7.0/25 198.18.7.2/32 2001:db8::2/128\n{STRANGER}\t198.18.7.3/32\n"
    bench = Bench((peer(name="Laptop"), peer("198.18.7.4/32", key=ROUTER, name="router")), ToldWg(told))
    assert list(bench.provider.peers()) == [
        KnownPeer(("laptop",), named("Laptop", LAPTOP), ("198.18.7.2", "2001:db8::2")),
        KnownPeer(("router",), named("router", ROUTER), ("198.18.7.4",)),
    ]


@pytest.mark.parametrize(
    ("shaken", "online"),
    [
        (f"{LAPTOP}\t{NOW - ALIVE_SECONDS + 1:.0f}\n", True),
        (f"{LAPTOP}\t{NOW - ALIVE_SECONDS:.0f}\n", None),
        (f"{LAPTOP}\t0\n", None),
        ("", None),
        ("garbage", None),
        (REFUSED, None),
    ],
)
def test_a_peer_is_online_for_three_minutes_after_a_handshake(
    shaken: str | IdentityUnavailable, online: bool | None
) -> None:
    (found,) = Bench((peer("198.18.7.2/32"),), ToldWg(shaken=shaken)).provider.peers()
    assert found.online is online


# --- asking wg ---------------------------------------------------------------


def program(folder: Path, script: str) -> str:
    path = folder / "wg"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_wg_is_asked_for_nothing_that_tells_a_private_key(tmp_path: Path) -> None:
    wg = Wg("wg0", program(tmp_path, 'echo "$@"'))
    assert wg.allowed_ips() == "show wg0 allowed-ips\n"
    assert wg.latest_handshakes() == "show wg0 latest-handshakes\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo Unable to access interface: Operation not permitted >&2; exit 1", "Operation not permitted"),
        ("exit 7", "exit 7"),
        ("exec sleep 3600", "no answer within 0.2 s"),
        ("exec >&- 2>&-; exec sleep 3600", "no answer within 0.2 s"),
        ("exec yes", "more than 1000 bytes"),
    ],
)
def test_a_wg_that_does_not_answer_well_is_unavailable_and_ended(
    tmp_path: Path, script: str, reason: str
) -> None:
    note = tmp_path / "pid"
    timeout = 0.2 if "sleep" in script else 60
    wg = Wg("wg0", program(tmp_path, f"echo $$ > {note}; {script}"), timeout, 1000)
    with pytest.raises(IdentityUnavailable, match=reason) as caught:
        wg.allowed_ips()
    assert "wg0" in caught.value.message
    assert "CAP_NET_ADMIN" in caught.value.message
    if note.exists() and (pid := note.read_text().strip()):
        assert not Path("/proc", pid).exists()


def test_without_the_program_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(IdentityUnavailable, match="no such file or directory"):
        Wg("wg0", str(tmp_path / "wg")).allowed_ips()


# --- interfaces of this machine ----------------------------------------------


def test_loopback_is_up_and_no_tunnel() -> None:
    loopback = Interface("lo")
    assert loopback.is_up()
    assert loopback.is_tunnel() is False
    assert ip_interface("127.0.0.1/8") in loopback.addresses()


def test_an_interface_that_is_not_there_has_nothing() -> None:
    nowhere = Interface("tdx-nowhere")
    assert not nowhere.is_up()
    assert nowhere.is_tunnel() is None
    assert nowhere.addresses() == []


def test_a_name_that_no_interface_can_have_is_not_there() -> None:
    assert Interface("much-longer-than-any").is_tunnel() is None


# --- a real mesh -------------------------------------------------------------


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


@pytest.fixture
def mesh(processes: Processes, tmp_path: Path) -> WgMesh:
    return wgmesh(processes, tmp_path / "keys")


def test_on_a_real_mesh_a_caller_is_the_key_behind_its_address(processes: Processes, mesh: WgMesh) -> None:
    for host in (mesh.hub.address, mesh.hub.address6):
        listener = Listener(processes, mesh.hub, host, "wg0", [mesh.peer(mesh.laptop, "laptop")])
        laptop = listener.called_by(processes, mesh.laptop)
        assert (laptop["owner"], laptop["node"]) == (f"wireguard:{mesh.laptop.key}", "laptop")
        assert laptop["own"] is True
        guest = listener.called_by(processes, mesh.guest)
        assert guest["owner"] == f"wireguard:{mesh.guest.key}"
        assert guest["own"] is False


def test_without_privilege_the_configuration_is_enough_and_its_lack_is_told(
    processes: Processes, mesh: WgMesh
) -> None:
    addresses = [f"{mesh.laptop.address}/32", f"{mesh.laptop.address6}/128"]
    known, unknown = mesh.peer(mesh.laptop, "laptop", *addresses), mesh.peer(mesh.laptop, "laptop")
    listener = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [known], prefix=as_stranger())
    assert listener.called_by(processes, mesh.laptop)["node"] == "laptop"
    assert listener.called_by(processes, mesh.guest)["owner"] is None
    listener = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [unknown], prefix=as_stranger())
    found = listener.called_by(processes, mesh.laptop)
    assert found["owner"] is None
    assert "CAP_NET_ADMIN" in found["unavailable"]


@pytest.mark.parametrize("subnet", [True, False])
@pytest.mark.parametrize("configured", [[BEHIND_NETWORK], []])
def test_a_machine_behind_a_peer_is_taken_for_it_only_with_subnet(
    processes: Processes, mesh: WgMesh, subnet: bool, configured: list[str]
) -> None:
    laptop = mesh.peer(mesh.laptop, "laptop", *configured, subnet=subnet)
    listener = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [laptop])
    found = listener.called_by(processes, mesh.laptop, source=BEHIND)
    assert (found["from"], found["node"]) == (BEHIND, "laptop" if subnet else None)


def test_the_machine_itself_comes_in_by_the_interface_and_is_still_no_peer(
    processes: Processes, mesh: WgMesh
) -> None:
    # Linux counts a machine's calls to itself as coming in by the interface that has the address.
    laptop = mesh.peer(mesh.laptop, "laptop", "0.0.0.0/0", subnet=True)
    listener = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [laptop])
    found = listener.called_by(processes, mesh.hub)
    assert (found["from"], found["owner"]) == (mesh.hub.address, None)


def test_a_spoofed_address_from_the_network_below_does_not_reach_a_bound_listener(
    processes: Processes, mesh: WgMesh
) -> None:
    mesh.lure_replies_below()
    laptop = mesh.peer(mesh.laptop, "laptop", f"{mesh.laptop.address}/32")
    bound = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [laptop])
    assert bound.attempted_by(processes, mesh.outsider, mesh.laptop.address) == "Connection refused"
    # The packets do get there: whoever listens without binding has the connection, but nobody's word for it.
    unbound = Listener(processes, mesh.hub, mesh.hub.address, None, [laptop])
    found = unbound.called_by(processes, mesh.outsider, mesh.laptop.address)
    assert (found["from"], found["owner"]) == (mesh.laptop.address, None)
    assert "listen on the address" in unbound.log
    # A listener on the network below is bound to another interface.
    below = Listener(processes, mesh.hub, mesh.hub.address, CABLE, [laptop])
    assert below.called_by(processes, mesh.outsider, mesh.laptop.address)["owner"] is None
    assert bound.said == []


def test_a_peer_cannot_use_the_address_of_another_through_its_own_tunnel(
    processes: Processes, mesh: WgMesh
) -> None:
    listener = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [mesh.peer(mesh.laptop, "laptop")])
    mesh.guest.run("ip", "address", "add", f"{mesh.laptop.address}/32", "dev", "wg0")
    attempt(processes, mesh.guest, mesh.laptop.address, listener.host, listener.port)
    # A tunnel keeps the order of packets: once this call has got through, the one before has been dropped.
    assert listener.called_by(processes, mesh.guest, mesh.guest.address)["node"] != "laptop"
    assert [found["from"] for found in listener.said] == [mesh.guest.address]
    # Only when WireGuard is told that the address is the guest's does it get through, as the guest.
    allowed = f"{mesh.guest.address}/32,{mesh.laptop.address}/32"
    mesh.hub.run("wg", "set", "wg0", "peer", mesh.guest.key, "allowed-ips", allowed)
    afresh = Listener(processes, mesh.hub, mesh.hub.address, "wg0", [mesh.peer(mesh.laptop, "laptop")])
    found = afresh.called_by(processes, mesh.guest, mesh.laptop.address)
    assert (found["from"], found["owner"]) == (mesh.laptop.address, f"wireguard:{mesh.guest.key}")


_PEERS = """
import json, sys
from tdx.identity.settings import WireguardPeer, WireguardSettings
from tdx.identity.wireguard import WireguardProvider
peers = tuple(WireguardPeer(name, key) for name, key in json.loads(sys.argv[1]))
provider = WireguardProvider(WireguardSettings("wg0", peers))
print(json.dumps([[[place.host for place in provider.places()]],
                  [[peer.names, peer.addresses, peer.online] for peer in provider.peers()]]))
"""


def test_the_places_and_peers_of_a_real_mesh_are_told(processes: Processes, mesh: WgMesh) -> None:
    Listener(processes, mesh.hub, mesh.hub.address, "wg0", []).called_by(processes, mesh.laptop)
    given = json.dumps([["laptop", mesh.laptop.key], ["guest", mesh.guest.key]])
    asked = processes.run("peers", [*mesh.hub.prefix, sys.executable, "-c", _PEERS, given])
    assert asked.wait() == 0, asked.log()
    (places,), peers = json.loads(asked.stdout)
    assert places == [mesh.hub.address, mesh.hub.address6]
    laptop, guest = [mesh.laptop.address, mesh.laptop.address6], [mesh.guest.address, mesh.guest.address6]
    assert peers == [[["laptop"], laptop, True], [["guest"], guest, None]]
