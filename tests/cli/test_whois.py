"""``tdx whois``: who is at an address, as far as anybody here can say."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import localapi
from support.commands import RunningReceiver, Tdx, parsed
from support.devices import trust
from support.localapi import ALICE, NONSENSE, LocalApiServer, peer_of, status_of, whois_of
from tdx.identity.local import user_name
from tdx.identity.tls import TlsIdentities

ME = f"local:{os.getuid()}"


@pytest.fixture
def tailscaled() -> Iterator[LocalApiServer]:
    with localapi.serving() as server:
        own = peer_of("n0", "here", ALICE, "100.64.0.1")
        server.status = status_of(own, peer_of("n1", "desk", ALICE, "100.64.0.2"))
        yield server


@pytest.fixture
def config(tmp_path: Path, tailscaled: LocalApiServer) -> Path:
    file = tmp_path / "tdx.toml"
    file.write_text(f'[tailscale]\nsocket = "{tailscaled.path}"\n')
    return file


def test_who_listens_on_this_machine_is_the_uid_that_holds_the_socket(
    tdx: Tdx, receiver: RunningReceiver
) -> None:
    done = tdx("whois", receiver.address)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == [
        *("provider", "user", "node", "tags", "capabilities", "owner", "own", "because", "allowed"),
    ]
    assert (lines["provider"], lines["user"], lines["owner"]) == ("local", user_name(os.getuid()), ME)
    assert (lines["own"], lines["because"]) == ("yes", "listens there")
    assert lines["allowed"] == f"see: tdx policy check {ME}"
    port = receiver.address.rpartition(":")[2]
    assert tdx("whois", f"localhost:{port}").stdout == done.stdout


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_has_a_connection_on_this_machine_is_found_by_its_other_end(
    tdx: Tdx, family: socket.AddressFamily, host: str
) -> None:
    with socket.socket(family) as listener, socket.socket(family) as caller:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is no address of this machine")
        listener.listen()
        caller.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            port, heard = caller.getsockname()[1], listener.getsockname()[1]
            place = f"[{host}]" if ":" in host else host
            (found,) = parsed(tdx("whois", f"{place}:{port}", "--json").stdout)
    assert (found["owner"], found["own"]) == (ME, True)
    assert found["because"] == f"connected to {place}:{heard}"


def test_a_port_that_nobody_has_is_68(tdx: Tdx) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = tdx("whois", f"127.0.0.1:{unused.getsockname()[1]}")
    assert (done.returncode, done.stdout) == (68, "")
    assert "nobody can be told" in done.stderr


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "is this machine"),
        ("192.0.2.77", "nothing on this machine can say who is at 192.0.2.77"),
        ("[2001:db8::7]:8390", "nothing on this machine can say"),
        ("nobody", "nobody is called nobody here"),
    ],
)
def test_an_unknown_one_is_68(tdx: Tdx, tmp_path: Path, address: str, says: str) -> None:
    (tmp_path / "tdx.toml").write_text("[tailscale]\nenabled = false\n")
    done = tdx("whois", address, "--config", tmp_path / "tdx.toml")
    assert (done.returncode, done.stdout) == (68, "")
    assert says in done.stderr


def test_nonsense_is_64(tdx: Tdx) -> None:
    assert tdx("whois", "a b").returncode == 64


def test_a_paired_device_is_known_by_name_and_its_address_proves_nothing(tdx: Tdx, tmp_path: Path) -> None:
    trust(tmp_path / "state", "nas", tmp_path / "nas", "192.0.2.1:9000")
    key = TlsIdentities(tmp_path / "nas").device.key
    (by_name,) = parsed(tdx("whois", "NAS", "--json").stdout)
    assert by_name == {
        "event": "identity",
        "provider": "tls",
        "user": "",
        "node": "nas",
        "tags": [],
        "capabilities": [],
        "owner": f"tls:{key}",
        "own": True,
        "because": "paired; its key shows who it is when it connects",
    }
    for address in ("192.0.2.1:9000", "192.0.2.1"):
        (by_address,) = parsed(tdx("whois", address, "--json").stdout)
        assert by_address["owner"] == f"tls:{key}"
        assert "only its key shows" in by_address["because"]
    assert tdx("whois", "192.0.2.1:9001").returncode == 68


def test_a_member_of_a_tailnet_is_known_by_name_with_the_rule_to_look_at(tdx: Tdx, config: Path) -> None:
    done = tdx("whois", "desk", "--config", config)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (lines["provider"], lines["user"], lines["owner"]) == ("tailscale", ALICE, "tailscale:n1")
    command = shlex.split(lines["allowed"].removeprefix("see: "))
    assert command[:4] == ["tdx", "policy", "check", "tailscale:n1"]
    assert tdx(*command[1:], "--config", config).returncode == 0


def test_who_tailscaled_proxies_is_told_by_the_port_of_the_connection(
    tdx: Tdx, config: Path, tailscaled: LocalApiServer
) -> None:
    own = peer_of("n0", "here", ALICE, "100.64.0.1")
    tailscaled.status = status_of(own, tun=False)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as caller:
        caller.connect(listener.getsockname())
        port = caller.getsockname()[1]
        capabilities = {"example.com/cap/tdx": None}
        tailscaled.nodes[f"127.0.0.1:{port}"] = whois_of(
            "n1", "desk", ALICE, "100.64.0.2", capabilities=capabilities
        )
        (found,) = parsed(tdx("whois", f"127.0.0.1:{port}", "--json", "--config", config).stdout)
    assert (found["provider"], found["owner"]) == ("tailscale", "tailscale:n1")
    assert found["capabilities"] == ["example.com/cap/tdx"]


def test_a_provider_that_should_know_and_is_silent_is_75(
    tdx: Tdx, config: Path, tailscaled: LocalApiServer
) -> None:
    tailscaled.trouble["status"] = NONSENSE["no JSON"]
    for address in ("desk", "100.64.0.2"):
        done = tdx("whois", address, "--config", config)
        assert (done.returncode, done.stdout) == (75, "")
