"""Ranges of an upload beneath TLS: when they are sealed, what is refused, and what was damaged."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.datakit import pattern
from support.devices import introduce
from support.processes import wait_until
from support.receiving import RunningReceiver, in_background, push, push_stream
from support.wire import Answer, Wire, head
from tdx.control import client, connection, messages, sending
from tdx.control.progress import Tally
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.data.seal import SEGMENT, TAG, SealedBody, SealWriter, sealed_size
from tdx.identity.tls import TlsIdentities
from tdx.integrity import digest_of
from tdx.model import Outcome
from tdx.proto.fields import SEAL, SEALED_AT_MOST, format_seal

EXTENT = 4 << 20
NAS = Peer("nas")
KEY = bytes(range(32))
CONTENT = pattern(2 * EXTENT + 12345)


@pytest.fixture
def sender(receiver: RunningReceiver, tmp_path: Path) -> Path:
    """The state directory of a sender that is paired with the receiver, which it calls ``nas``."""
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    return state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys of the sealed bodies that the receiver has begun to read."""
    keys: list[bytes] = []

    class Noted(SealedBody):
        def __init__(self, sock: socket.socket, key: bytes, *given: object, **more: object) -> None:
            keys.append(key)
            super().__init__(sock, key, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(messages, "SealedBody", Noted)
    return keys


def options(state: Path, **more: object) -> SenderOptions:
    return SenderOptions(state=state, stall_timeout=10.0, **{"retries": 2, **more})  # type: ignore[arg-type]


# --- pushes ------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 3])
def test_every_range_is_sealed_under_a_key_of_its_own(
    receiver: RunningReceiver, sender: Path, source: Path, opened: list[bytes], streams: int
) -> None:
    push(NAS, source, sender, sender=options(sender), streams=streams)
    assert receiver.visible() == {"disk.img": CONTENT}
    assert len(opened) >= streams
    assert len(set(opened)) == len(opened)
    assert {len(key) for key in opened} == {32}


def test_what_is_read_from_standard_input_is_sealed(
    receiver: RunningReceiver, sender: Path, tmp_path: Path, opened: list[bytes]
) -> None:
    (tmp_path / "input").write_bytes(content := pattern((16 << 20) + 5))
    with (tmp_path / "input").open("rb") as file:
        push_stream(NAS, file.fileno(), sender, sender=options(sender), name="stream")
    assert receiver.visible() == {"stream": content}
    assert len(set(opened)) == 2


def test_in_plain_nothing_is_sealed(
    receiver: RunningReceiver, tmp_path: Path, source: Path, opened: list[bytes]
) -> None:
    push(receiver.peer, source, tmp_path / "nobody")
    assert (receiver.visible(), opened) == ({"disk.img": CONTENT}, [])


def test_a_receiver_that_does_not_offer_it_gets_everything_in_tls(
    receiver: RunningReceiver,
    sender: Path,
    source: Path,
    opened: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "SEAL", "rot13")  # so that nothing that is offered is known
    push(NAS, source, sender, sender=options(sender))
    assert (receiver.visible(), opened) == ({"disk.img": CONTENT}, [])


def test_where_the_kernel_encrypts_nothing_is_sealed(
    receiver: RunningReceiver,
    sender: Path,
    source: Path,
    opened: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "kernel_encrypts", lambda _: True)
    push(NAS, source, sender, sender=options(sender))
    assert (receiver.visible(), opened) == ({"disk.img": CONTENT}, [])


def test_more_than_one_key_is_good_for_goes_in_tls(
    receiver: RunningReceiver,
    sender: Path,
    source: Path,
    opened: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "SEALED_AT_MOST", EXTENT)
    push(NAS, source, sender, sender=options(sender), streams=1)
    assert (receiver.visible(), opened) == ({"disk.img": CONTENT}, [])


def test_a_receiver_that_goes_away_in_the_middle_gets_the_rest_under_another_key(
    receiver: RunningReceiver, sender: Path, source: Path, opened: list[bytes]
) -> None:
    tally = Tally()
    slow = options(sender, limit_rate=8 << 20)
    with in_background(lambda: push(NAS, source, sender, tally=tally, sender=slow, streams=1)) as pushing:
        wait_until(lambda: tally.sent >= EXTENT + (1 << 20), "more than an extent was sent")
        receiver.restart()
        assert pushing.result().outcome is Outcome.PUBLISHED
    assert receiver.visible() == {"disk.img": CONTENT}
    assert tally.retries > 0
    assert len(set(opened)) == len(opened) >= 2


def test_what_was_damaged_on_its_way_is_sent_again(
    receiver: RunningReceiver,
    sender: Path,
    source: Path,
    opened: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    short_waits: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    windows = 0
    real = SealWriter._seal

    def damaged(self: SealWriter, view: memoryview) -> memoryview:
        nonlocal windows
        windows += 1
        sealed = real(self, view)
        if windows == 10:  # of the second extent
            sealed[SEGMENT + 1000] ^= 1
        return sealed

    monkeypatch.setattr(SealWriter, "_seal", damaged)
    tally = Tally()
    with caplog.at_level(logging.WARNING):
        push(NAS, source, sender, tally=tally, sender=options(sender), streams=1)
    assert receiver.visible() == {"disk.img": CONTENT}
    assert (tally.retries, len(opened)) == (1, 2)
    assert receiver.metrics.digest_failures.value() == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "127.0.0.1: what was sent was damaged on its way, or changed"


# --- by hand -----------------------------------------------------------------------


class Hand(Wire):
    """A paired device that writes its requests itself, and bodies beneath TLS."""

    def __init__(self, receiver: RunningReceiver, state: Path) -> None:
        super().__init__(receiver.port)
        devices = TlsIdentities(state)
        (nas,) = devices.trust.entries()
        self.raw = self.sock
        self.sock: ssl.SSLSocket = devices.client_context(nas).wrap_socket(self.raw)

    def beneath(self, data: bytes) -> None:
        socket.socket.sendall(self.sock, data)

    def open(self, name: str, length: int, **more: object) -> Answer:
        fields = {"Upload-Complete": "?0", "Upload-Length": length, "Tdx-Source": "s1", **more}
        return self.request("POST", f"/files/{name}", b"", fields)


@pytest.fixture
def hand(receiver: RunningReceiver, sender: Path) -> Iterator[Hand]:
    with Hand(receiver, sender) as made:
        yield made


def sealed(content: bytes, key: bytes = KEY) -> bytes:
    """As :class:`SealWriter` sends it."""
    near, far = socket.socketpair()
    with near, far, io.BytesIO() as out:
        writer = SealWriter(near, key, len(content))
        for start in range(0, len(content), SEGMENT):
            window = content[start : start + SEGMENT]
            emit, done = writer.emit_of(memoryview(window)), 0
            while done < len(window):
                done += emit(done, min(65536, len(window) - done))
                out.write(far.recv(1 << 20))
        return out.getvalue()


def range_fields(
    answer: Answer, start: int, content: bytes, length: int, **more: object
) -> Mapping[str, object]:
    """Those of a sealed range; ``more`` stands in place of them, None for none."""
    fields: dict[str, object] = {
        "Tdx-Epoch": answer.document["epoch"],
        "Content-Range": f"bytes {start}-{start + len(content) - 1}/{length}",
        "Content-Length": sealed_size(len(content)),
        "Tdx-Seal": format_seal(KEY),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return {name: value for name, value in fields.items() if value is not None}


def test_it_is_offered_over_tls_only(receiver: RunningReceiver, hand: Hand) -> None:
    assert hand.open("f", EXTENT).document["seals"] == [SEAL]
    with receiver.connect() as plain:
        fields = {"Upload-Complete": "?0", "Upload-Length": EXTENT, "Tdx-Source": "s2"}
        assert "seals" not in plain.request("POST", "/files/g", b"", fields).document


def test_sealed_ranges_and_others_follow_each_other_on_one_connection(
    receiver: RunningReceiver, hand: Hand
) -> None:
    length = len(CONTENT)
    answer = hand.open("f", length)
    target = answer.headers["location"]
    for number, start in enumerate(range(0, length, EXTENT)):
        part = CONTENT[start : start + EXTENT]
        if number == 1:
            fields = range_fields(answer, start, part, length, Tdx_Seal=None, Content_Length=len(part))
            hand.send(head("PUT", target, fields) + part)
        else:
            hand.send(head("PUT", target, range_fields(answer, start, part, length)))
            hand.beneath(sealed(part))
        assert hand.answer().status == 200
    digests = b"".join(digest_of(CONTENT[at : at + EXTENT]) for at in range(0, length, EXTENT))
    fields = {"Tdx-Epoch": answer.document["epoch"], "Upload-Length": length}
    assert hand.request("POST", target + "/commit", digests, fields).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_a_head_and_its_body_may_come_in_one_packet(hand: Hand) -> None:
    part = pattern(1000)
    answer = hand.open("f", 1000)
    hand.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    hand.send(head("PUT", answer.headers["location"], range_fields(answer, 0, part, 1000)))
    hand.beneath(sealed(part))
    hand.send(head("GET", answer.headers["location"], {"Tdx-Epoch": answer.document["epoch"]}))
    hand.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    assert hand.answer().status == 200
    assert hand.answer().document["held"] == [[0, 1000]]


def test_parts_of_an_extent_may_be_sealed_each_by_itself(hand: Hand) -> None:
    part = EXTENT // 2
    answer = hand.open("f", EXTENT)
    for start in (part, 0):
        content = pattern(part, start)
        fields = range_fields(answer, start, content, EXTENT)
        hand.send(head("PUT", answer.headers["location"], fields))
        hand.beneath(sealed(content))
        assert hand.answer().status == 200
    fields = {"Tdx-Epoch": answer.document["epoch"]}
    assert hand.request("GET", answer.headers["location"], b"", fields).document["held"] == [[0, EXTENT]]


def refused(hand: Hand, receiver: RunningReceiver, status: int, reason: str) -> None:
    """The next answer, after which nothing on this connection is read as a request."""
    answer = hand.answer()
    assert (answer.status, answer.headers.get("connection")) == (status, "close")
    assert reason in answer.detail
    assert receiver.metrics.received_bytes.value(("tdx",)) == 0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("chacha20-poly1305;key=:" + "A" * 43 + "=:", "no way to seal"),
        (SEAL, "not a Tdx-Seal"),
        (f"{SEAL};key=:AAAA:", "has 3 bytes"),
        (f"{SEAL};key=:{'A' * 43}:", "not base64"),
        (f"{SEAL};key=:{'A' * 43}=:;more", "not a Tdx-Seal"),
    ],
)
def test_a_seal_that_is_none_is_refused(
    receiver: RunningReceiver, hand: Hand, value: str, reason: str
) -> None:
    answer = hand.open("f", EXTENT)
    fields = range_fields(answer, 0, bytes(EXTENT), EXTENT, Tdx_Seal=value)
    hand.send(head("PUT", answer.headers["location"], fields))
    refused(hand, receiver, 400, reason)


def test_two_seals_are_refused(receiver: RunningReceiver, hand: Hand) -> None:
    answer = hand.open("f", EXTENT)
    raw = head("PUT", answer.headers["location"], range_fields(answer, 0, bytes(EXTENT), EXTENT))
    hand.send(raw[:-2] + f"Tdx-Seal: {format_seal(bytes(32))}\r\n\r\n".encode())
    refused(hand, receiver, 400, "")


@pytest.mark.parametrize("length", [EXTENT, sealed_size(EXTENT) - 1, sealed_size(EXTENT) + 1])
def test_the_length_on_its_way_has_a_tag_for_each_segment(
    receiver: RunningReceiver, hand: Hand, length: int
) -> None:
    answer = hand.open("f", EXTENT)
    fields = range_fields(answer, 0, bytes(EXTENT), EXTENT, Content_Length=length)
    hand.send(head("PUT", answer.headers["location"], fields))
    refused(hand, receiver, 400, "Content-Length")


@pytest.mark.parametrize(
    ("method", "target"), [("PUT", "/files/g"), ("PATCH", "{}"), ("POST", "{}/commit"), ("POST", "/files")]
)
def test_no_other_body_is_taken_sealed(
    receiver: RunningReceiver, hand: Hand, method: str, target: str
) -> None:
    answer = hand.open("f", EXTENT)
    fields = range_fields(answer, 0, bytes(16), EXTENT)
    hand.send(head(method, target.format(answer.headers["location"]), fields))
    hand.beneath(sealed(bytes(16)))
    refused(hand, receiver, 400, "only the body of a range")


def test_in_plain_a_seal_is_refused(receiver: RunningReceiver) -> None:
    with receiver.connect() as plain:
        opened = {"Upload-Complete": "?0", "Upload-Length": EXTENT, "Tdx-Source": "s2"}
        answer = plain.request("POST", "/files/g", b"", opened)
        fields = range_fields(answer, 0, bytes(EXTENT), EXTENT)
        plain.send(head("PUT", answer.headers["location"], fields))
        refusal = plain.answer()
        assert (refusal.status, refusal.headers["connection"]) == (400, "close")
        assert "only beneath TLS" in refusal.detail


def test_a_body_that_begins_within_the_record_of_its_head_is_refused(
    receiver: RunningReceiver, hand: Hand
) -> None:
    answer = hand.open("f", EXTENT)
    fields = range_fields(answer, 0, bytes(EXTENT), EXTENT)
    hand.send(head("PUT", answer.headers["location"], fields) + b"more")
    refused(hand, receiver, 400, "begins after the TLS record")


def test_one_key_is_good_for_so_much(
    receiver: RunningReceiver, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SEALED_AT_MOST < SEGMENT << 32  # or their numbers would begin anew
    monkeypatch.setattr(messages, "SEALED_AT_MOST", EXTENT - 1)
    answer = hand.open("f", EXTENT)
    fields = range_fields(answer, 0, bytes(EXTENT), EXTENT)
    hand.send(head("PUT", answer.headers["location"], fields))
    refused(hand, receiver, 400, "under one key")


@pytest.mark.parametrize(("status", "change"), [(409, {"Tdx-Epoch": 1}), (416, {"Content-Range": "wrong"})])
def test_a_refusal_reaches_the_sender_of_a_sealed_body(
    receiver: RunningReceiver, hand: Hand, status: int, change: Mapping[str, object]
) -> None:
    hand.open("f", EXTENT)
    answer = hand.open("f", EXTENT, **{"Tdx-Resume": "?1"})
    assert answer.document["epoch"] == 2
    if status == 416:
        change = {"Content-Range": f"bytes {EXTENT}-{2 * EXTENT - 1}/{EXTENT}"}
    fields = {**range_fields(answer, 0, bytes(EXTENT), EXTENT), **change}
    hand.send(head("PUT", answer.headers["location"], fields))
    with contextlib.suppress(OSError):
        hand.beneath(sealed(bytes(EXTENT)))
    refused(hand, receiver, status, "")


@pytest.mark.parametrize("at", [0, SEGMENT, SEGMENT + TAG + 5, sealed_size(2 * EXTENT) - 1])
def test_of_a_body_that_was_changed_only_whole_extents_before_it_are_held(
    receiver: RunningReceiver, hand: Hand, at: int
) -> None:
    answer = hand.open("f", 2 * EXTENT)
    content = pattern(2 * EXTENT)
    body = bytearray(sealed(content))
    body[at] ^= 0x80
    hand.send(head("PUT", answer.headers["location"], range_fields(answer, 0, content, 2 * EXTENT)))
    with contextlib.suppress(OSError):
        hand.beneath(bytes(body))
    failed = hand.answer()
    assert (failed.status, failed.problem, failed.headers["connection"]) == (400, "seal-broken", "close")
    hand.close()
    receiver.is_quiet()
    assert receiver.metrics.digest_failures.value() == 1
    (session,) = receiver.running.sessions._open.values()
    held = [(span.start, span.end) for span in session.upload.held]
    assert held == ([(0, EXTENT)] if at > sealed_size(EXTENT) else [])
    # Nothing of what could not be verified has got as far as the file.
    stored = session.upload
    view = memoryview(bytearray(SEGMENT))
    bad = at // (SEGMENT + TAG) * SEGMENT
    assert stored.read_at(view, bad) in (0, SEGMENT)
    assert bytes(view) == bytes(SEGMENT)


def test_a_body_of_an_earlier_request_is_none_of_the_next_one(
    receiver: RunningReceiver, hand: Hand, sender: Path
) -> None:
    content = pattern(EXTENT)
    answer = hand.open("f", EXTENT)
    recorded = sealed(content, os.urandom(32))  # as somebody may have kept it who saw it go by
    hand.send(head("PUT", answer.headers["location"], range_fields(answer, 0, content, EXTENT)))
    with contextlib.suppress(OSError):
        hand.beneath(recorded)
    assert hand.answer().problem == "seal-broken"
    assert receiver.metrics.digest_failures.value() == 1
    with Hand(receiver, sender) as again:
        fields = {"Tdx-Epoch": answer.document["epoch"]}
        assert again.request("GET", answer.headers["location"], b"", fields).document["held"] == []
