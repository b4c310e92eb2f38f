from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import localapi as fake
from support.localapi import ALICE, BOB, LocalApiServer, peer_of, status_of, whois_of
from tdx.errors import IdentityUnavailable
from tdx.identity import localapi
from tdx.identity.localapi import LocalApi, Node, node_of

DESKTOP = whois_of("nDESK", "desktop", ALICE, "100.64.0.1", "fd7a:115c:a1e0::1")
LAPTOP = peer_of("nLAP", "laptop", ALICE, "100.64.0.2", "fd7a:115c:a1e0::2")


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalApiServer]:
    with fake.serving() as found:
        yield found


@pytest.fixture
def server(shared: LocalApiServer) -> LocalApiServer:
    shared.status, shared.nodes, shared.trouble = status_of(LAPTOP), {"100.64.0.1": DESKTOP}, {}
    shared.asked.clear()
    return shared


@pytest.fixture
def api(server: LocalApiServer) -> LocalApi:
    return LocalApi(server.path)


def changed(document: dict[str, Any], *path: str, to: object) -> dict[str, Any]:
    """A copy of ``document`` with one member changed."""
    head, *rest = path
    return document | {head: changed(document[head], *rest, to=to) if rest else to}


# --- whois ----------------------------------------------------------------------


def test_whois_tells_of_a_node_what_matters(api: LocalApi, server: LocalApiServer) -> None:
    server.nodes["100.64.0.3"] = whois_of(
        "nPHONE", "phone", BOB, "100.64.0.3", capabilities={"example.com/b": [{"push": True}], "a": None}
    )
    assert api.whois("100.64.0.3") == Node(
        "nPHONE", "phone", 2, BOB, addresses=("100.64.0.3",), capabilities=("a", "example.com/b")
    )


def test_whois_asks_with_the_port_and_the_protocol(api: LocalApi, server: LocalApiServer) -> None:
    server.nodes = {"[::1]:4000": DESKTOP, "127.0.0.1:4000": DESKTOP}
    assert api.whois("[::1]:4000") == api.whois("127.0.0.1:4000") == node_of(DESKTOP)
    assert all("proto=tcp" in target for target in server.asked)


def test_nobody_has_an_address_that_is_not_found(api: LocalApi) -> None:
    assert api.whois("100.64.0.99") is None


def test_a_tagged_node_has_no_user(api: LocalApi, server: LocalApiServer) -> None:
    server.nodes["100.64.0.4"] = whois_of("nSRV", "server", ALICE, "100.64.0.4", tags=("tag:server",))
    found = api.whois("100.64.0.4")
    assert found is not None
    assert (found.login, found.tags) == ("", ("tag:server",))


def test_a_node_without_a_computed_name_goes_by_its_whole_one() -> None:
    without = changed(DESKTOP, "Node", "ComputedName", to="")
    assert node_of(without).name == "desktop.tailnet.test"


def test_networks_behind_a_node_are_none_of_its_addresses() -> None:
    router = changed(DESKTOP, "Node", "Addresses", to=["100.64.0.1/32", "192.0.2.0/24"])
    assert node_of(router).addresses == ("100.64.0.1",)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("Node",), None),
        (("UserProfile",), None),
        (("CapMap",), ["example.com/cap"]),
        (("CapMap",), {"": []}),
        (("Node", "StableID"), ""),
        (("Node", "StableID"), None),
        (("Node", "StableID"), 1),
        (("Node", "StableID"), "two words"),
        (("Node", "StableID"), "Ångström"),
        (("Node", "StableID"), "n\ud800"),
        (("Node", "StableID"), "n" * 129),
        (("Node", "ComputedName"), []),
        (("Node", "ComputedName"), "line\nbreak"),
        (("Node", "Name"), None),
        (("Node", "User"), True),
        (("Node", "User"), "1"),
        (("Node", "User"), -1),
        (("Node", "User"), 1.0),
        (("Node", "User"), 2),
        (("Node", "Tags"), "tag:server"),
        (("Node", "Tags"), [""]),
        (("Node", "Tags"), [1]),
        (("Node", "Addresses"), ["100.64.0.1"]),
        (("Node", "Addresses"), ["desktop/32"]),
        (("Node", "Addresses"), ["100.64.0.1/²"]),
        (("UserProfile", "ID"), None),
        (("UserProfile", "LoginName"), ""),
        (("UserProfile", "LoginName"), None),
    ],
)
def test_a_member_of_whois_that_is_not_as_documented_identifies_nobody(
    api: LocalApi, server: LocalApiServer, path: tuple[str, ...], value: object
) -> None:
    server.nodes["100.64.0.1"] = changed(DESKTOP, *path, to=value)
    with pytest.raises(IdentityUnavailable, match="makes no sense"):
        api.whois("100.64.0.1")


@pytest.mark.parametrize("member", ["Node", "UserProfile"])
def test_a_member_of_whois_that_is_missing_identifies_nobody(member: str) -> None:
    with pytest.raises(ValueError, match=member):
        node_of({name: value for name, value in DESKTOP.items() if name != member})


# --- status ---------------------------------------------------------------------


def test_status_tells_of_this_machine(api: LocalApi, server: LocalApiServer) -> None:
    found = api.status()
    assert (found.state, found.tun, found.peers) == ("Running", True, ())
    assert found.own == Node("nLAP", "laptop", 1, ALICE, addresses=("100.64.0.2", "fd7a:115c:a1e0::2"))
    assert found.own_names == ("laptop", "laptop.tailnet.test")
    assert server.asked == ["/localapi/v0/status?peers=false"]


def test_status_tells_of_peers_only_when_asked(api: LocalApi, server: LocalApiServer) -> None:
    server.status = status_of(LAPTOP, peer_of("nDESK", "desktop"))
    assert api.status().peers == ()
    assert [peer.node.stable_id for peer in api.status(peers=True).peers] == ["nDESK"]


def test_a_tailnet_of_one_has_no_peers(api: LocalApi) -> None:
    assert api.status(peers=True).peers == ()


@pytest.mark.parametrize("state", ["Stopped", "NeedsLogin", "NoState", "Starting"])
def test_a_tailscaled_that_is_not_connected_is_nobody(
    api: LocalApi, server: LocalApiServer, state: str
) -> None:
    server.status = status_of(LAPTOP, peer_of("nDESK", "desktop"), state=state)
    found = api.status(peers=True)
    assert (found.state, found.own, found.own_names, found.peers) == (state, None, (), ())


def test_before_a_login_status_may_lack_everything_else(api: LocalApi, server: LocalApiServer) -> None:
    server.status = {"BackendState": "NeedsLogin", "TUN": True, "Self": None, "Peer": None, "User": None}
    assert api.status().own is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("BackendState",), None),
        (("BackendState",), ""),
        (("TUN",), None),
        (("TUN",), 1),
        (("Self",), None),
        (("Self", "ID"), ""),
        (("Self", "DNSName"), ""),
        (("Self", "DNSName"), None),
        (("Self", "UserID"), "1"),
        (("Self", "TailscaleIPs"), "100.64.0.2"),
        (("Self", "TailscaleIPs"), ["laptop"]),
        (("Self", "Online"), "yes"),
        (("Self", "Tags"), {"tag:server": True}),
        (("Peer",), []),
        (("Peer", "nodekey:0"), None),
        (("Peer", "nodekey:0", "CurAddr"), 1),
        (("User",), []),
        (("User", "1"), []),
        (("User", "1", "LoginName"), 1),
        (("CurrentTailnet",), "tailnet.test"),
        (("CurrentTailnet", "MagicDNSSuffix"), 1),
    ],
)
def test_a_member_of_status_that_is_not_as_documented_is_not_believed(
    api: LocalApi, server: LocalApiServer, path: tuple[str, ...], value: object
) -> None:
    server.status = changed(status_of(LAPTOP, peer_of("nDESK", "desktop", Active=True)), *path, to=value)
    with pytest.raises(IdentityUnavailable, match="makes no sense"):
        api.status(peers=True)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"Active": True, "CurAddr": "192.0.2.1:41641", "Relay": "fra"}, "direct 192.0.2.1:41641"),
        ({"Active": True, "CurAddr": "", "Relay": "fra"}, "relay fra"),
        ({"Active": True, "PeerRelay": "192.0.2.9:7:1", "Relay": "fra"}, "peer relay 192.0.2.9:7:1"),
        ({"Active": False, "CurAddr": "", "Relay": "fra"}, ""),
        ({"Active": True, "CurAddr": "", "Relay": ""}, ""),
    ],
)
def test_the_path_is_told_only_while_packets_travel(
    api: LocalApi, server: LocalApiServer, members: dict[str, Any], path: str
) -> None:
    server.status = status_of(LAPTOP, peer_of("nDESK", "desktop", **members))
    assert [peer.path for peer in api.status(peers=True).peers] == [path]


def test_only_nodes_of_this_tailnet_have_a_short_name(api: LocalApi, server: LocalApiServer) -> None:
    shared = peer_of("nSHARED", "laptop", BOB, DNSName="Laptop.Elsewhere.test.")
    server.status = status_of(LAPTOP, peer_of("nDESK", "desktop"), shared)
    ours, theirs = api.status(peers=True).peers
    assert ours.names == ("desktop", "desktop.tailnet.test")
    assert theirs.names == ("laptop.elsewhere.test",)


def test_nodes_that_cannot_be_called_are_no_peers(api: LocalApi, server: LocalApiServer) -> None:
    sharee, nameless = peer_of("nX", "x", BOB, ShareeNode=True), peer_of("nY", "y", BOB, DNSName="")
    server.status = status_of(LAPTOP, sharee, nameless)
    assert api.status(peers=True).peers == ()


# --- a service that is not as it should be --------------------------------------


def ask_whois(api: LocalApi) -> object:
    return api.whois("100.64.0.1")


def ask_status(api: LocalApi) -> object:
    return api.status(peers=True)


questions = pytest.mark.parametrize("question", [ask_whois, ask_status])


@questions
@pytest.mark.parametrize("trouble", fake.NONSENSE)
def test_nonsense_is_an_error_that_says_so(
    api: LocalApi,
    server: LocalApiServer,
    trouble: str,
    question: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(localapi, "STATUS_LIMIT", 1 << 20)  # an endless answer is read up to there
    server.trouble = {"whois": fake.NONSENSE[trouble], "status": fake.NONSENSE[trouble]}
    with pytest.raises(IdentityUnavailable, match=f"tailscaled \\({server.path}\\) does not say") as caught:
        question(api)
    assert caught.value.message.isprintable()


@questions
@pytest.mark.parametrize("trouble", fake.SLOW)
def test_a_slow_answer_is_not_waited_for(server: LocalApiServer, trouble: str, question: Any) -> None:
    server.trouble = {"whois": fake.SLOW[trouble], "status": fake.SLOW[trouble]}
    with pytest.raises(IdentityUnavailable, match=r"no answer within 0\.2 s"):
        question(LocalApi(server.path, timeout=0.2))


def test_an_answer_that_breaks_off_is_void_even_if_it_could_be_read(
    api: LocalApi, server: LocalApiServer
) -> None:
    whole = json.dumps(DESKTOP).encode()
    server.trouble = {"whois": fake.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + whole)}
    with pytest.raises(IdentityUnavailable, match="closed the connection inside its answer"):
        api.whois("100.64.0.1")


def test_an_answer_that_is_too_long_is_void_even_if_it_could_be_read(
    api: LocalApi, server: LocalApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.dumps(DESKTOP).encode()
    server.trouble = {"whois": fake.body(whole)}
    monkeypatch.setattr(localapi, "WHOIS_LIMIT", len(whole))
    assert api.whois("100.64.0.1") == node_of(DESKTOP)
    server.trouble = {"whois": fake.body(whole + b" ")}
    with pytest.raises(IdentityUnavailable, match=f"longer than {len(whole)} bytes"):
        api.whois("100.64.0.1")


def test_a_service_without_status_is_not_tailscaled(api: LocalApi, server: LocalApiServer) -> None:
    server.trouble = {"status": fake.body(b"404 page not found\n", 404)}
    with pytest.raises(IdentityUnavailable, match="not tailscaled"):
        api.status()


@questions
def test_an_absent_service_is_an_error_that_says_so(tmp_path: Path, question: Any) -> None:
    with pytest.raises(IdentityUnavailable, match="it is not running"):
        question(LocalApi(tmp_path / "nowhere"))
    with fake.dead_socket() as path, pytest.raises(IdentityUnavailable, match="it is not running"):
        question(LocalApi(path))


@questions
def test_a_path_that_is_too_long_is_an_error_that_says_so(tmp_path: Path, question: Any) -> None:
    with pytest.raises(IdentityUnavailable, match="too long"):
        question(LocalApi(tmp_path / ("x" * 200)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(answer=st.binary(max_size=400) | st.binary(max_size=200).map(lambda b: b"HTTP/1.1 200 OK\r\n" + b))
def test_arbitrary_bytes_are_never_a_node(shared: LocalApiServer, answer: bytes) -> None:
    shared.trouble = {"whois": fake.raw(answer)}
    with contextlib.suppress(IdentityUnavailable):
        assert LocalApi(shared.path).whois("100.64.0.1") is None


@given(document=json_values)
def test_arbitrary_documents_are_refused_by_one_error(shared: LocalApiServer, document: object) -> None:
    shared.trouble, shared.status, shared.nodes = {}, document, {"100.64.0.1": document}
    api = LocalApi(shared.path)
    for question in (ask_whois, ask_status):
        with pytest.raises(IdentityUnavailable):
            question(api)


# --- is it there at all ---------------------------------------------------------


def test_the_process_that_listens_is_known(api: LocalApi) -> None:
    assert api.daemon() == os.getpid()


def test_nobody_listens_on_a_dead_socket(tmp_path: Path) -> None:
    assert LocalApi(tmp_path / "nowhere").daemon() is None
    with fake.dead_socket() as path:
        assert LocalApi(path).daemon() is None


def test_a_service_that_takes_no_more_connections_is_there(tmp_path: Path) -> None:
    with fake.dead_socket() as dead:
        path = dead.with_name("busy")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
            listener.bind(str(path))
            listener.listen(0)
            waiting.connect(str(path))
            assert LocalApi(path, timeout=0.05).daemon() == 0
