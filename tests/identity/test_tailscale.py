from __future__ import annotations

import functools
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import localapi as fake
from support.localapi import ALICE, BOB, LocalApiServer, peer_of, status_of, whois_of
from tdx.errors import IdentityUnavailable
from tdx.identity import localapi, tailscale
from tdx.identity.local import LocalProvider
from tdx.identity.localapi import LocalApi
from tdx.identity.port import Endpoint, KnownPeer, Link, Mesh, Place
from tdx.identity.registry import Identities
from tdx.identity.settings import TailscaleSettings
from tdx.identity.tailscale import TailscaleProvider
from tdx.model import Identity, Owner

# What this machine has for certain stands in for its own mesh address and the interface that holds it.
OWN = "127.0.0.1"
TUNNEL = "lo"
THEIRS = "100.64.0.1"
THEIRS_6 = "fd7a:115c:a1e0::1"

SELF = peer_of("nLAP", "laptop", ALICE, OWN)
SELF_TAGGED = peer_of("nLAP", "laptop", ALICE, OWN, tags=("tag:server",))
DESKTOP = whois_of("nDESK", "desktop", ALICE, THEIRS, THEIRS_6)
PHONE = whois_of("nPHONE", "phone", BOB, THEIRS, capabilities={"example.com/cap/tdx": [{"push": True}]})
SERVER = whois_of("nSRV", "server", ALICE, THEIRS, tags=("tag:server", "tag:backup"))


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalApiServer]:
    with fake.serving() as found:
        yield found


@pytest.fixture
def server(shared: LocalApiServer) -> LocalApiServer:
    shared.status, shared.nodes, shared.trouble = status_of(SELF), {THEIRS: DESKTOP, THEIRS_6: DESKTOP}, {}
    shared.asked.clear()
    return shared


def at(path: Path, *, enabled: bool = True) -> TailscaleProvider:
    return TailscaleProvider(TailscaleSettings(enabled=enabled, socket=path))


@pytest.fixture
def provider(server: LocalApiServer) -> TailscaleProvider:
    return at(server.path)


@pytest.fixture
def hasty(server: LocalApiServer, monkeypatch: pytest.MonkeyPatch) -> TailscaleProvider:
    """One that does not wait long."""
    monkeypatch.setattr(tailscale, "LocalApi", lambda path: LocalApi(path, timeout=0.2))
    return at(server.path)


def over_the_mesh(host: str = THEIRS, local: str = OWN, interface: str | None = TUNNEL) -> Link:
    return Link(Endpoint(local, 8390), Endpoint(host, 40000), interface)


def from_loopback(port: int = 40000, host: str = "127.0.0.1") -> Link:
    return Link(Endpoint(host, 8390), Endpoint(host, port))


# --- which addresses ------------------------------------------------------------


def test_it_is_a_mesh(provider: TailscaleProvider) -> None:
    checked: Mesh = provider
    assert checked.name == "tailscale"


@pytest.mark.parametrize(
    "address",
    ["100.64.0.0", "100.127.255.255", "fd7a:115c:a1e0::", "fd7a:115c:a1e0:ffff::1", "::ffff:100.64.0.1"],
)
def test_it_covers_the_addresses_of_tailnets(provider: TailscaleProvider, address: str) -> None:
    assert provider.covers(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_it_covers_loopback_since_tailscaled_may_proxy_from_there(
    provider: TailscaleProvider, address: str
) -> None:
    assert provider.covers(address)


@pytest.mark.parametrize(
    "address",
    ["100.63.255.255", "100.128.0.0", "10.0.0.1", "fd7a:115c:a1e1::1", "fd00::1", "desktop", "", "100.64.0"],
)
def test_it_covers_nothing_else(provider: TailscaleProvider, address: str) -> None:
    assert not provider.covers(address)


def test_it_leaves_this_machines_own_mesh_addresses_to_others(server: LocalApiServer) -> None:
    provider = TailscaleProvider(TailscaleSettings(socket=server.path), lambda address: address == THEIRS)
    assert not provider.covers(THEIRS)
    assert provider.whois(over_the_mesh()) is None
    assert provider.covers(THEIRS_6)
    assert server.asked == []


@pytest.mark.parametrize("address", [THEIRS, "127.0.0.1"])
def test_it_covers_nothing_where_it_is_off_or_tailscaled_has_no_socket(
    server: LocalApiServer, tmp_path: Path, address: str
) -> None:
    assert not at(server.path, enabled=False).covers(address)
    assert not at(tmp_path / "nowhere").covers(address)


def test_covering_asks_no_service_and_loads_no_client(server: LocalApiServer) -> None:
    script = f"""
import sys
from pathlib import Path
from tdx.identity.settings import TailscaleSettings
from tdx.identity.tailscale import TailscaleProvider
provider = TailscaleProvider(TailscaleSettings(socket=Path({str(server.path)!r})))
assert provider.covers("127.0.0.1") and provider.covers({THEIRS!r})
heavy = {{"http.client", "ifaddr", "ssl"}} & set(sys.modules)
assert not heavy, heavy
"""
    path = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert server.asked == []


# --- who calls over the mesh ----------------------------------------------------


def test_a_node_of_this_user_is_its_own(provider: TailscaleProvider) -> None:
    expected = Identity(Owner("tailscale:nDESK"), "tailscale", ALICE, "desktop", own=True)
    assert provider.whois(over_the_mesh()) == expected
    assert provider.whois(over_the_mesh(THEIRS_6)) == expected


def test_another_users_node_is_not_its_own(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.nodes[THEIRS] = PHONE
    assert provider.whois(over_the_mesh()) == Identity(
        Owner("tailscale:nPHONE"), "tailscale", BOB, "phone", capabilities=("example.com/cap/tdx",)
    )


def test_a_tagged_node_is_nobodys(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.nodes[THEIRS] = SERVER
    expected = Identity(Owner("tailscale:nSRV"), "tailscale", "", "server", tags=("tag:server", "tag:backup"))
    assert provider.whois(over_the_mesh()) == expected


@pytest.mark.parametrize("node", [DESKTOP, PHONE, SERVER])
def test_a_tagged_machine_has_nobody_of_its_own(
    provider: TailscaleProvider, server: LocalApiServer, node: dict[str, Any]
) -> None:
    server.status, server.nodes[THEIRS] = status_of(SELF_TAGGED), node
    found = provider.whois(over_the_mesh())
    assert found is not None
    assert not found.own


def test_a_tag_parts_a_node_from_its_user_whoever_it_is_said_to_belong_to(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    tagged = DESKTOP | {"Node": DESKTOP["Node"] | {"Tags": ["tag:server"]}}
    for own, node in ((SELF, tagged), (SELF | {"Tags": ["tag:server"]}, DESKTOP)):
        server.status, server.nodes[THEIRS] = status_of(own), node
        found = provider.whois(over_the_mesh())
        assert found is not None
        assert not found.own


def test_users_without_a_number_are_not_the_same(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.status = status_of(SELF | {"UserID": 0})
    node = DESKTOP["Node"] | {"User": 0}
    server.nodes[THEIRS] = DESKTOP | {"Node": node, "UserProfile": DESKTOP["UserProfile"] | {"ID": 0}}
    found = provider.whois(over_the_mesh())
    assert found is not None
    assert not found.own


def test_an_address_that_no_node_has_is_nobody(provider: TailscaleProvider) -> None:
    assert provider.whois(over_the_mesh("100.64.0.99")) is None


def test_every_call_asks_again(provider: TailscaleProvider, server: LocalApiServer) -> None:
    assert provider.whois(over_the_mesh()) is not None
    del server.nodes[THEIRS]
    assert provider.whois(over_the_mesh()) is None


@pytest.mark.parametrize(
    "link",
    [
        over_the_mesh(interface=None),
        over_the_mesh(interface="eth0"),
        over_the_mesh(local="192.0.2.1"),
        over_the_mesh(local="not numeric"),
    ],
)
def test_a_connection_that_may_have_come_by_another_way_identifies_nobody(
    provider: TailscaleProvider, server: LocalApiServer, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert provider.whois(link) is None
    assert "listen on this machine's own mesh address" in caplog.text
    assert not any("whois" in target for target in server.asked)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (status_of(SELF, state="Stopped"), r"Stopped.*tailscale up"),
        (status_of(SELF, state="NeedsLogin"), r"NeedsLogin.*tailscale up"),
        (status_of(SELF, tun=False), "userspace networking"),
        (status_of(peer_of("nLAP", "laptop", ALICE, "100.64.0.2")), "no single interface"),
        (status_of(peer_of("nLAP", "laptop", ALICE)), "no single interface"),
    ],
)
def test_without_the_mesh_up_its_addresses_identify_nobody(
    provider: TailscaleProvider,
    server: LocalApiServer,
    status: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.status = status
    with caplog.at_level(logging.WARNING):
        assert provider.whois(over_the_mesh()) is None
        assert provider.confirms(Endpoint(THEIRS, 8390)) is None
    assert len([message for message in caplog.messages if re.search(reason, message)]) == 2
    assert provider.places() == []


def test_own_addresses_on_two_interfaces_prove_nothing(
    provider: TailscaleProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailscale, "interfaces", lambda: {b"\x7f\0\0\1": {"lo", "eth0"}})
    assert provider.whois(over_the_mesh()) is None
    assert provider.interface(THEIRS) is None


def test_an_answer_about_another_address_is_not_believed(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    server.nodes["100.64.0.7"] = DESKTOP
    with pytest.raises(IdentityUnavailable, match="another address"):
        provider.whois(over_the_mesh("100.64.0.7"))
    with pytest.raises(IdentityUnavailable, match="another address"):
        provider.confirms(Endpoint("100.64.0.7", 8390))


def test_this_machines_own_node_is_not_a_caller_from_elsewhere(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    server.nodes[THEIRS] = whois_of("nLAP", "laptop", ALICE, THEIRS)
    assert provider.whois(over_the_mesh()) is None
    assert provider.confirms(Endpoint(THEIRS, 8390)) is None


# --- who calls through tailscaled, from loopback --------------------------------


@pytest.fixture
def proxying(server: LocalApiServer) -> LocalApiServer:
    """tailscaled without an interface."""
    server.status = status_of(peer_of("nLAP", "laptop", ALICE, "100.64.0.2"), tun=False)
    server.nodes = {"127.0.0.1:40000": DESKTOP, "[::1]:40000": PHONE}
    return server


def test_a_proxied_caller_is_the_node_it_is_proxied_for(
    provider: TailscaleProvider, proxying: LocalApiServer
) -> None:
    desktop, phone = provider.whois(from_loopback()), provider.whois(from_loopback(host="::1"))
    assert desktop == Identity(Owner("tailscale:nDESK"), "tailscale", ALICE, "desktop", own=True)
    assert phone is not None
    assert (phone.user, phone.own) == (BOB, False)


def test_a_proxied_caller_is_found_however_its_address_is_written(
    provider: TailscaleProvider, proxying: LocalApiServer
) -> None:
    plain = provider.whois(from_loopback())
    assert provider.whois(from_loopback(host="::ffff:127.0.0.1")) == plain is not None
    assert provider.whois(from_loopback(host="0:0::1")) == provider.whois(from_loopback(host="::1")) != plain


def test_the_port_that_was_not_given_to_a_node_is_somebody_elses(
    provider: TailscaleProvider, proxying: LocalApiServer
) -> None:
    assert provider.whois(from_loopback(40001)) is None
    assert proxying.asked[-1] == "/localapi/v0/whois?proto=tcp&addr=127.0.0.1%3A40001"


def test_with_an_interface_loopback_is_not_asked_about(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    """tailscaled would look for a fifth of a second, and lock everybody out meanwhile."""
    assert provider.whois(from_loopback()) is None
    assert server.asked == ["/localapi/v0/status?peers=false"]


def test_somebody_of_this_machine_who_goes_through_tailscaled_is_nobody(
    provider: TailscaleProvider, proxying: LocalApiServer
) -> None:
    proxying.nodes["127.0.0.1:40000"] = whois_of("nLAP", "laptop", ALICE, "100.64.0.2")
    with pytest.raises(IdentityUnavailable, match="some user of this very machine"):
        provider.whois(from_loopback())


def test_a_proxied_caller_is_nobody_while_tailscaled_is_stopped(
    provider: TailscaleProvider, proxying: LocalApiServer
) -> None:
    proxying.status = status_of(SELF, tun=False, state="Stopped")
    with pytest.raises(IdentityUnavailable, match="Stopped"):
        provider.whois(from_loopback())


@pytest.mark.parametrize("tun", [True, False])
def test_a_connection_that_tailscaled_holds_and_does_not_explain_is_nobodys(
    provider: TailscaleProvider, server: LocalApiServer, tun: bool
) -> None:
    """As with `tailscale serve`: its uid, which may be this one, is not the caller's."""
    server.status = status_of(SELF, tun=tun)
    # The stand-in for tailscaled is this very process.
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        link = Link(Endpoint(*accepted.getsockname()), Endpoint(*accepted.getpeername()))
        with pytest.raises(IdentityUnavailable, match="does not say for whom"):
            provider.whois(link)
        assert Identities([provider, LocalProvider()]).identify(link) is None


_CALLER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.recv(1)
"""


@pytest.mark.parametrize("tun", [True, False])
def test_a_neighbour_is_left_to_the_local_provider(
    provider: TailscaleProvider, server: LocalApiServer, tun: bool
) -> None:
    server.status = status_of(SELF, tun=tun)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with subprocess.Popen([sys.executable, "-c", _CALLER, str(port)]) as caller:
            accepted, (host, remote) = listener.accept()
            with accepted:
                link = Link(Endpoint("127.0.0.1", port), Endpoint(host, remote))
                assert provider.whois(link) is None
                local = LocalProvider()
                assert Identities([provider, local]).identify(link) == local.own
        assert caller.returncode == 0


def test_a_dead_socket_proxies_for_nobody() -> None:
    with fake.dead_socket() as path:
        provider = at(path)
        assert provider.covers("127.0.0.1")
        assert provider.whois(from_loopback()) is None


# --- a tailscaled that is not as it should be -----------------------------------


@pytest.mark.parametrize("what", ["status", "whois"])
@pytest.mark.parametrize("trouble", fake.NONSENSE)
def test_nonsense_identifies_nobody(
    provider: TailscaleProvider,
    proxying: LocalApiServer,
    trouble: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(localapi, "STATUS_LIMIT", 1 << 20)  # an endless answer is read up to there
    proxying.trouble = {what: fake.NONSENSE[trouble]}
    with pytest.raises(IdentityUnavailable, match="does not say"):
        provider.whois(from_loopback())
    proxying.status = status_of(SELF)
    with pytest.raises(IdentityUnavailable, match="does not say"):
        provider.whois(over_the_mesh())
    with pytest.raises(IdentityUnavailable, match="does not say"):
        provider.confirms(Endpoint(THEIRS, 8390))


@pytest.mark.parametrize("what", ["status", "whois"])
@pytest.mark.parametrize("trouble", fake.SLOW)
def test_slowness_identifies_nobody(
    hasty: TailscaleProvider, proxying: LocalApiServer, trouble: str, what: str
) -> None:
    proxying.trouble = {what: fake.SLOW[trouble]}
    with pytest.raises(IdentityUnavailable, match="no answer"):
        hasty.whois(from_loopback())
    proxying.status = status_of(SELF)
    with pytest.raises(IdentityUnavailable, match="no answer"):
        hasty.whois(over_the_mesh())


def test_who_cannot_be_asked_about_is_never_taken_for_a_neighbour(
    provider: TailscaleProvider, proxying: LocalApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxying.trouble = {"whois": fake.mute}
    with caplog.at_level(logging.WARNING):
        assert Identities([provider, LocalProvider()]).identify(from_loopback()) is None
    assert "closed the connection without an answer" in caplog.text


def test_an_absent_tailscaled_knows_nobody_on_the_mesh() -> None:
    with fake.dead_socket() as path:
        provider = at(path)
        for question in (
            lambda: provider.whois(over_the_mesh()),
            lambda: provider.confirms(Endpoint(THEIRS, 8390)),
            lambda: provider.interface(THEIRS),
            provider.peers,
        ):
            with pytest.raises(IdentityUnavailable, match="not running"):
                question()
        assert (len(provider.places()), len(provider.own_names())) == (0, 0)


# --- whom to send to ------------------------------------------------------------


def test_the_node_at_an_address_is_confirmed(provider: TailscaleProvider) -> None:
    expected = Identity(Owner("tailscale:nDESK"), "tailscale", ALICE, "desktop", own=True)
    assert provider.confirms(Endpoint(THEIRS, 8390)) == expected


def test_loopback_is_not_confirmed_and_nobody_is_asked(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    assert provider.confirms(Endpoint("127.0.0.1", 8390)) is None
    assert provider.interface("127.0.0.1") is None
    assert server.asked == []


def test_an_address_outside_is_not_confirmed(provider: TailscaleProvider) -> None:
    assert provider.confirms(Endpoint("192.0.2.1", 8390)) is None
    assert provider.interface("192.0.2.1") is None


def test_the_interface_is_the_one_that_holds_our_own_mesh_address(provider: TailscaleProvider) -> None:
    assert provider.interface(THEIRS) == TUNNEL


def test_userspace_networking_has_no_interface(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.status = status_of(SELF, tun=False)
    assert provider.interface(THEIRS) is None
    assert provider.confirms(Endpoint(THEIRS, 8390)) is None


def test_no_interface_is_named_while_the_mesh_is_down(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    server.status = status_of(SELF, state="Stopped")
    with pytest.raises(IdentityUnavailable, match="tailscale up"):
        provider.interface(THEIRS)


# --- this machine and the others ------------------------------------------------


def test_places_are_our_own_addresses_that_an_interface_holds(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    server.status = status_of(peer_of("nLAP", "laptop", ALICE, OWN, "fd7a:115c:a1e0::2"))
    assert provider.places() == [Place(OWN, TUNNEL)]


def test_own_names_are_those_of_this_node_and_its_addresses(provider: TailscaleProvider) -> None:
    assert provider.own_names() == ("laptop", "laptop.tailnet.test", OWN)


def test_peers_are_the_other_nodes(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.status = status_of(
        SELF,
        peer_of("nDESK", "desktop", ALICE, THEIRS, THEIRS_6, Active=True, CurAddr="192.0.2.1:41641"),
        peer_of("nPHONE", "phone", BOB, "100.64.0.3", Active=True, Online=False),
        peer_of("nSRV", "server", ALICE, "100.64.0.4", tags=("tag:server",)),
    )
    assert provider.peers() == [
        KnownPeer(
            ("desktop", "desktop.tailnet.test"),
            Identity(Owner("tailscale:nDESK"), "tailscale", ALICE, "desktop", own=True),
            (THEIRS, THEIRS_6),
            online=True,
            path="direct 192.0.2.1:41641",
        ),
        KnownPeer(
            ("phone", "phone.tailnet.test"),
            Identity(Owner("tailscale:nPHONE"), "tailscale", BOB, "phone"),
            ("100.64.0.3",),
            online=False,
            path="relay test",
        ),
        KnownPeer(
            ("server", "server.tailnet.test"),
            Identity(Owner("tailscale:nSRV"), "tailscale", "", "server", ("tag:server",)),
            ("100.64.0.4",),
            online=True,
        ),
    ]


def test_a_machines_own_idea_of_its_name_finds_nobody(
    provider: TailscaleProvider, server: LocalApiServer
) -> None:
    server.status = status_of(SELF, peer_of("nPHONE", "phone", BOB, THEIRS, HostName="desktop"))
    assert Identities([provider], [provider]).find("desktop") is None
    assert Identities([provider], [provider]).find("phone") is not None


def test_a_mesh_that_is_down_names_no_peers(provider: TailscaleProvider, server: LocalApiServer) -> None:
    server.status = status_of(SELF, peer_of("nDESK", "desktop"), state="Stopped")
    with pytest.raises(IdentityUnavailable, match="tailscale up"):
        provider.peers()
    assert list(provider.own_names()) == []


def test_a_machine_without_tailscale_has_no_peers_and_no_complaint(
    server: LocalApiServer, tmp_path: Path
) -> None:
    for provider in (at(tmp_path / "nowhere"), at(server.path, enabled=False)):
        assert (len(provider.peers()), len(provider.places()), len(provider.own_names())) == (0, 0, 0)
    assert server.asked == []


# --- whatever it answers --------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _paths(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of every member, at any depth."""
    found: list[tuple[str, ...]] = []
    for name, value in document.items():
        found.append((name,))
        if isinstance(value, dict):
            found += [(name, *below) for below in _paths(value)]
    return found


def _changed(document: dict[str, Any], path: tuple[str, ...], to: object) -> dict[str, Any]:
    """A copy with the member at ``path`` replaced, or left out where ``to`` is LEAVE_OUT."""
    name, *below = path
    if name not in document or (below and not isinstance(document[name], dict)):
        return document
    if below:
        return document | {name: _changed(document[name], tuple(below), to)}
    rest = {other: value for other, value in document.items() if other != name}
    return rest if to is LEAVE_OUT else rest | {name: to}


LEAVE_OUT = object()


def near_misses(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """``document`` with up to two members left out or replaced."""
    change = st.tuples(st.sampled_from(_paths(document)), st.just(LEAVE_OUT) | json_values)
    return st.lists(change, max_size=2).map(
        lambda changes: functools.reduce(lambda made, each: _changed(made, *each), changes, document)
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.strip(".") != ""


@given(
    answer=near_misses(DESKTOP) | near_misses(PHONE) | near_misses(SERVER) | json_values,
    status=near_misses(status_of(SELF, peer_of("nDESK", "desktop", ALICE, THEIRS, Active=True)))
    | json_values,
    tun=st.booleans(),
)
def test_no_document_makes_an_identity_without_an_id_and_a_name(
    shared: LocalApiServer, answer: Any, status: Any, tun: bool
) -> None:
    shared.trouble, shared.nodes = {}, {THEIRS: answer, "127.0.0.1:40000": answer}
    shared.status = status if tun or not isinstance(status, dict) else status | {"TUN": False}
    provider = at(shared.path)
    questions: list[Callable[[], Identity | None]] = [
        lambda: provider.whois(over_the_mesh()),
        lambda: provider.whois(from_loopback()),
        lambda: provider.confirms(Endpoint(THEIRS, 8390)),
    ]
    for question in questions:
        try:
            found = question()
        except IdentityUnavailable:
            continue
        if found is None:
            continue
        node = answer["Node"]
        assert found.owner == f"tailscale:{node['StableID']}"
        assert found.owner != "tailscale:"
        assert _is_name(node.get("ComputedName")) or _is_name(node["Name"])
        assert found.node
        assert not found.own or (found.user and not found.tags and "Tags" not in status["Self"])
    try:
        peers = provider.peers()
        places = provider.places()
    except IdentityUnavailable:
        return
    assert all(_is_name(peer.identity.node) and peer.identity.owner != "tailscale:" for peer in peers)
    assert set(places) <= {Place(OWN, TUNNEL)}
