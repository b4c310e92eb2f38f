from __future__ import annotations

import errno
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tdx.identity import local, procnet, sockdiag
from tdx.identity.local import LocalProvider
from tdx.identity.port import Endpoint, Link, Provider
from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow
from tdx.model import Identity

LOOPBACK = b"\x7f\0\0\1"
NOBODY = 65534
TRIES = 20
MINE = f"local:{os.getuid()}"

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")


def _ipv6_works() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


with_ipv6 = pytest.mark.skipif(not _ipv6_works(), reason="this machine has no IPv6 loopback")


@pytest.fixture
def provider() -> LocalProvider:
    return LocalProvider()


@pytest.fixture(params=["sock_diag", "/proc/net/tcp"])
def one_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of the two interfaces works."""
    if request.param == "sock_diag":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            try:
                sockdiag.listeners(probe.getsockname()[1])
            except OSError as error:
                pytest.skip(f"no sock_diag here: {error}")
        monkeypatch.setattr(procnet, "read", _absent)
    else:
        monkeypatch.setattr(sockdiag, "_ask", _absent)


def _absent(*_: object) -> list[SocketRow]:
    raise OSError("not on this machine")


def link_of(accepted: socket.socket) -> Link:
    near, far = accepted.getsockname(), accepted.getpeername()
    return Link(Endpoint(near[0], near[1]), Endpoint(far[0], far[1]))


@contextmanager
def connected(listen_on: str, connect_to: str) -> Generator[tuple[socket.socket, socket.socket]]:
    """A client and the receiver's end of it."""
    six = ":" in listen_on
    with ExitStack() as stack:
        server = stack.enter_context(
            socket.create_server(
                (listen_on, 0),
                family=socket.AF_INET6 if six else socket.AF_INET,
                dualstack_ipv6=six and listen_on == "::",
            )
        )
        client = stack.enter_context(socket.create_connection((connect_to, server.getsockname()[1])))
        accepted, _ = server.accept()
        stack.enter_context(accepted)
        yield client, accepted


@contextmanager
def another_user(script: str) -> Generator[str]:
    """A process of ``nobody`` running ``script``; the line it prints. It lives until the end of the block."""
    # The interpreter's own folder may be closed to nobody: what is needed is imported before.
    become = f"import encodings.idna, os, socket, sys\nos.setgid({NOBODY})\nos.setuid({NOBODY})\n"
    wait = "\nprint(said, flush=True)\nsys.stdin.read()\n"
    child = subprocess.Popen(
        [sys.executable, "-c", become + script + wait],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        said = child.stdout.readline().strip()
        assert said, "the other user's process failed"
        yield said
        child.communicate()
    assert child.returncode == 0


def test_it_is_a_provider(provider: LocalProvider) -> None:
    checked: Provider = provider
    assert checked.name == "local"


def test_this_process_has_an_identity_of_its_own(provider: LocalProvider) -> None:
    assert provider.own == Identity(
        provider.own.owner, "local", pwd.getpwuid(os.getuid()).pw_name, os.uname().nodename, own=True
    )
    assert provider.own.owner == MINE
    assert LocalProvider(uid=4242).own.owner == "local:4242"


def test_a_uid_without_a_name_is_called_by_its_digits() -> None:
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = next(uid for uid in range(3_000_000_000, 3_000_001_000) if uid not in taken)
    assert local.user_name(free) == str(free)
    assert local.user_name(1 << 40) == str(1 << 40)


# --- covers ------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_covered(provider: LocalProvider, address: str) -> None:
    assert provider.covers(address)


def test_the_addresses_of_every_interface_are_covered(provider: LocalProvider) -> None:
    # A UDP socket towards a documentation address shows which address of ours would be used.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("no interface but loopback is up")
        assert provider.covers(probe.getsockname()[0])
        assert provider.covers(f"::ffff:{probe.getsockname()[0]}")


@pytest.mark.parametrize(
    "address",
    [
        "198.51.100.1",
        "2001:db8::1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
        "224.0.0.1",
        "ff02::1",
        "localhost",
        "",
        "127.0.0.1\0",
        "127.0.0.1 ",
        "fe80::1%no-such-interface",
        "fe80::1%99999999999999999999",
        "\udcff",
    ],
)
def test_nothing_else_is_covered(provider: LocalProvider, address: str) -> None:
    assert not provider.covers(address)


@with_ipv6
def test_a_zone_says_which_interface(provider: LocalProvider) -> None:
    index = socket.if_nametoindex("lo")
    assert local.interface_of("fe80::1%lo") == index
    assert local.interface_of(f"fe80::1%{index}") == index
    assert local.interface_of("::1") == 0
    assert not provider.covers("fe80::1%lo")


# --- whois -------------------------------------------------------------------


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize(
    ("listen_on", "connect_to"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("::1", "::1", marks=with_ipv6),
        pytest.param("::", "127.0.0.1", marks=with_ipv6, id="a v4 caller of a v6 socket"),
        pytest.param("127.0.0.1", "::ffff:127.0.0.1", marks=with_ipv6, id="a v6 socket calling v4"),
    ],
)
def test_a_caller_on_this_machine_is_the_uid_that_holds_the_socket(
    provider: LocalProvider, listen_on: str, connect_to: str
) -> None:
    with connected(listen_on, connect_to) as (_, accepted):
        assert provider.whois(link_of(accepted)) == provider.own


@pytest.mark.usefixtures("one_way")
def test_a_caller_that_has_shut_down_its_sending_side_is_nobody(provider: LocalProvider) -> None:
    with connected("127.0.0.1", "127.0.0.1") as (client, accepted):
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        assert provider.whois(link_of(accepted)) is None


@pytest.mark.usefixtures("one_way")
def test_a_caller_that_has_closed_is_nobody_though_its_row_shows_uid_0(provider: LocalProvider) -> None:
    with connected("127.0.0.1", "127.0.0.1") as (client, accepted):
        link = link_of(accepted)
        client.close()
        assert accepted.recv(1) == b""
        left = [row for row in _rows_of(link) if row.inode == 0]
        assert [row.uid for row in left] == [0]
        assert provider.whois(link) is None


def _rows_of(link: Link) -> list[SocketRow]:
    ends = ((LOOPBACK, link.remote.port), (LOOPBACK, link.local.port))
    try:
        return sockdiag.lookup(*ends)
    except OSError:
        return [row for row in procnet.read() if (row.local, row.remote) == ends]


@pytest.mark.usefixtures("one_way")
def test_a_connection_that_is_not_yet_accepted_is_held_by_nobody(provider: LocalProvider) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        assert provider.whois(link_of(client)) is None


@pytest.mark.usefixtures("one_way")
def test_a_connection_that_does_not_exist_is_nobody_even_where_somebody_listens(
    provider: LocalProvider,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = Endpoint("127.0.0.1", server.getsockname()[1])
        assert provider.whois(Link(Endpoint("127.0.0.1", 1), listening)) is None


@as_root
@pytest.mark.usefixtures("one_way")
def test_another_users_connection_is_that_users(provider: LocalProvider) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"caller = socket.create_connection(('127.0.0.1', {port})); said = os.getuid()"
        with another_user(script) as said, closing(server.accept()[0]) as accepted:
            assert said == str(NOBODY)
            found = provider.whois(link_of(accepted))
    assert found is not None
    assert (found.owner, found.user) == (f"local:{NOBODY}", local.user_name(NOBODY))


@pytest.mark.parametrize(
    "link",
    [
        Link(Endpoint("", 8390), Endpoint("", 1)),
        Link(Endpoint("127.0.0.1", 8390), Endpoint("not-an-address", 1)),
        Link(Endpoint("not-an-address", 8390), Endpoint("127.0.0.1", 1)),
        Link(Endpoint("127.0.0.1", 8390), Endpoint("198.51.100.1", 50000)),
        Link(Endpoint("127.0.0.1", 8390), Endpoint("::1", 50000)),
        Link(Endpoint("127.0.0.1", 0), Endpoint("127.0.0.1", 0)),
        Link(Endpoint("127.0.0.1", 8390), Endpoint("127.0.0.1", -1)),
        Link(Endpoint("127.0.0.1", 1 << 20), Endpoint("127.0.0.1", 50000)),
    ],
)
def test_an_impossible_connection_is_nobody(provider: LocalProvider, link: Link) -> None:
    assert provider.whois(link) is None


def test_garbage_from_both_interfaces_is_nobody(
    monkeypatch: pytest.MonkeyPatch, provider: LocalProvider
) -> None:
    def garbage(*_: object) -> list[SocketRow]:
        raise ValueError("garbage")

    monkeypatch.setattr(sockdiag, "_ask", garbage)
    monkeypatch.setattr(procnet, "read", garbage)
    with connected("127.0.0.1", "127.0.0.1") as (_, accepted):
        assert provider.whois(link_of(accepted)) is None
        assert provider.confirms(link_of(accepted).local) is None


def test_the_uid_that_stands_for_unknown_ones_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "stand_in_uid", os.getuid)
    with connected("127.0.0.1", "127.0.0.1") as (_, accepted):
        assert LocalProvider().whois(link_of(accepted)) is None


def _proc(folder: Path, uid_map: str, overflow: str) -> Path:
    (folder / "self").mkdir()
    (folder / "sys" / "kernel").mkdir(parents=True)
    (folder / "self" / "uid_map").write_text(uid_map)
    (folder / "sys" / "kernel" / "overflowuid").write_text(overflow)
    return folder


def test_a_namespace_that_knows_every_uid_has_no_stand_in(tmp_path: Path) -> None:
    assert local.stand_in_uid(_proc(tmp_path, "         0          0 4294967295\n", "65534\n")) is None


@pytest.mark.parametrize("uid_map", ["0 1000 1\n", "0 0 1000\n1000 0 10\n", ""])
def test_a_namespace_that_knows_some_uids_has_one(tmp_path: Path, uid_map: str) -> None:
    assert local.stand_in_uid(_proc(tmp_path, uid_map, "60001\n")) == 60001


def test_where_nothing_can_be_read_the_usual_one_is_assumed(tmp_path: Path) -> None:
    assert local.stand_in_uid(tmp_path) == NOBODY
    assert local.stand_in_uid(_proc(tmp_path, "garbage", "garbage")) == NOBODY


# --- confirms ----------------------------------------------------------------


@pytest.mark.usefixtures("one_way")
@pytest.mark.parametrize(
    ("listen_on", "destination"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("::1", "::1", marks=with_ipv6),
        pytest.param("::", "::1", marks=with_ipv6),
        pytest.param("::", "127.0.0.1", marks=with_ipv6),
    ],
)
def test_a_listener_on_this_machine_is_the_uid_that_holds_it(
    provider: LocalProvider, listen_on: str, destination: str
) -> None:
    with connected(listen_on, destination) as (_, accepted):
        port = accepted.getsockname()[1]
        assert provider.confirms(Endpoint(destination, port)) == provider.own


@pytest.mark.usefixtures("one_way")
def test_nobody_is_confirmed_where_nobody_listens(provider: LocalProvider) -> None:
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        assert provider.confirms(Endpoint("127.0.0.2", port)) == provider.own
        assert provider.confirms(Endpoint("127.0.0.3", port)) is None
    assert provider.confirms(Endpoint("127.0.0.2", port)) is None


@pytest.mark.parametrize(
    "destination",
    [
        Endpoint("198.51.100.1", 8390),
        Endpoint("somewhere", 8390),
        Endpoint("127.0.0.1", 0),
        Endpoint("127.0.0.1", 65536),
        Endpoint("127.0.0.1", -8390),
    ],
)
def test_an_impossible_destination_is_not_confirmed(provider: LocalProvider, destination: Endpoint) -> None:
    assert provider.confirms(destination) is None


@as_root
@pytest.mark.usefixtures("one_way")
def test_another_users_listener_is_that_users(provider: LocalProvider) -> None:
    with another_user(
        "server = socket.create_server(('127.0.0.1', 0)); said = server.getsockname()[1]"
    ) as said:
        found = provider.confirms(Endpoint("127.0.0.1", int(said)))
    assert found is not None
    assert found.owner == f"local:{NOBODY}"


@as_root
@with_ipv6
@pytest.mark.usefixtures("one_way")
def test_a_port_that_two_users_share_is_not_confirmed(provider: LocalProvider) -> None:
    with ExitStack() as listeners:
        port = shared_port(listeners)
        assert provider.confirms(Endpoint("127.0.0.1", port)) is None


def shared_port(listeners: ExitStack) -> int:
    """A port at which another user listens over IPv6 and this one over IPv4. What is free over IPv6 may be
    somebody else's over IPv4: then it is another one."""
    other = "server = socket.create_server(('::', 0), family=socket.AF_INET6); said = server.getsockname()[1]"
    for _ in range(TRIES):
        with ExitStack() as both:
            port = int(both.enter_context(another_user(other)))
            try:
                both.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            listeners.push(both.pop_all())
            return port
    raise AssertionError(f"of {TRIES} ports none was free over IPv4")


@pytest.mark.parametrize("netlink", [True, False])
def test_a_listener_of_another_uid_in_the_list_spoils_it(
    monkeypatch: pytest.MonkeyPatch, provider: LocalProvider, netlink: bool
) -> None:
    mine = SocketRow((LOOPBACK, 8390), (bytes(4), 0), LISTEN, 1000, 7)
    theirs = SocketRow((bytes(4), 8390), (bytes(4), 0), LISTEN, 1001, 8)
    connection = SocketRow((LOOPBACK, 8390), (LOOPBACK, 50000), ESTABLISHED, 1002, 9)
    rows = [mine, theirs]

    def asked(_port: int) -> list[SocketRow]:
        return rows

    monkeypatch.setattr(sockdiag, "listeners", asked if netlink else _absent)
    monkeypatch.setattr(procnet, "read", lambda: [*rows, connection])
    assert provider.confirms(Endpoint("127.0.0.1", 8390)) is None
    rows.remove(theirs)
    found = provider.confirms(Endpoint("127.0.0.1", 8390))
    assert found is not None
    assert found.owner == "local:1000"
