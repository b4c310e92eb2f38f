"""Devices on the local network: what is announced, who is believed, and that only keys decide."""

from __future__ import annotations

import asyncio
import errno
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ifaddr
import pytest
from zeroconf import ServiceInfo

from support.devices import trust
from support.processes import PROGRAM, Processes, Running, reaped, wait_until
from support.spaces import THERE, Cable, cable
from tdx.control.discovery import (
    MOST_ADDRESSES,
    SERVICE,
    Presence,
    announcement_of,
    find_device,
    presence_of,
)
from tdx.control.peers import list_peers
from tdx.identity.port import Endpoint, Place
from tdx.identity.settings import IdentitySettings, TailscaleSettings
from tdx.identity.tls import TlsIdentities

KEY: Final = "0123456789abcdef"
PORT: Final = 8390

# --- what is heard ----------------------------------------------------------------


def service(
    addresses: Sequence[str], port: int = PORT, properties: dict[str, Any] | None = None
) -> ServiceInfo:
    return ServiceInfo(
        SERVICE,
        f"x.{SERVICE}",
        port=port,
        properties={"key": KEY} if properties is None else properties,
        parsed_addresses=list(addresses),
    )


def test_an_announcement_names_a_key_and_addresses() -> None:
    said = announcement_of(service(["192.0.2.1", "2001:db8::1"]))
    assert said is not None
    assert (said.key, said.port, set(said.addresses)) == (KEY, PORT, {"192.0.2.1", "2001:db8::1"})
    assert set(said.places) == {"192.0.2.1:8390", "[2001:db8::1]:8390"}
    assert said.names(KEY + "0" * 48)
    assert not said.names("f" * 64)


@pytest.mark.parametrize(
    "properties",
    [{}, {"key": None}, {"key": ""}, {"key": KEY[:15]}, {"key": KEY + "0"}, {"key": KEY.upper()}, {"k": KEY}],
)
def test_what_names_no_key_is_not_heard(properties: dict[str, Any]) -> None:
    assert announcement_of(service(["192.0.2.1"], properties=properties)) is None


@pytest.mark.parametrize(
    "addresses", [[], ["127.0.0.1", "::1"], ["0.0.0.0", "::"], ["224.0.0.1"], ["fe80::1"]]
)
def test_what_leads_to_no_other_machine_is_not_heard(addresses: list[str]) -> None:
    assert announcement_of(service(addresses)) is None


def test_port_0_is_not_heard() -> None:
    assert announcement_of(service(["192.0.2.1"], port=0)) is None


def test_a_long_list_of_addresses_is_cut() -> None:
    said = announcement_of(service([f"192.0.2.{n}" for n in range(1, 200)]))
    assert said is not None
    assert len(said.addresses) == MOST_ADDRESSES


# --- what is told -----------------------------------------------------------------


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    def adapter(name: str, *addresses: str) -> ifaddr.Adapter:
        ips: list[Any] = [
            ifaddr.IP((each, 0, 0) if ":" in each else each, 64 if ":" in each else 24, name)
            for each in addresses
        ]
        return ifaddr.Adapter(name, name, ips)

    found = [
        adapter("lo", "127.0.0.1", "::1"),
        adapter("eth0", "192.0.2.1", "2001:db8::1", "fe80::1"),
        adapter("eth1", "198.51.100.1"),
        adapter("wg0", "10.9.0.1"),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: found)


@pytest.mark.usefixtures("interfaces")
@pytest.mark.parametrize(
    ("listening", "told"),
    [
        ([("127.0.0.1", 1), ("::1", 1), ("10.9.0.1", 1)], Presence((), ())),
        ([("192.0.2.1", 1), ("127.0.0.1", 2)], Presence(((1, ("192.0.2.1",)),), ("192.0.2.1",))),
        ([("2001:db8::1", 1)], Presence(((1, ("2001:db8::1",)),), ("192.0.2.1",))),
        (
            [("0.0.0.0", 1), ("::", 1)],
            Presence(((1, ("192.0.2.1", "198.51.100.1", "2001:db8::1")),), ("192.0.2.1", "198.51.100.1")),
        ),
        (
            [("192.0.2.1", 1), ("198.51.100.1", 2)],
            Presence(((1, ("192.0.2.1",)), (2, ("198.51.100.1",))), ("192.0.2.1", "198.51.100.1")),
        ),
    ],
)
def test_told_are_the_addresses_listened_on_but_loopback_and_meshes(
    listening: list[tuple[str, int]], told: Presence
) -> None:
    meshes = [Place("10.9.0.1", "wg0")]
    assert presence_of([Endpoint(*each) for each in listening], meshes) == told


# --- two machines on a cable --------------------------------------------------------

_LOOK: Final = """
import asyncio, json, sys
from tdx.control.discovery import look
found = asyncio.run(look(float(sys.argv[1])))
print(json.dumps([[each.key, each.addresses, each.port] for each in found]))
"""

_LIAR: Final = """
import asyncio, sys
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf
from tdx.control.discovery import SERVICE

async def main():
    key, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    lying = AsyncZeroconf(interfaces=[host])
    info = ServiceInfo(SERVICE, "aaa." + SERVICE, port=port, properties={"key": key}, server="aaa.local.",
                       parsed_addresses=[host])
    await (await lying.async_register_service(info))
    print("lying", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    yield from reaped(Processes(tmp_path / "logs"))


class Lan:
    """``laptop`` sends from one end of the cable; receivers run at the other."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._cable: Cable = cable(processes)
        self.laptop = folder / "laptop"
        self.source = folder / "file.bin"
        self.source.write_bytes(b"what nobody else may read" * 1000)
        self.config("laptop", "discover = true\n")

    def config(self, name: str, text: str) -> Path:
        file = self._folder / f"{name}.toml"
        file.write_text(f"{text}[tailscale]\nenabled = false\n")
        return file

    def state(self, name: str) -> Path:
        return self._folder / name

    def key(self, name: str) -> str:
        return TlsIdentities(self.state(name)).device.key

    def introduce(self, name: str, *addresses: str) -> None:
        trust(self.laptop, name, self.state(name), *addresses)
        trust(self.state(name), "laptop", self.laptop)

    def receives(self, name: str, port: int, *, announce: bool = True) -> Running:
        inbox = self._folder / f"{name}-inbox"
        inbox.mkdir(mode=0o700)
        config = self.config(name, f"announce = {str(announce).lower()}\n")
        process = self._processes.run(
            "serve",
            [
                *(*self._cable.far, *PROGRAM, "serve", "--dir", str(inbox), "--state", str(self.state(name))),
                *("--listen", f"{THERE}:{port}", "--config", str(config), "--log-level", "info"),
            ],
        )
        word = "announced" if announce else "listening"

        def ready() -> bool:
            assert process.running, process.log()
            return word in process.stderr + process.stdout

        wait_until(ready, f"{name} is {word}")
        return process

    def lies(self, key: str, port: int) -> None:
        liar = self._processes.run(
            "liar", [*self._cable.far, sys.executable, "-c", _LIAR, key[:16], THERE, str(port)]
        )
        wait_until(lambda: "lying" in liar.stdout, "the liar lies")

    def got(self, name: str) -> list[str]:
        inbox = self._folder / f"{name}-inbox"
        return sorted(each.name for each in inbox.iterdir() if each.name != ".tdx")

    def run(self, *arguments: str | Path, config: str = "laptop") -> Running:
        process = self._processes.run(
            str(arguments[0]),
            [
                *(*self._cable.near, *PROGRAM, *map(str, arguments), "--state", str(self.laptop)),
                *("--config", str(self._folder / f"{config}.toml")),
            ],
        )
        process.wait()
        return process

    def push(self, peer: str, config: str = "laptop") -> Running:
        return self.run("push", self.source, peer, config=config)

    def heard(self, seconds: float) -> list[Any]:
        process = self._processes.run("look", [*self._cable.near, sys.executable, "-c", _LOOK, str(seconds)])
        assert process.wait() == 0, process.log()
        found = json.loads(process.stdout)
        assert isinstance(found, list)
        return found


@pytest.fixture
def lan(processes: Processes, tmp_path: Path) -> Lan:
    return Lan(processes, tmp_path)


def test_a_paired_device_is_found_by_its_key_wherever_it_is_now(lan: Lan) -> None:
    lan.introduce("nas")
    lan.introduce("moved", f"{THERE}:1", "192.0.2.99")  # nobody there; no route there
    nas, moved = lan.receives("nas", PORT), lan.receives("moved", PORT + 1)
    for name in ("nas", "moved"):
        push = lan.push(name)
        assert push.code == 0, push.log()
        assert lan.got(name) == ["file.bin"]
    # With nothing to look for, or without being asked to look, it is as ever.
    lan.config("shy", "")
    assert lan.push("nas", config="shy").code in (68, 69)
    assert lan.push("moved", config="shy").code == 69
    assert lan.push("nobody").code in (68, 69)
    for process in (nas, moved):
        assert process.terminate() == 0, process.log()
    assert lan.heard(1.0) == []


def test_told_is_the_beginning_of_the_key_and_no_name(lan: Lan) -> None:
    lan.receives("nas", PORT)
    assert lan.heard(2.0) == [[lan.key("nas")[:16], [THERE], PORT]]


def test_who_was_not_asked_to_announces_nothing(lan: Lan) -> None:
    lan.receives("nas", PORT, announce=False)
    assert lan.heard(2.0) == []


def test_somebody_else_who_announces_a_key_gets_nothing(lan: Lan) -> None:
    lan.introduce("nas", f"{THERE}:{PORT + 1}")  # where somebody else listens by now
    thief = lan.receives("thief", PORT + 1, announce=False)
    trust(lan.state("thief"), "laptop", lan.laptop)
    lan.lies(lan.key("nas"), PORT + 1)
    push = lan.push("nas")
    assert push.code == 77, push.log()
    assert thief.stderr.count("refused a TLS connection") == 2  # at the old address, and at the announced one
    assert lan.got("thief") == []
    # Nor does it keep the file from the one who has the key.
    lan.receives("nas", PORT)
    push = lan.push("nas")
    assert push.code == 0, push.log()
    assert (lan.got("nas"), lan.got("thief")) == (["file.bin"], [])
    doctor = lan.run("doctor", "nas", "--size", "1M")
    assert doctor.code == 0, doctor.log()
    states = [line.split()[0] for line in doctor.stdout.splitlines() if line.split()[1] == "identity"]
    assert sorted(states) == ["ok", "warn"]


def test_peers_lists_who_is_announced_and_marks_strangers(lan: Lan) -> None:
    lan.introduce("nas")
    lan.introduce("away", f"{THERE}:1")
    lan.receives("nas", PORT)
    lan.receives("stranger", PORT + 1)
    listed = lan.run("peers", "--json", "--timeout", "3s")
    assert listed.code == 0, listed.log()
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(row["name"], row["sources"], row["state"]) for row in rows] == [
        ("away", ["paired"], "no answer"),
        ("nas", ["paired", "discovered"], "reachable"),
        (lan.key("stranger")[:16], ["discovered"], "not paired"),
    ]
    assert rows[1]["addresses"] == [f"{THERE}:{PORT}"]
    doctor = lan.run("doctor", "nas", "--size", "1M")
    assert doctor.code == 0, doctor.log()
    assert "according to the local network" in doctor.stdout


def test_a_machine_without_a_network_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unable() -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", unable)
    settings = IdentitySettings(tailscale=TailscaleSettings(enabled=False), discover=True)
    complaints: list[str] = []
    assert asyncio.run(list_peers(settings, tmp_path, 1.0, complaints.append)) == []
    assert complaints == ["cannot look for devices on the local network: [Errno 19] No such device"]
    assert asyncio.run(find_device("0" * 64)) == []


def test_a_receiver_that_nobody_could_find_says_so(lan: Lan, processes: Processes, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir(mode=0o700)
    config = lan.config("lonely", "announce = true\n")
    process = processes.run(
        "serve",
        [
            *(*PROGRAM, "serve", "--dir", str(inbox), "--state", str(tmp_path / "state")),
            *("--listen", "127.0.0.1:0", "--config", str(config)),
        ],
    )
    wait_until(lambda: "listens on no address of a local network" in process.stderr, "it says so")
    assert process.terminate() == 0, process.log()
