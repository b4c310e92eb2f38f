"""A real tailnet: what its nodes' daemons tell of each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from support.processes import Processes, wait_until
from support.spaces import as_stranger
from support.tailnet import ALICE, BOB, CAPABILITY, RELAY, SUFFIX, TAG, Node, Tailnet, real_tailnet

_CALLER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    print("called", flush=True)
    connection.recv(1)
"""
_CALLED = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    connection, (host, port) = listener.accept()
    print(f"{host}:{port}", flush=True)
    connection.recv(1)
"""


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    folder = tmp_path_factory.mktemp("tailnet")
    with Processes(folder / "logs") as processes, real_tailnet(processes) as found:
        yield found


def whois(asked: Node, address: str) -> dict[str, Any]:
    found = asked.whois(address)
    assert found is not None, f"{asked.host} does not know {address}"
    return found


def peer(asked: Node, other: Node) -> dict[str, Any]:
    """What the status of ``asked`` has of ``other``."""
    (found,) = [each for each in asked.status()["Peer"].values() if other.ip4 in each["TailscaleIPs"]]
    return dict(found)


# --- what the LocalAPI tells ----------------------------------------------------


@pytest.mark.parametrize("form", ["{0.ip4}", "{0.ip6}", "{0.ip4}:4000", "[{0.ip6}]:4000", "::ffff:{0.ip4}"])
def test_whois_names_the_node_and_its_user_by_any_form_of_its_address(tailnet: Tailnet, form: str) -> None:
    laptop, desktop = tailnet["laptop"], tailnet["desktop"]
    found = whois(laptop, form.format(desktop))
    assert found["Node"]["StableID"] == desktop.status()["Self"]["ID"]
    assert found["Node"]["Name"] == f"desktop.{SUFFIX}." == f"{desktop.name}."
    assert found["Node"]["Addresses"] == [f"{desktop.ip4}/32", f"{desktop.ip6}/128"]
    assert found["UserProfile"]["LoginName"] == ALICE
    assert "Tags" not in found["Node"]


def test_a_tagged_node_has_tags_and_a_user_that_is_nobody(tailnet: Tailnet) -> None:
    found = whois(tailnet["laptop"], tailnet["server"].ip4)
    assert found["Node"]["Tags"] == [TAG]
    assert found["UserProfile"]["LoginName"] == "tagged-devices"


def test_a_capability_is_shown_only_where_it_was_granted(tailnet: Tailnet) -> None:
    phone = tailnet["phone"]
    found = whois(tailnet["laptop"], phone.ip4)
    assert found["UserProfile"]["LoginName"] == BOB
    assert found["CapMap"] == {CAPABILITY: [{"push": True}]}
    assert whois(tailnet["server"], phone.ip4)["CapMap"] is None
    assert whois(tailnet["desktop"], tailnet["laptop"].ip4)["CapMap"] is None


@pytest.mark.parametrize("address", ["100.64.99.99", "10.214.0.3", "127.0.0.1:9", "fd7a:115c:a1e0::9999"])
def test_an_address_that_no_node_has_is_not_found(tailnet: Tailnet, address: str) -> None:
    assert tailnet["laptop"].whois(address) is None


def test_any_user_may_ask_who_it_is(tailnet: Tailnet, processes: Processes) -> None:
    laptop, desktop = tailnet["laptop"], tailnet["desktop"]
    target = f"http://local-tailscaled.sock/localapi/v0/whois?addr={desktop.ip4}"
    curl = processes.curl("--unix-socket", laptop.socket, target, prefix=as_stranger())
    assert curl.status == 200, curl.log()
    assert curl.body["UserProfile"]["LoginName"] == ALICE


def test_status_has_this_node_and_every_other(tailnet: Tailnet) -> None:
    for node in tailnet.nodes.values():
        status = node.status()
        assert status["BackendState"] == "Running"
        assert status["MagicDNSSuffix"] == SUFFIX
        assert status["TUN"] is (node.host != "nas")
        assert status["Self"]["TailscaleIPs"] == [node.ip4, node.ip6]
        assert status["Self"].get("Tags", []) == list(node.tags)
        names = {each["DNSName"].rstrip(".") for each in status["Peer"].values()}
        assert names == {other.name for other in tailnet.nodes.values() if other is not node}


def test_status_tells_a_direct_path_from_a_relayed_one(tailnet: Tailnet) -> None:
    laptop, desktop, phone = (tailnet[host] for host in ("laptop", "desktop", "phone"))
    wait_until(lambda: peer(laptop, desktop)["CurAddr"], "laptop reaches desktop directly")
    assert peer(laptop, desktop)["CurAddr"].startswith("10.214.0.3:")
    assert (peer(laptop, phone)["CurAddr"], peer(laptop, phone)["Relay"]) == ("", RELAY)


@pytest.mark.parametrize("host", ["laptop", "phone"])
def test_without_a_device_of_its_own_a_node_is_called_on_loopback_and_knows_by_whom(
    tailnet: Tailnet, processes: Processes, host: str
) -> None:
    caller, nas = tailnet[host], tailnet["nas"]
    called = processes.run("called", [*nas.prefix, sys.executable, "-c", _CALLED])
    port = wait_until(lambda: called.stdout, "it listens").strip()
    processes.run("caller", [*caller.prefix, sys.executable, "-c", _CALLER, nas.ip4, port])
    remote = wait_until(lambda: called.stdout.split("\n")[1:-1], "it is called")[0]
    assert remote.startswith("127.0.0.1:")
    assert whois(nas, remote)["Node"]["Name"] == f"{caller.name}."
    assert nas.whois("127.0.0.1") is None
