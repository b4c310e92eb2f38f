"""Bodies beneath TLS: what travels, what becomes of what was changed, and that TLS goes on afterwards."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from support.datakit import (
    QUICK,
    STALL,
    Background,
    Sent,
    digests_of,
    end_stream,
    pattern,
    tcp_pair,
    tls_tcp_pair,
)
from tdx.data.port import Cancel, EarlyAnswer, RawBody
from tdx.data.seal import SEGMENT, TAG, SealedBody, SealWriter, sealed_size
from tdx.data.send import WINDOW, BufferedSend, SendfileSend, send_buffer
from tdx.data.sockets import shut, to_loop, to_worker
from tdx.errors import ConnectionLost, Interrupted, SealBroken, Stalled
from tdx.integrity import cut
from tdx.model import Span

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
LENGTH = 3 * SEGMENT + 1000
"""Of a body with segments of either size."""

EXTENT = 4 << 20
STEP = SEGMENT + TAG


def seal(content: bytes, key: bytes = KEY) -> list[bytes]:
    """The segments of a body as the construction has them, by another road than ours."""
    pieces = [content[at : at + SEGMENT] for at in range(0, len(content), SEGMENT)]
    flags = [b"\0"] * (len(pieces) - 1) + [b"\1"]
    return [
        AESGCM(key).encrypt(b"\0" * 7 + struct.pack(">I", number) + flag, piece, None)
        for number, (piece, flag) in enumerate(zip(pieces, flags, strict=True))
    ]


def read_all(body: SealedBody, step: int = 1 << 20) -> bytes:
    found, buffer = bytearray(), memoryview(bytearray(step))
    while n := body.readinto(buffer):
        found += buffer[:n]
    return bytes(found)


def feed(sock: socket.socket, data: bytes, pieces: Sequence[int] = ()) -> Background:
    """Send ``data`` beneath whatever is on ``sock``, in pieces of these sizes over and over."""

    def work() -> None:
        at, turn = 0, 0
        while at < len(data):
            size = pieces[turn % len(pieces)] if pieces else len(data)
            try:
                at += socket.socket.send(sock, data[at : at + size])
            except TimeoutError:
                continue
            turn += 1

    return Background(work)


def body_of(near: socket.socket, length: int = LENGTH, key: bytes = KEY, stall: float = STALL) -> SealedBody:
    return SealedBody(near, key, length, Cancel(), stall)


def take(sock: socket.socket, size: int) -> bytes:
    """So many bytes of the TCP connection under ``sock``."""
    found = bytearray()
    while len(found) < size:
        try:
            found += socket.socket.recv(sock, size - len(found))
        except (BlockingIOError, TimeoutError):
            continue
    return bytes(found)


# --- what travels ------------------------------------------------------------------


def test_a_body_is_the_segments_that_anybody_can_compute() -> None:
    content = pattern(LENGTH)
    with tls_tcp_pair() as (near, far):
        sending = Background(
            lambda: send_buffer(near, memoryview(content), Sent().hooks(), Cancel(), STALL, KEY)
        )
        assert take(far, sealed_size(LENGTH)) == b"".join(seal(content))
        sending.join()


def test_the_first_segment_is_a_known_answer() -> None:
    # AES-256-GCM, key 00 01 .. 1f, nonce of segment 0 which is the last one, content "abc".
    with tls_tcp_pair() as (near, far):
        send_buffer(near, memoryview(b"abc"), Sent().hooks(), Cancel(), STALL, KEY)
        assert take(far, 3 + TAG).hex() == KNOWN


KNOWN = "74b4dc39b4903b1cb5a19c55217a937bff0c66"


@pytest.mark.parametrize("length", [1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 9 * SEGMENT + 5])
def test_a_body_has_a_tag_for_each_segment_begun(length: int) -> None:
    assert sealed_size(length) == sum(map(len, seal(bytes(length))))


@given(
    st.sampled_from([1, 15, SEGMENT - 1, SEGMENT, SEGMENT + 1, WINDOW, WINDOW + SEGMENT + 9, 2 * WINDOW]),
    st.lists(st.sampled_from([1000, 4096, 65536, STEP - 1, STEP, STEP + 1, 1 << 20]), min_size=1, max_size=5),
    st.sampled_from([4097, SEGMENT - 1, SEGMENT, SEGMENT + 7, 1 << 20]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_sealed_is_opened_however_it_is_cut_on_its_way(
    length: int, pieces: list[int], step: int
) -> None:
    content = pattern(length)
    with tcp_pair() as (near, far):
        feeding = feed(far, b"".join(seal(content)), pieces)
        body = body_of(near, length)
        assert (body.length, body.ended) == (length, False)
        assert read_all(body, step) == content
        assert body.ended
        feeding.join()


@pytest.mark.parametrize("size", [1, TAG + 1, 4095, 65536])
def test_a_window_goes_out_in_whatever_pieces_are_asked_for(size: int) -> None:
    content = pattern(SEGMENT + 300 if size < 4095 else LENGTH)
    with tls_tcp_pair() as (near, far):
        taking = Background(lambda: take(far, sealed_size(len(content))))
        emit = SealWriter(near, KEY, len(content)).emit_of(memoryview(content))
        done = 0
        while done < len(content):
            done += emit(done, min(size, len(content) - done))
        assert taking.join() == b"".join(seal(content))


def test_a_paced_body_is_sealed_like_any_other() -> None:
    content = pattern(LENGTH)
    seen = Sent()
    with tls_tcp_pair() as (near, far):
        taking = Background(lambda: take(far, sealed_size(LENGTH)))
        send_buffer(near, memoryview(content), seen.hooks(lambda _: 0.25), Cancel(), STALL, KEY)
        assert taking.join() == b"".join(seal(content))
    assert seen.sent == LENGTH


@pytest.mark.parametrize("pump", [SendfileSend(), BufferedSend()])
def test_extents_are_sealed_and_their_digests_are_of_the_content(
    tmp_path: Path, pump: SendfileSend | BufferedSend
) -> None:
    content = pattern(EXTENT + 77)
    (tmp_path / "source").write_bytes(content)
    seen = Sent()
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    with tls_tcp_pair() as (near, far):
        body = body_of(far, len(content))
        reading = Background(lambda: read_all(body))
        extents = list(cut(Span(0, len(content)), EXTENT))
        pump.send(near, descriptor, extents, seen.hooks(), Cancel(), STALL, KEY)
        assert reading.join() == content
    os.close(descriptor)
    assert (seen.sent, seen.hashed) == (len(content), digests_of(content, EXTENT))


def test_with_a_key_not_even_a_plain_socket_sends_anything_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(pattern(5000))
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    with tcp_pair() as (near, far):
        SendfileSend().send(near, descriptor, [Span(0, 5000)], Sent().hooks(), Cancel(), STALL, KEY)
        assert take(far, 5000 + TAG) == b"".join(seal(pattern(5000)))
    os.close(descriptor)


@pytest.mark.parametrize("sizes", [(1000, SEGMENT), (SEGMENT + 1, SEGMENT), (2 * SEGMENT, SEGMENT)])
def test_a_window_that_would_leave_a_segment_half_full_is_refused(sizes: tuple[int, int]) -> None:
    with tls_tcp_pair() as (near, _):
        writer = SealWriter(near, KEY, sizes[0] + sizes[1] - (SEGMENT if sizes[0] == 2 * SEGMENT else 0) - 1)
        with pytest.raises(ValueError, match="left of the body"):
            writer.emit_of(memoryview(bytes(sizes[0])))(0, sizes[0])


def test_a_sealed_body_is_nothing_to_splice() -> None:
    with tcp_pair() as (near, _):
        assert not isinstance(body_of(near), RawBody)


# --- beside TLS --------------------------------------------------------------------


def corked(sock: ssl.SSLSocket, *, on: bool) -> None:
    """Hold back what is written until there is enough for a packet, or no longer."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


def test_a_body_that_comes_in_one_packet_with_its_heads_record_is_left_to_be_read() -> None:
    content = pattern(500)
    with tls_tcp_pair() as (near, far):
        corked(far, on=True)
        far.sendall(b"the head")
        socket.socket.sendall(far, b"".join(seal(content)))
        far.sendall(b"the next head")
        corked(far, on=False)
        near.settimeout(STALL)
        assert near.recv(65536) == b"the head"
        assert near.pending() == 0
        to_worker(near, QUICK)
        assert read_all(body_of(near, len(content))) == content
        to_loop(near)
        near.settimeout(STALL)
        assert near.recv(65536) == b"the next head"


def test_on_one_connection_bodies_go_beneath_tls_and_through_it_in_turn() -> None:
    content = pattern(WINDOW + 5)
    hooks = Sent().hooks()

    def receive(near: ssl.SSLSocket) -> bytes:
        found = read_all(body_of(near, len(content)))
        near.settimeout(STALL)
        while len(found) < 2 * len(content):
            found += near.recv(65536)
        to_worker(near, QUICK)
        found += read_all(body_of(near, len(content), OTHER_KEY))
        near.settimeout(STALL)
        near.sendall(b"had it")
        return found

    with tls_tcp_pair() as (near, far):
        receiving = Background(lambda: receive(near))
        for key in (KEY, None, OTHER_KEY):
            to_worker(far, QUICK)
            send_buffer(far, memoryview(content), hooks, Cancel(), STALL, key)
        far.settimeout(STALL)
        assert far.recv(100) == b"had it"
        assert receiving.join() == 3 * content


def test_an_answer_that_comes_early_stops_the_sender_and_can_be_read() -> None:
    with tls_tcp_pair() as (near, far):
        far.sendall(b"no room")
        with pytest.raises(EarlyAnswer):
            send_buffer(near, memoryview(bytes(64 << 20)), Sent().hooks(), Cancel(), STALL, KEY)
        to_loop(near)
        near.settimeout(STALL)
        assert near.recv(100) == b"no room"


# --- what was changed --------------------------------------------------------------


def received(sealed: bytes, length: int = LENGTH) -> tuple[bytes, BaseException | None]:
    """What is handed out of a stream, and why no more came."""
    with tcp_pair() as (near, far):
        feeding = feed(far, sealed)

        def then_end() -> None:
            feeding.join()
            end_stream(far)

        ending = Background(then_end)
        body, found, view = body_of(near, length), bytearray(), memoryview(bytearray(1 << 20))
        end: BaseException | None = None
        # A failure must not be hidden by reading on.
        for _ in range(3):
            try:
                while n := body.readinto(view):
                    found += view[:n]
            except ConnectionLost as error:
                end = error
        ending.join()
        return bytes(found), end


@given(st.integers(0, sealed_size(LENGTH) - 1), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_no_bit_can_be_changed_and_nothing_of_its_segment_is_handed_out(at: int, bit: int) -> None:
    sealed = bytearray(b"".join(seal(pattern(LENGTH))))
    sealed[at] ^= 1 << bit
    found, end = received(bytes(sealed))
    assert isinstance(end, SealBroken)
    assert found == pattern(LENGTH)[: at // STEP * SEGMENT]


def changes() -> dict[str, Callable[[list[bytes]], tuple[list[bytes], int]]]:
    """Ways of meddling with four segments, and how many are still good."""
    content = pattern(LENGTH)
    other = seal(content, OTHER_KEY)
    not_last = AESGCM(KEY).encrypt(bytes(7) + struct.pack(">IB", 3, 0), content[3 * SEGMENT :], None)
    shorter = seal(content[: 2 * SEGMENT])
    return {
        "two that were swapped": lambda its: ([its[1], its[0], *its[2:]], 0),
        "one in place of the next": lambda its: ([its[0], its[0], *its[2:]], 1),
        "one that was left out": lambda its: ([its[0], *its[2:], bytes(STEP)], 1),
        "one of another request": lambda its: ([*its[:2], other[2], its[3]], 2),
        "all of another request": lambda _: (other, 0),
        "a last one that is none": lambda its: ([its[0], shorter[1], *its[2:]], 1),
        "one that claims to be no last one": lambda its: ([*its[:3], not_last], 3),
        "tags that were swapped": lambda its: (
            [its[0][:-TAG] + its[1][-TAG:], its[1][:-TAG] + its[0][-TAG:], *its[2:]],
            0,
        ),
    }


@pytest.mark.parametrize("change", changes())
def test_no_segment_can_be_put_elsewhere(change: str) -> None:
    meddled, good = changes()[change](seal(pattern(LENGTH)))
    assert sum(map(len, meddled)) >= sealed_size(LENGTH)
    found, end = received(b"".join(meddled))
    assert isinstance(end, SealBroken)
    assert found == pattern(LENGTH)[: good * SEGMENT]


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("more", [0, 1, SEGMENT, STEP - 1])
def test_a_body_that_is_cut_off_has_not_ended(kept: int, more: int) -> None:
    sealed = b"".join(seal(pattern(LENGTH)))
    cut_off = sealed[: min(kept * STEP + more, len(sealed) - 1)]
    found, end = received(cut_off)
    assert isinstance(end, ConnectionLost)
    assert not isinstance(end, SealBroken)
    assert found == pattern(LENGTH)[: kept * SEGMENT]


def test_a_shorter_body_does_not_pass_for_the_beginning_of_a_longer_one() -> None:
    # Whoever ends it at a border of segments has a last segment that says so.
    sealed = seal(pattern(LENGTH)[: 2 * SEGMENT])
    found, end = received(b"".join(sealed) + bytes(2 * STEP))
    assert isinstance(end, SealBroken)
    assert found == pattern(LENGTH)[:SEGMENT]


# --- waiting -----------------------------------------------------------------------


def test_silence_in_the_middle_of_a_segment_is_a_stall() -> None:
    with tcp_pair() as (near, far):
        far.send(seal(pattern(LENGTH))[0][:5000])
        body = body_of(near, stall=4 * QUICK)
        with pytest.raises(Stalled):
            body.readinto(memoryview(bytearray(SEGMENT)))
        assert body.silent_for >= 4 * QUICK


def test_a_segment_that_comes_slowly_is_no_stall() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0  # every look at the clock is a second later: with each byte that is nothing yet
        return now

    sealed = seal(pattern(40))[0]
    with tcp_pair() as (near, far):
        body = SealedBody(near, KEY, 40, Cancel(), 30.0, clock=clock)
        wanted = memoryview(bytearray(40))

        def trickle() -> None:
            for byte in sealed:
                far.send(bytes([byte]))
                seen = now
                while now < seen + 2 and not body.ended:
                    time.sleep(0.001)

        trickling = Background(trickle)
        assert body.readinto(wanted) == 40
        trickling.join()
        assert bytes(wanted) == pattern(40)
        assert now > 60


def test_a_cancel_and_an_interruption_end_the_wait() -> None:
    with tcp_pair() as (near, _):
        cancel = Cancel()
        body = SealedBody(near, KEY, LENGTH, cancel, STALL)
        waiting = Background(lambda: body.readinto(memoryview(bytearray(SEGMENT))))
        cancel.stop()
        shut(near)
        with pytest.raises(Interrupted):
            waiting.join()
    with tcp_pair() as (near, _):
        body = body_of(near)
        waiting = Background(lambda: body.readinto(memoryview(bytearray(SEGMENT))))
        body.interrupt(RuntimeError("the disk is full"))
        with pytest.raises(RuntimeError, match="the disk is full"):
            waiting.join()


def test_a_receiver_that_takes_nothing_is_a_stall_at_the_sender() -> None:
    with tls_tcp_pair() as (near, _), pytest.raises(Stalled):
        send_buffer(near, memoryview(bytes(64 << 20)), Sent().hooks(), Cancel(), 4 * QUICK, KEY)
