"""``tdx serve`` with sockets that were opened for it."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.commands import COMMAND, PATIENCE, Tdx
from support.processes import reserve_port
from support.spaces import needs
from support.supervisor import activated
from support.wire import head


@contextmanager
def serving(tdx: Tdx, tmp_path: Path, sockets: list[socket.socket], *flags: str) -> Iterator[list[str]]:
    """The lines that a receiver with these sockets prints; it must end well."""
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (tmp_path / "log").open("wb") as log:
        process = activated(
            [*COMMAND, "serve", "--dir", str(folder), *flags],
            sockets,
            tdx.env,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        yield [process.stdout.readline().decode().strip() for _ in sockets]
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (tmp_path / "log").read_text()


def put(port: int, name: str, content: bytes, host: str = "127.0.0.1") -> int:
    request = urllib.request.Request(f"http://{host}:{port}/files/{name}", content, method="PUT")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        request, timeout=PATIENCE
    ) as answer:
        return int(answer.status)


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_sockets_that_were_passed_are_taken_and_no_others(tdx: Tdx, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        reserve_port() as other,
    ):
        ports = [each.getsockname()[1] for each in (one, two)]
        free = other.getsockname()[1]
        with serving(tdx, tmp_path, [one, two], "--listen", f"127.0.0.1:{free}") as lines:
            assert lines == [f"listening 127.0.0.1:{port}" for port in ports]
            for port in ports:
                assert put(port, f"f{port}", b"content") == 201
            with socket.socket() as caller:
                assert caller.connect_ex(("127.0.0.1", free)) != 0
    assert sorted(path.name for path in (tmp_path / "inbox").glob("f*")) == sorted(
        f"f{port}" for port in ports
    )


def test_who_calls_before_the_receiver_is_there_is_served_and_between_two_as_well(
    tdx: Tdx, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for number in range(2):
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.settimeout(PATIENCE)
                caller.sendall(head("PUT", f"/files/{number}", {"Content-Length": 2}) + b"hi")
                with serving(tdx, tmp_path, [listener]):
                    assert caller.recv(4096).startswith(b"HTTP/1.1 201")


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on loopback")
def test_one_socket_for_every_address_of_both_families_knows_this_user_on_loopback(
    tdx: Tdx, tmp_path: Path
) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with serving(tdx, tmp_path, [listener]) as lines:
            assert lines == [f"listening [::]:{port}"]
            assert put(port, "four", b"4") == 201
            assert put(port, "six", b"6", "[::1]") == 201


def test_a_socket_that_is_none_of_tcp_is_78(tdx: Tdx, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        process = activated(
            [*COMMAND, "serve", "--dir", str(tmp_path / "inbox")],
            [listener],
            tdx.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (78, b"")
    assert err == (
        b"tdx: descriptor 3 (tdx.socket), which systemd passed, is no listening TCP socket; "
        b"the socket unit needs ListenStream=HOST:PORT and Accept=no\n"
    )


def test_systemds_own_activation_starts_it_with_the_first_call(tdx: Tdx, tmp_path: Path) -> None:
    needs("systemd-socket-activate")
    (tmp_path / "inbox").mkdir(mode=0o700)
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
    passed = [part for name in ("TDX_STATE_DIR", "PYTHONPATH") for part in ("-E", name) if name in tdx.env]
    process = subprocess.Popen(
        [
            *("systemd-socket-activate", "-l", f"127.0.0.1:{port}", *passed),
            *(*COMMAND, "serve", "--dir", str(tmp_path / "inbox")),
        ],
        env=tdx.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert put(port, "f", b"content") == 201
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, f"listening 127.0.0.1:{port}\n".encode()), err
