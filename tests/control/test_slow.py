"""Callers that never finish what they began: each is given up, whoever else calls is served meanwhile, and
nothing of it stays open."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.devices import introduce
from support.processes import wait_until
from support.receiving import RunningReceiver, running
from support.wire import PATIENCE, Wire, head
from tdx.identity.tls import TlsIdentities
from tdx.policy.admission import Limits

LIMIT = 0.6
OF_AN_UPLOAD = 3
"""Descriptors."""

QUICK = Limits(head_timeout=LIMIT, idle_timeout=LIMIT, stall_timeout=LIMIT, min_body_rate=1 << 20)
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path, limits=QUICK) as started:
        yield started


@contextmanager
def nothing_stays(receiver: RunningReceiver) -> Iterator[None]:
    """After the block every connection ends by itself, and with it every descriptor; an upload that can be
    gone on with keeps its own for a while."""
    assert receiver.request("GET", "/v1/hello").status == 200
    receiver.is_quiet()
    before = receiver.open_files()
    yield
    receiver.is_quiet()
    most = before + OF_AN_UPLOAD * len(receiver.running.sessions)
    wait_until(lambda: receiver.open_files() <= most, "every descriptor is closed")


def trickle(wire: Wire, drop: bytes) -> None:
    """Send a drop at a time until something comes back, or nobody is there any more."""
    wire.sock.settimeout(0.02)

    def over() -> bool:
        try:
            wire.sock.sendall(drop)
            wire.sock.recv(1, socket.MSG_PEEK)
            return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    wait_until(over, "the slow caller is given up")
    wire.sock.settimeout(PATIENCE)


BEGINNINGS = {
    "a method": (b"", b"P"),
    "a target": (b"GET /", b"a"),
    "a field": (b"GET /v1/hello HTTP/1.1\r\nX: ", b"y"),
    "fields": (b"GET /v1/hello HTTP/1.1\r\n", b"X: y\r\n"),
    "a body": (head("PUT", "/files/f", {"Content-Length": 1 << 40}), b"x"),
    "a range": (
        head("PUT", "/files/f", {"Content-Range": "bytes 0-9999/10000", "Content-Length": 10000}),
        b"x",
    ),
    "a chunk": (head("PUT", "/files/f", CHUNKED) + b"ffff\r\n", b"x"),
    "a size": (head("PUT", "/files/f", CHUNKED), b"0"),
    "an extension": (head("PUT", "/files/f", CHUNKED) + b"1;", b"x"),
    "small chunks": (head("PUT", "/files/f", CHUNKED), b"1\r\nx\r\n"),
    "a trailer": (head("PUT", "/files/f", CHUNKED) + b"0\r\nX: ", b"y"),
    "trailers": (head("PUT", "/files/f", CHUNKED) + b"0\r\n", b"X: y\r\n"),
    "a bundle": (
        head("POST", "/files", {**CHUNKED, "Content-Type": "application/vnd.tdx.bundle"}),
        b"1\r\n\0\r\n",
    ),
    "a small body": (head("POST", "/files/f", {"Content-Length": 100, "Upload-Complete": "?0"}), b"x"),
}


@pytest.mark.parametrize(("begun", "drop"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_what_comes_in_drops_is_given_up_and_nothing_is_published(
    receiver: RunningReceiver, begun: bytes, drop: bytes
) -> None:
    with nothing_stays(receiver), receiver.connect() as wire:
        wire.send(begun)
        trickle(wire, drop)
    assert receiver.visible() == {}
    assert receiver.request("PUT", "/files/after", b"it").status == 201


def test_who_never_reads_its_answers_is_given_up(receiver: RunningReceiver) -> None:
    many = head("GET", "/v1/hello") * 1000
    with nothing_stays(receiver), receiver.connect() as wire:
        wire.sock.settimeout(0.05)

        def given_up() -> bool:
            try:
                wire.sock.send(many)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return False

        wait_until(given_up, "who does not read is given up")


def test_who_never_reads_a_refusal_is_given_up(receiver: RunningReceiver) -> None:
    with nothing_stays(receiver), receiver.connect() as wire:
        wire.send(head("PUT", "/files/f", {"Content-Length": 1 << 40, "Host": "evil.example"}))
        with suppress(ConnectionError):
            for _ in range(1000):
                wire.send(bytes(1 << 16))
        receiver.is_quiet()
    assert receiver.visible() == {}


@pytest.mark.parametrize("stop", range(3), ids=["hello", "certificate", "request"])
@pytest.mark.parametrize("cut", [1, 5, 100, -1])
def test_a_handshake_or_what_follows_it_that_stops_anywhere_is_given_up(
    receiver: RunningReceiver, tmp_path: Path, stop: int, cut: int
) -> None:
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    with nothing_stays(receiver), receiver.connect() as wire, suppress(ConnectionError):
        shake(wire.sock, state, stop, cut)
        while wire.sock.recv(1 << 16):
            pass
    assert receiver.request("PUT", "/files/after", b"it").status == 201


def shake(sock: socket.socket, state: Path, stop: int, cut: int) -> None:
    """A paired device's TLS up to its flight number ``stop``, which ends before byte ``cut``."""
    devices = TlsIdentities(state)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = devices.client_context(devices.trust.entries()[0]).wrap_bio(incoming, outgoing)
    for flight in range(stop + 1):
        while flight < 2:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    break
                if not (answer := sock.recv(1 << 16)):
                    return  # a machine so slow that it has been given up already
                incoming.write(answer)
        if flight == 2:
            tls.write(head("PUT", "/files/f", {"Content-Length": 1000}) + b"x")
        said = outgoing.read()
        sock.sendall(said[:cut] if flight == stop else said)


def test_many_who_stand_still_or_knock_do_not_keep_who_is_in_from_being_served(tmp_path: Path) -> None:
    limits = Limits(max_connections_per_owner=8, max_connections=12)
    with running(tmp_path, limits=limits) as receiver:
        with nothing_stays(receiver), ExitStack() as stack:
            good = stack.enter_context(receiver.connect())
            assert good.request("GET", "/v1/hello").status == 200
            slow = [stack.enter_context(receiver.connect()) for _ in range(7)]
            for number, wire in enumerate(slow):
                wire.send(head("PUT", f"/files/slow{number}", {"Content-Length": 1 << 20}) + b"x")
            receiver.has_bodies(7)
            knocking = [stack.enter_context(receiver.connect()) for _ in range(20)]
            for number in range(20):
                assert good.request("PUT", f"/files/quick{number}", b"it").status == 201
            assert {wire.sock.recv(12) for wire in knocking} <= {b"HTTP/1.1 503", b""}
        assert sorted(receiver.visible()) == sorted(f"quick{number}" for number in range(20))
