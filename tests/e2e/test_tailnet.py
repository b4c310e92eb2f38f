"""A real tailnet: what its nodes' daemons tell of each other, and who may push to whom."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.content import MIB, random_file, sha256_of
from support.headscale import RELAY, SUFFIX
from support.processes import PROGRAM, Curl, Processes, Push, Running, wait_until
from support.received import files_below
from support.spaces import STRANGER, Ear, as_stranger
from support.tailnet import ALICE, BOB, CAPABILITY, TAG, Node, Tailnet, real_tailnet

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
    assert peer(laptop, desktop)["CurAddr"].startswith(f"{desktop.wire}:")
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


# --- transfers ------------------------------------------------------------------


@dataclass
class Served:
    """``tdx serve`` on a node, with no more configured than where tailscaled is, and the rules."""

    node: Node
    folder: Path
    process: Running

    @property
    def published(self) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in files_below(self.folder)]


class Site:
    """Runs tdx on the nodes of a tailnet."""

    def __init__(self, tailnet: Tailnet, processes: Processes, area: Path) -> None:
        self._tailnet = tailnet
        self._processes = processes
        self._area = area
        self.source = random_file(area / "source.bin", 3 * MIB + 17)

    def serve(self, host: str, rules: str = "", also: Sequence[str] = ()) -> Served:
        """``also``: addresses to listen on besides the node's own on the tailnet."""
        node, folder = self._tailnet[host], self._area / f"{host}-inbox"
        listen = [f"--listen={each}:8390" for each in (*also, node.ip4)] if also else []
        process = self._run(node, "serve", "--dir", str(folder), "--log-level", "debug", *listen, rules=rules)
        address = "127.0.0.1" if host == "nas" else node.ip4

        def listening() -> bool:
            assert process.running, process.log()
            return f"listening {address}:8390\n" in process.stdout

        wait_until(listening, f"{host} listens")
        return Served(node, folder, process)

    def push(self, host: str, to: str, *flags: str) -> Push:
        node = self._tailnet[host]
        return self._processes.push(*flags, self.source, to, prefix=node.prefix, env=self._environment(node))

    def put(self, host: str, to: str, *arguments: str, prefix: Sequence[str] = ()) -> Curl:
        """The same with curl, to an address."""
        url = f"http://{to}:8390/files/source.bin"
        whole = [*self._tailnet[host].prefix, *prefix]
        return self._processes.curl(*arguments, "-T", self.source, url, prefix=whole)

    def say(self, host: str, *arguments: str) -> Running:
        """One run of tdx there, for people."""
        process = self._run(self._tailnet[host], *arguments)
        process.wait()
        return process

    def _run(self, node: Node, *arguments: str, rules: str = "") -> Running:
        command = [*node.prefix, *PROGRAM, *arguments]
        return self._processes.run(f"tdx-{node.host}", command, env=self._environment(node, rules))

    def _environment(self, node: Node, rules: str = "") -> dict[str, str]:
        config = self._area / f"{node.host}.toml"
        config.write_text(f'{rules}\n[tailscale]\nsocket = "{node.socket}"\n')
        state = self._area / f"{node.host}-state"
        return {**self._processes.environment, "TDX_CONFIG": str(config), "TDX_STATE_DIR": str(state)}


@contextlib.contextmanager
def posing(impostor: Node, as_node: Node, to: Node) -> Iterator[None]:
    """Within, ``impostor`` has the address of ``as_node`` on the network below the tailnet, and ``to``
    takes the way there for it that is left when it is not connected."""
    steps = [
        (impostor, f"ip address {{}} {as_node.ip4}/32 dev wire"),
        (to, f"ip route {{}} {as_node.ip4}/32 via {impostor.wire}"),
    ]
    with contextlib.ExitStack() as undo:
        for node, command in steps:
            subprocess.run([*node.prefix, *command.format("add").split()], check=True)
            undo.callback(subprocess.run, [*node.prefix, *command.format("delete").split()], check=True)
        yield


@pytest.fixture
def site(tailnet: Tailnet, processes: Processes, area: Path) -> Site:
    return Site(tailnet, processes, area)


@pytest.mark.parametrize("form", ["desktop", "{0.name}", "{0.name}.", "{0.ip4}", "[{0.ip6}]", "DESKTOP:8390"])
def test_two_nodes_of_one_user_push_by_any_name(site: Site, tailnet: Tailnet, form: str) -> None:
    served = site.serve("desktop")
    site.push("laptop", form.format(tailnet["desktop"])).ends(0, "done")
    assert sha256_of(served.folder / "source.bin") == sha256_of(site.source)


def test_a_node_of_another_user_is_refused(site: Site) -> None:
    served = site.serve("laptop")
    end = site.push("phone", "laptop").ends(77, "failed")
    assert "rule `default`" in end["error"]["message"]
    assert BOB in end["error"]["message"]
    assert (end["sent_bytes"], served.published) == (0, [])
    told = site.say("phone", "push", str(site.source), "laptop")
    assert (told.code, told.stdout, told.stderr.count("\n")) == (77, "", 1)
    assert "tdx.audit" in served.process.stderr
    assert served.published == []


def test_a_tagged_node_is_refused_until_a_rule_allows_its_tag(site: Site) -> None:
    served = site.serve("laptop")
    end = site.push("server", "laptop").ends(77, "failed")
    assert f'tag = "{TAG}"' in end["error"]["message"]
    assert served.published == []
    assert served.process.terminate() == 0
    served = site.serve("laptop", f'[[rule]]\nname = "servers"\ntag = "{TAG}"\ninto = "from-servers"\n')
    site.push("server", "laptop").ends(0, "done")
    assert served.published == ["from-servers/source.bin"]


def test_a_user_is_a_stranger_to_its_own_tagged_node(site: Site) -> None:
    served = site.serve("server")
    site.push("laptop", "server").ends(77, "failed")
    assert served.published == []


def test_a_granted_capability_lets_in_where_a_rule_asks_for_it(site: Site) -> None:
    rule = f'[[rule]]\nname = "granted"\ncapability = "{CAPABILITY}"\n'
    served = site.serve("laptop", rule)
    site.push("phone", "laptop").ends(0, "done")
    assert served.published == ["source.bin"]
    assert served.process.terminate() == 0
    elsewhere = site.serve("server", rule)
    site.push("phone", "server").ends(77, "failed")
    assert elsewhere.published == []


def test_on_a_node_without_a_device_who_calls_is_still_known(site: Site, tailnet: Tailnet) -> None:
    served, nas = site.serve("nas"), tailnet["nas"]
    end = site.push("phone", "nas").ends(77, "failed")
    assert BOB in end["error"]["message"]
    assert served.published == []
    site.push("laptop", "nas").ends(0, "done")
    put = site.put("laptop", nas.ip4, "-H", f"Host: {nas.name}:8390")
    assert put.status == 200, put.log()
    assert put.body["outcome"] == "identical"
    assert sha256_of(served.folder / "source.bin") == sha256_of(site.source)


def test_another_user_of_the_machine_gets_nothing_in_by_the_address_on_the_tailnet(
    site: Site, tailnet: Tailnet
) -> None:
    served = site.serve("laptop")
    put = site.put("laptop", tailnet["laptop"].ip4, prefix=as_stranger())
    assert put.status == 403, put.log()
    assert str(STRANGER) in put.body["detail"]
    assert served.published == []


def test_a_node_that_is_not_connected_believes_no_address(
    site: Site, tailnet: Tailnet, processes: Processes
) -> None:
    laptop, desktop, server = (tailnet[host] for host in ("laptop", "desktop", "server"))
    served = site.serve("laptop", also=[laptop.wire])
    with tailnet.down("laptop"), posing(server, desktop, laptop):
        # tailscaled goes on to name who would have that address.
        assert whois(laptop, desktop.ip4)["UserProfile"]["LoginName"] == ALICE
        put = site.put("server", laptop.wire, "--interface", desktop.ip4)
        assert put.status == 403, put.log()
        impostor = Ear(processes, desktop.ip4, server.prefix)
        end = site.push("laptop", impostor.address, "--retries", "0").ends(75, "failed")
        assert "tailscale up" in end["error"]["message"]
        assert impostor.heard == b""
    assert served.published == []
    site.push("desktop", "laptop").ends(0, "done")
    assert served.published == ["source.bin"]


# --- who is there ---------------------------------------------------------------


def test_people_are_told_who_is_there_and_what_is_in_the_way(site: Site, tailnet: Tailnet) -> None:
    served = site.serve("desktop")
    listed = site.say("laptop", "peers", "--json")
    rows = {row["name"]: row for row in map(json.loads, listed.stdout.splitlines())}
    assert {"desktop", "phone", "server"} <= rows.keys()
    assert all(row["sources"] == ["tailscale"] for row in rows.values())
    assert (rows["desktop"]["state"], rows["phone"]["state"]) == ("reachable", "no answer")
    assert rows["desktop"]["path"].startswith("direct ")
    assert rows["phone"]["path"] == "relay test"
    assert "alice" in site.say("laptop", "whois", tailnet["desktop"].ip4).stdout
    assert site.say("laptop", "policy", "check", "desktop").wait() == 0
    assert site.say("laptop", "policy", "check", "phone").wait() == 77
    doctor = site.say("laptop", "doctor", "desktop", "--size", "8M")
    assert doctor.wait() == 0, doctor.log()
    assert served.published == []


def test_the_doctor_says_which_rule_is_in_the_way(site: Site) -> None:
    site.serve("laptop")
    doctor = site.say("phone", "doctor", "laptop", "--size", "8M")
    assert doctor.wait() == 77
    assert "rule `default`" in doctor.stdout + doctor.stderr
