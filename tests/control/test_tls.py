"""Pushing to a paired device, and who is kept out, over real TLS."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import socket
import ssl
from pathlib import Path

import pytest

from support.datakit import pattern
from support.devices import introduce, trust
from support.processes import wait_until
from support.receiving import RunningReceiver, in_background, push, running
from support.vouching import Vouching
from support.wire import head
from tdx.control import callers, conversations, messages
from tdx.control.connection import Connection
from tdx.control.progress import Tally
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.control.wire import PlainWire, TlsWire
from tdx.errors import ConnectionLost, Forbidden, TlsFailed, Unreachable
from tdx.identity.tls import TlsIdentities
from tdx.model import Outcome
from tdx.policy.admission import Limits
from tdx.policy.flood import BURST
from tdx.policy.rules import Policy, Rule

EXTENT = 4 << 20
NAS = Peer("nas")


def options(state: Path, retries: int = 2) -> SenderOptions:
    return SenderOptions(state=state, retries=retries, stall_timeout=10.0)


@pytest.fixture
def sender(receiver: RunningReceiver, tmp_path: Path) -> Path:
    """The state directory of a sender that is paired with the receiver, which it calls ``nas``."""
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    return state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(3 * EXTENT + 12345))
    return path


@pytest.mark.parametrize("size", [0, 1, 65537, EXTENT, 3 * EXTENT + 12345])
@pytest.mark.parametrize("pump", ["auto", "sendfile", "buffered"])
def test_a_file_arrives_whole_at_a_paired_device(
    receiver: RunningReceiver, sender: Path, tmp_path: Path, size: int, pump: str
) -> None:
    path = tmp_path / "f"
    path.write_bytes(pattern(size))
    result = push(NAS, path, sender, sender=options(sender), pump=pump)
    assert (result.outcome, result.size) == (Outcome.PUBLISHED, size)
    assert receiver.visible() == {"f": pattern(size)}
    assert result.root is not None


@pytest.mark.parametrize("pump", ["splice", "buffered"])
def test_whichever_way_the_receiver_is_told_to_receive(tmp_path: Path, source: Path, pump: str) -> None:
    state = tmp_path / "sender"
    with running(tmp_path, pump=pump) as receiver:
        introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
        push(NAS, source, state, sender=options(state), streams=3)
        assert receiver.visible() == {"disk.img": source.read_bytes()}


def test_the_receiver_knows_the_device_by_its_key_and_the_name_it_gave_it(
    receiver: RunningReceiver, sender: Path
) -> None:
    with secured(receiver, sender) as wire:
        wire.sendall(head("GET", "/v1/hello", {"Host": "whatever-the-sender-calls-it"}))
        answer = wire.recv(65536)
    key = TlsIdentities(sender).device.key
    assert f'"owner":"tls:{key}"'.encode() in answer
    assert b'"node":"laptop","provider":"tls"' in answer


def test_a_paired_device_is_never_spoken_to_in_plain_even_where_plain_would_do(
    receiver: RunningReceiver, sender: Path, source: Path
) -> None:
    push(receiver.peer, source, sender, sender=options(sender))
    key = TlsIdentities(sender).device.key
    assert receiver.running.store.used(owner=f"tls:{key}") == source.stat().st_size  # type: ignore[arg-type]


def test_two_devices_are_two_owners(receiver: RunningReceiver, sender: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trust(other, "nas", receiver.state, f"127.0.0.1:{receiver.port}")
    trust(receiver.state, "desk", other)
    for state in (sender, other):
        path = tmp_path / f"from-{state.name}"
        path.write_bytes(b"content")
        push(NAS, path, state, sender=options(state))
    uploads = receiver.metrics.uploads.value(("tdx", "published"))
    assert (uploads, sorted(receiver.visible())) == (2, ["from-other", "from-sender"])


def test_a_dropped_connection_is_made_again(
    receiver: RunningReceiver, sender: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally()
    slow = SenderOptions(state=sender, limit_rate=8 << 20, stall_timeout=10.0)
    with in_background(lambda: push(NAS, source, sender, tally=tally, sender=slow)) as pushing:
        wait_until(lambda: tally.sent >= EXTENT, "an extent was sent")
        receiver.restart()
        assert pushing.result().outcome is Outcome.PUBLISHED
    assert receiver.visible() == {"disk.img": source.read_bytes()}
    assert tally.retries > 0


def test_an_upload_of_other_clients_is_announced_and_goes_on_over_tls(
    receiver: RunningReceiver, sender: Path
) -> None:
    content = pattern(EXTENT + 1000)
    fields = {"Upload-Draft-Interop-Version": 8, "Upload-Complete": "?1"}
    with secured(receiver, sender) as wire:
        wire.sendall(head("PUT", "/files/f", {**fields, "Content-Length": len(content)}))
        announced = re.match(rb"HTTP/1.1 104 (?:.*\r\n)*Location: (\S+)\r\n", wire.recv(65536))
        assert announced
        wire.sendall(content[:EXTENT])
        receiver.has_received(EXTENT)
    receiver.has_bodies(0)
    target = announced[1].decode()
    append = {**fields, "Content-Type": "application/partial-upload", "Upload-Offset": EXTENT}
    with secured(receiver, sender) as wire:
        wire.sendall(head("HEAD", target))
        assert f"Upload-Offset: {EXTENT}\r\n".encode() in wire.recv(65536)
        wire.sendall(head("PATCH", target, {**append, "Content-Length": 1000}) + content[EXTENT:])
        assert wire.recv(65536).startswith(b"HTTP/1.1 201 ")
    assert receiver.visible() == {"f": content}


def test_an_address_that_has_become_another_machines_does_not_hide_the_one_that_is_right(
    receiver: RunningReceiver, sender: Path, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with running(tmp_path / "other") as other:
        addresses = (f"127.0.0.1:{other.port}", f"127.0.0.1:{receiver.port}")
        trust(sender, "nas", receiver.state, *addresses)
        push(NAS, source, sender, sender=options(sender))
        assert (sorted(receiver.visible()), other.visible()) == (["disk.img"], {})


class TestKeptOut:
    def check(self, receiver: RunningReceiver, source: Path, state: Path, reason: str) -> str:
        with pytest.raises(Forbidden, match=reason) as caught:
            push(NAS, source, state, sender=options(state))
        receiver.is_quiet()
        assert (receiver.visible(), receiver.staged()) == ({}, [])
        assert receiver.metrics.received_bytes.value(("tdx",)) == 0
        return str(caught.value)

    def test_a_device_that_the_receiver_does_not_know(
        self, receiver: RunningReceiver, sender: Path, source: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        TlsIdentities(receiver.state).trust.remove("laptop")
        with caplog.at_level(logging.WARNING, "tdx.audit"):
            self.check(receiver, source, sender, "does not know this device's key.*tdx pair")
        assert receiver.refusals() == {("forbidden",): 1}
        (line,) = [record.getMessage() for record in caplog.records if record.name == "tdx.audit"]
        assert line.startswith("refused a TLS connection from 127.0.0.1: ")

    def test_a_receiver_with_the_right_name_and_the_wrong_key(
        self, receiver: RunningReceiver, sender: Path, source: Path, tmp_path: Path
    ) -> None:
        TlsIdentities(sender).trust.remove("nas")
        trust(sender, "nas", tmp_path / "the real one", f"127.0.0.1:{receiver.port}")
        self.check(receiver, source, sender, "shows a key that was not paired")

    def test_a_device_that_a_rule_refuses(
        self, receiver: RunningReceiver, sender: Path, source: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.running.policy = Policy([Rule("no-laptops", allow=False, node="laptop")])
        self.check(receiver, source, sender, "rule `no-laptops` refuses laptop")
        assert any("rule `no-laptops`" in record.getMessage() for record in caplog.records)

    def test_a_name_that_leads_to_somebody_else_gets_no_byte(
        self,
        receiver: RunningReceiver,
        sender: Path,
        source: Path,
        tmp_path: Path,
    ) -> None:
        (tmp_path / "thief").mkdir()
        with running(tmp_path / "thief") as thief:
            TlsIdentities(sender).trust.remove("nas")
            trust(sender, "nas", receiver.state, f"localhost:{thief.port}")
            self.check(thief, source, sender, "shows a key that was not paired")


@pytest.mark.parametrize("size", [EXTENT // 2, 3 * EXTENT + 12345])
def test_a_device_whose_key_is_removed_while_it_sends_is_cut_off(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    source, state = tmp_path / "disk.img", tmp_path / "sender"
    source.write_bytes(pattern(size))
    with running(tmp_path, limits=Limits(recheck_interval=0.05)) as receiver:
        introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
        tally = Tally()
        slow = SenderOptions(state=state, limit_rate=size / 20, stall_timeout=10.0)
        with in_background(lambda: push(NAS, source, state, sender=slow, tally=tally)) as pushing:
            wait_until(lambda: receiver.metrics.received_bytes.value(("tdx",)), "bytes arrive")
            TlsIdentities(receiver.state).trust.remove("laptop")
            with pytest.raises(Forbidden, match=r"rule `identified`|does not know this device's key"):
                pushing.result()
        receiver.is_quiet()
        assert receiver.visible() == {}
        assert any(record.name == "tdx.audit" for record in caplog.records)


def test_a_connection_that_is_open_when_its_key_is_removed_serves_no_further_request(
    receiver: RunningReceiver, sender: Path
) -> None:
    with secured(receiver, sender) as wire:
        wire.sendall(head("GET", "/v1/hello"))
        assert wire.recv(65536).startswith(b"HTTP/1.1 200 ")
        TlsIdentities(receiver.state).trust.remove("laptop")
        wire.sendall(head("GET", "/v1/hello"))
        answer = wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"does not trust this device's key any more" in answer


@pytest.mark.parametrize("removed", [True, False])
def test_a_file_whose_sender_is_removed_before_its_last_byte_is_not_published(
    receiver: RunningReceiver, sender: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    monkeypatch.setattr(messages, "FRESH_SECONDS", 0.0)
    with secured(receiver, sender) as wire:
        wire.sendall(head("PUT", "/files/f", {"Content-Length": 10}) + b"first")
        wait_until(receiver.staged, "the upload is there")
        if removed:
            TlsIdentities(receiver.state).trust.remove("laptop")
        wire.sendall(b"other")
        answer = wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 403 " if removed else b"HTTP/1.1 201 ")
    receiver.is_quiet()
    assert receiver.visible() == ({} if removed else {"f": b"firstother"})


def test_many_strangers_leave_room_for_those_who_are_known(tmp_path: Path) -> None:
    provider = Vouching(None)
    with (
        running(tmp_path, limits=Limits(max_strangers=1), providers=[provider]) as receiver,
        receiver.connect(),
    ):
        wait_until(lambda: provider.asked, "the first stranger was looked at")
        with receiver.connect() as second:
            assert second.answer().status == 503
        provider.owner = "local:1"
        assert receiver.request("GET", "/v1/hello").status == 200


def test_those_whom_the_rules_refuse_leave_room_as_well(tmp_path: Path) -> None:
    provider = Vouching("local:2", own=False)
    with (
        running(tmp_path, limits=Limits(max_strangers=1), providers=[provider]) as receiver,
        receiver.connect() as first,
    ):
        assert first.request("GET", "/v1/hello").status == 403
        with receiver.connect() as second:
            assert second.answer().status == 503
        provider.owner, provider.own = "local:1", True
        assert receiver.request("GET", "/v1/hello").status == 200


def test_those_who_are_turned_away_hold_no_place_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "FIRST_BYTE_SECONDS", 3600.0)
    provider = Vouching(None)
    limits = Limits(max_connections=2, max_strangers=1)
    with (
        running(tmp_path, limits=limits, providers=[provider]) as receiver,
        receiver.connect(),
        receiver.connect(),
    ):
        wait_until(lambda: len(provider.asked) == 2, "both strangers were looked at")
        provider.owner = "local:1"
        wait_until(lambda: receiver.request("GET", "/v1/hello").status == 200, "there is a place")


def test_no_more_than_a_few_are_answered_at_once_that_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "TURNED_AWAY_AT_ONCE", 1)
    with (
        running(tmp_path, limits=Limits(max_strangers=0), providers=[Vouching(None)]) as receiver,
        receiver.connect() as one,
        receiver.connect() as other,
    ):
        heard = sorted(wire.sock.recv(12) for wire in (one, other))
        assert heard == [b"", b"HTTP/1.1 503"]
        assert receiver.refusals() == {("busy",): 2}


def test_a_device_for_which_there_is_no_room_tries_again(tmp_path: Path, source: Path) -> None:
    state = tmp_path / "sender"
    with running(tmp_path, limits=Limits(max_connections=1)) as receiver:
        introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
        with receiver.connect() as other:
            assert other.request("GET", "/v1/hello").status == 200
            with in_background(lambda: push(NAS, source, state, sender=options(state, 50))) as pushing:
                wait_until(lambda: receiver.refusals().get(("busy",), 0) > 1, "it was turned away twice")
                other.close()
                assert pushing.result().outcome is Outcome.PUBLISHED
    assert receiver.visible() == {"disk.img": source.read_bytes()}


def test_a_flood_of_refusals_leaves_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path, providers=[Vouching(None)]) as receiver, receiver.connect() as wire:
        for _ in range(3 * BURST):
            assert wire.request("GET", "/v1/hello").status == 403
        assert receiver.refusals() == {("forbidden",): 3 * BURST}
    lines = [record for record in caplog.records if record.name == "tdx.audit"]
    assert BURST <= len(lines) < 2 * BURST


class TestGarbage:
    def test_tls_garbage_gets_an_alert_and_a_line_in_the_log(
        self, receiver: RunningReceiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_connection(("127.0.0.1", receiver.port), 10) as wire:
            wire.sendall(b"\x16\x03\x01\x00\x05garbage" + bytes(1000))
            assert wire.recv(1 << 16)[:1] == b"\x15"
            wire.shutdown(socket.SHUT_WR)
            while wire.recv(1 << 16):
                pass
        receiver.is_quiet()
        assert receiver.refusals() == {("tls",): 1}
        assert any("a TLS connection from 127.0.0.1" in record.getMessage() for record in caplog.records)

    def test_an_older_tls_is_refused(self, receiver: RunningReceiver) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", receiver.port), 10) as wire,
            pytest.raises(ssl.SSLError),
        ):
            context.wrap_socket(wire).close()
        receiver.is_quiet()
        assert receiver.refusals() == {("tls",): 1}

    def test_a_caller_without_a_certificate_is_refused(self, receiver: RunningReceiver) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", receiver.port), 10) as wire:
            secure = context.wrap_socket(wire)
            with pytest.raises(ssl.SSLError, match="certificate required"):
                secure.recv(1)
            secure.close()
        receiver.is_quiet()
        assert receiver.refusals() == {("forbidden",): 1}

    def test_a_caller_that_resets_before_its_handshake_leaves_nothing_open(
        self, receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrapped: list[socket.socket] = []

        def gone(wire: TlsWire | PlainWire, *rest: object) -> Connection:
            if isinstance(wire, PlainWire):
                return Connection(wire, receiver.running.workers.bodies)
            wrapped.append(wire.sock)
            raise OSError(errno.ENOTCONN, "not connected")

        monkeypatch.setattr(callers, "Connection", gone)
        with socket.create_connection(("127.0.0.1", receiver.port), 10) as wire:
            wire.sendall(b"\x16\x03\x01")
            with contextlib.suppress(ConnectionResetError):
                assert wire.recv(1) == b""
        receiver.is_quiet()
        assert [sock.fileno() for sock in wrapped] == [-1]

    def test_a_handshake_that_does_not_go_on_is_given_up(self, tmp_path: Path) -> None:
        with (
            running(tmp_path, limits=Limits(head_timeout=0.2)) as receiver,
            socket.create_connection(("127.0.0.1", receiver.port), 10) as wire,
        ):
            wire.sendall(b"\x16\x03\x01")
            assert wire.recv(1) == b""
            wire.shutdown(socket.SHUT_WR)
            receiver.is_quiet()

    def test_a_peer_that_speaks_no_tls_is_a_protocol_error(
        self, receiver: RunningReceiver, sender: Path, source: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            trust(sender, "nas", receiver.state, f"127.0.0.1:{listener.getsockname()[1]}")

            def answer() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    with contextlib.suppress(OSError):  # the sender has gone already
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(65536)

            with (
                in_background(answer) as answered,
                pytest.raises(TlsFailed, match=r"TLS with nas \(127.0.0.1 port \d+\) failed"),
            ):
                push(NAS, source, sender, sender=options(sender, retries=0))
            answered.result()

    def test_a_peer_that_is_not_there(self, receiver: RunningReceiver, sender: Path, source: Path) -> None:
        receiver.stop()
        with pytest.raises(Unreachable):
            push(NAS, source, sender, sender=options(sender))

    def test_a_peer_that_hangs_up_in_the_handshake_is_tried_again(
        self, receiver: RunningReceiver, sender: Path, source: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            trust(sender, "nas", receiver.state, f"127.0.0.1:{listener.getsockname()[1]}")

            def hang_up() -> None:
                for _ in range(2):
                    listener.accept()[0].close()

            with in_background(hang_up) as answered, pytest.raises(ConnectionLost):
                push(NAS, source, sender, sender=options(sender, retries=1))
            answered.result()


def secured(receiver: RunningReceiver, state: Path) -> ssl.SSLSocket:
    """A connection as the device of ``state`` makes it."""
    devices = TlsIdentities(state)
    (nas,) = devices.trust.entries()
    return devices.client_context(nas).wrap_socket(socket.create_connection(("127.0.0.1", receiver.port), 10))
