"""Whom a sender connects to, and what has to be shown before it sends anything in plain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.devices import trust
from support.vouching import Meshing, Vouching
from tdx.control.dial import Dialer, connect, first_round_trip
from tdx.control.resolve import Peer, Route
from tdx.control.workers import Workers
from tdx.errors import Forbidden, IdentityUnavailable, TdxError, UnknownPeer, Unreachable, UsageError
from tdx.identity.port import Endpoint, Link
from tdx.identity.registry import Identities
from tdx.identity.tls import TlsIdentities
from tdx.model import Identity, Owner

MESH = "127.0.0.88"


@contextmanager
def listener(host: str = MESH) -> Iterator[socket.socket]:
    with socket.create_server((host, 0)) as sock:
        sock.settimeout(10)
        yield sock


def dial(
    peer: Peer, state: Path, mesh: Meshing | None = None, others: Sequence[Vouching] = ()
) -> tuple[Link, str]:
    """Dial once; the link that was made and the value of Host."""
    meshes = [] if mesh is None else [mesh]

    async def go() -> tuple[Link, str]:
        workers = Workers(bodies=1)
        try:
            identities = Identities([*meshes, *others], meshes)
            connection = await Dialer(peer, identities, TlsIdentities(state), workers).dial()
            connection.close()
            return connection.link, connection.authority
        finally:
            workers.close()

    return asyncio.run(go())


def refused(
    kind: type[TdxError], reason: str, peer: Peer, state: Path, mesh: Meshing, sock: socket.socket
) -> None:
    """Dialling fails for that reason, and whoever listens has not been sent a byte."""
    with pytest.raises(kind, match=reason):
        dial(peer, state, mesh)
    sock.setblocking(False)
    while True:
        try:
            accepted, _ = sock.accept()
        except BlockingIOError:
            return
        with accepted:
            accepted.settimeout(10)
            assert accepted.recv(1) == b""


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_a_member_of_a_mesh_is_found_by_name_and_reached_by_the_meshs_interface(tmp_path: Path) -> None:
    with listener() as sock:
        link, host = dial(Peer("NAS", port_of(sock)), tmp_path, Meshing("mesh:nas", "mesh"))
        assert (link.remote.host, link.interface) == (MESH, "lo")
        assert host == f"{MESH}:{port_of(sock)}"  # which the receiver knows, whatever it is called here


def test_a_member_of_a_mesh_may_be_named_by_its_address(tmp_path: Path) -> None:
    with listener() as sock:
        link, _ = dial(Peer(MESH, port_of(sock)), tmp_path, Meshing("mesh:other", "mesh", own=False))
    assert link.interface == "lo"


def test_a_name_whose_address_has_passed_to_another_member_is_refused(tmp_path: Path) -> None:
    with listener() as sock:
        mesh = Meshing("mesh:thief", "mesh")
        refused(Forbidden, r"not nas; nothing was sent", Peer("nas", port_of(sock)), tmp_path, mesh, sock)


def test_a_name_of_dns_that_leads_to_a_member_by_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: real(MESH, *rest, **more) if host else []
    )
    with listener() as sock:
        mesh = Meshing("mesh:thief", "mesh")
        refused(
            Forbidden, "bank leads to 127.0.0.88, which is", Peer("bank", port_of(sock)), tmp_path, mesh, sock
        )


def test_an_address_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    with listener() as sock:
        refused(Forbidden, "tdx pair", Peer(MESH, port_of(sock)), tmp_path, Meshing(None, "mesh"), sock)


def test_a_mesh_without_an_interface_cannot_vouch_for_who_answers(tmp_path: Path) -> None:
    with listener() as sock:
        mesh = Meshing("mesh:nas", "mesh", device=None)
        for host in ("nas", MESH):
            refused(Forbidden, "no interface here", Peer(host, port_of(sock)), tmp_path, mesh, sock)


def test_another_users_receiver_on_this_machine_is_refused(tmp_path: Path) -> None:
    with listener() as sock, pytest.raises(Forbidden, match="belongs to somebody, not to you"):
        dial(Peer(MESH, port_of(sock)), tmp_path, None, [Vouching("local:4242", own=False)])


def test_a_connection_that_another_user_accepted_before_ones_own_receiver_listened_is_refused(
    tmp_path: Path,
) -> None:
    class Squatted(Vouching):
        def whois(self, link: Link) -> Identity | None:
            return Identity(Owner("local:4242"), "local", "squatter", "here")

        def confirms(self, destination: Endpoint) -> Identity | None:
            return super().whois(Link(destination, destination))

    with listener() as sock, pytest.raises(Forbidden, match="belongs to squatter, not to you"):
        dial(Peer(MESH, port_of(sock)), tmp_path, None, [Squatted("local:1")])


def test_a_mesh_that_is_silent_is_worth_another_try(tmp_path: Path) -> None:
    mesh = Meshing("mesh:nas", "mesh", silent=True)
    for peer in (Peer("nas.invalid", 1), Peer(MESH, 1)):
        with pytest.raises(IdentityUnavailable, match="silent"):
            dial(peer, tmp_path, mesh)


def test_a_silent_mesh_is_named_where_dns_does_not_answer_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(IdentityUnavailable, match="silent"):
        dial(Peer("nas"), tmp_path, Meshing("mesh:nas", "mesh", silent=True))
    with pytest.raises(Unreachable, match="cannot look up desk now"):
        dial(Peer("desk"), tmp_path, Meshing("mesh:nas", "mesh"))


def test_a_silent_mesh_does_not_keep_from_what_needs_none(tmp_path: Path) -> None:
    with listener("127.0.0.1") as sock:
        mesh = Meshing("mesh:nas", "mesh", silent=True)
        link, host = dial(Peer("localhost", port_of(sock)), tmp_path, mesh, [Vouching("local:1")])
        assert (link.remote.host, host) == ("127.0.0.1", f"localhost:{port_of(sock)}")


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="needs TCP_CONGESTION, which is Linux's")
def test_what_goes_to_this_machine_is_not_paced(tmp_path: Path) -> None:
    async def go(port: int) -> bytes:
        workers = Workers(bodies=1)
        identities = Identities([Vouching("local:1")], [])
        dialer = Dialer(Peer("127.0.0.1", port), identities, TlsIdentities(tmp_path), workers)
        connection = await dialer.dial()
        try:
            return connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        finally:
            connection.close()
            workers.close()

    with listener("127.0.0.1") as sock:
        assert asyncio.run(go(port_of(sock))) == b"reno"


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="needs TCP_INFO, which is Linux's")
def test_a_machine_that_is_busy_does_not_make_a_near_peer_look_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = 0.05

    async def connect_and_wait_for_a_core(sock: socket.socket, route: Route, timeout: float) -> None:
        await connect(sock, route, timeout)
        await asyncio.sleep(wait)

    async def go(port: int) -> float:
        workers = Workers(bodies=1)
        identities = Identities([Vouching("local:1")], [])
        dialer = Dialer(Peer("127.0.0.1", port), identities, TlsIdentities(tmp_path), workers)
        (await dialer.dial()).close()
        workers.close()
        return dialer.round_trip

    monkeypatch.setattr("tdx.control.dial.connect", connect_and_wait_for_a_core)
    with listener("127.0.0.1") as sock:
        assert 0 < asyncio.run(go(port_of(sock))) < wait


def test_what_is_no_tcp_connection_has_no_round_trip() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert first_round_trip(one) == 0.0


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(UnknownPeer, match=r"no machine is called nobody\.invalid"):
        dial(Peer("nobody.invalid"), tmp_path, Meshing("mesh:nas", "mesh"))


def test_an_address_where_nobody_listens(tmp_path: Path) -> None:
    with listener() as sock:
        port = port_of(sock)
    with pytest.raises(Unreachable, match=r"connection refused; is `tdx serve` running there"):
        dial(Peer(MESH, port), tmp_path, Meshing("mesh:nas", "mesh"))


@pytest.mark.parametrize("name", ["nas", MESH, f"::ffff:{MESH}", "0:0::FFFF:7f00:0058"])
def test_a_paired_device_that_also_is_on_the_mesh_is_spoken_to_in_tls(tmp_path: Path, name: str) -> None:
    state = tmp_path / "state"
    with listener() as sock:
        trust(state, "nas", tmp_path / "nas", f"{MESH}:{port_of(sock)}")
        sock.setblocking(True)

        async def go() -> bytes:
            workers = Workers(bodies=1)
            mesh = Meshing("mesh:nas", "mesh")
            peer = Peer(name, None if name == "nas" else port_of(sock))
            dialer = Dialer(peer, Identities([mesh], [mesh]), TlsIdentities(state), workers)
            dialling = asyncio.create_task(dialer.dial())
            accepted, _ = await asyncio.to_thread(sock.accept)
            first = await asyncio.to_thread(accepted.recv, 1)
            accepted.close()
            with pytest.raises(TdxError):
                await dialling
            workers.close()
            return first

        assert asyncio.run(go()) == b"\x16"


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("nas", Peer("nas")),
        ("nas:", Peer("nas")),
        ("nas:9000", Peer("nas", 9000)),
        ("[::1]:9000", Peer("::1", 9000)),
        ("[::1]", Peer("::1")),
        ("fe80::1%eth0", Peer("fe80::1%eth0")),
        ("192.0.2.1:8390:", Peer("192.0.2.1", 8390)),
    ],
)
def test_a_peer_is_a_name_or_an_address_with_or_without_a_port(text: str, peer: Peer) -> None:
    assert Peer.parse(text) == peer


@pytest.mark.parametrize(
    "text", ["", ":", ":1", "nas:0", "nas:65536", "nas:x", "a b", "a/b", "[::1", "[::1]x"]
)
def test_what_is_no_peer_is_an_error_of_usage(text: str) -> None:
    with pytest.raises(UsageError):
        Peer.parse(text)
