from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datakit import (
    STALL,
    Background,
    Over,
    body_on,
    end_stream,
    feeder,
    identity_body,
    pattern,
    tcp_pair,
    unix_pair,
)
from tdx.data.body import ChunkedBody, IdentityBody
from tdx.data.port import Cancel, RawBody
from tdx.data.sockets import shut
from tdx.errors import ConnectionLost, Interrupted, NoSpace, ProtocolError, Stalled
from tdx.proto.chunked import ChunkedDecoder


def read_all(body: IdentityBody | ChunkedBody, step: int = 1000) -> bytes:
    found = bytearray()
    buffer = memoryview(bytearray(step))
    while n := body.readinto(buffer):
        found += buffer[:n]
    return bytes(found)


class TickingClock:
    """Every look at it costs ``step`` seconds."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_an_identity_body_fills_the_view_and_is_a_raw_body() -> None:
    data = pattern(100_000)
    with tcp_pair() as (near, far):
        sending = feeder(far, data)
        body = identity_body(near, len(data))
        view = memoryview(bytearray(60_000))
        assert body.readinto(view) == 60_000
        assert body.remaining() == 40_000
        assert bytes(view) == data[:60_000]
        assert body.readinto(view) == 40_000
        assert bytes(view[:40_000]) == data[60_000:]
        assert body.readinto(view) == 0
        assert body.ended
        assert isinstance(body, RawBody)
        sending.join()


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 20))
def test_prefix_and_socket_together_are_the_body_and_nothing_beyond_it_is_read(
    ahead: int, length: int, step: int
) -> None:
    data = pattern(100)
    with unix_pair() as (near, far):
        far.send(data[ahead:])
        body = identity_body(near, length, prefix=data[:ahead])
        assert read_all(body, step) == data[:length]
        assert body.leftover == data[length:ahead]
        assert near.recv(200, socket.MSG_DONTWAIT) == data[max(ahead, length) :]


def test_the_prefix_can_be_taken_once() -> None:
    with unix_pair() as (near, far):
        far.send(b"def")
        body = identity_body(near, 6, prefix=b"abc")
        assert body.take_prefix() == b"abc"
        assert body.take_prefix() == b""
        assert body.remaining() == 3
        assert read_all(body) == b"def"


def test_bytes_that_arrived_before_the_connection_ended_are_not_lost(over: Over) -> None:
    with over.tcp() as (near, far):
        far.send(b"only this")
        end_stream(far)
        body = body_on(near, 100)
        view = memoryview(bytearray(50))
        assert body.readinto(view) == 9
        assert bytes(view[:9]) == b"only this"
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                body.readinto(view)


def test_a_reset_connection_is_connection_lost(over: Over) -> None:
    with over.tcp() as (near, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionLost):
            body_on(near, 10).readinto(memoryview(bytearray(10)))


def test_a_silent_peer_is_stalled(over: Over) -> None:
    with over.tcp() as (near, _), pytest.raises(Stalled):
        body_on(near, 10, stall=0.05).readinto(memoryview(bytearray(10)))


def test_a_peer_slower_than_the_least_rate_is_stalled() -> None:
    with unix_pair() as (near, far):
        far.send(b"x" * 20)
        body = IdentityBody(near, b"", 1000, Cancel(), 10.0, min_rate=50, clock=TickingClock(0.6))
        view = memoryview(bytearray(1))
        for _ in range(9):
            body.readinto(view)
        with pytest.raises(Stalled):
            read_all(body, 1)


def test_a_cancel_during_a_blocked_read_raises_its_reason(over: Over) -> None:
    with over.tcp() as (near, far):
        far.send(b"some")
        cancel = Cancel()
        body = body_on(near, 10, cancel)
        reading = Background(lambda: body.readinto(memoryview(bytearray(10))))
        cancel.set(Interrupted("stop"))
        shut(near)
        with pytest.raises(Interrupted):
            reading.join()


def test_an_interrupt_from_another_thread_ends_a_blocked_read(over: Over) -> None:
    with over.tcp() as (near, _):
        body = body_on(near, 10)
        reading = Background(lambda: body.readinto(memoryview(bytearray(10))))
        body.interrupt(NoSpace("full"))
        with pytest.raises(NoSpace):
            reading.join()


def chunked(near: socket.socket, prefix: bytes = b"", cancel: Cancel | None = None) -> ChunkedBody:
    return ChunkedBody(near, prefix, cancel or Cancel(), STALL, ChunkedDecoder())


@given(st.integers(0, 40), st.integers(1, 20), st.lists(st.integers(1, 30), max_size=5))
def test_a_chunked_body_is_decoded_and_what_follows_is_left_over(
    ahead: int, step: int, sizes: list[int]
) -> None:
    parts = [pattern(size, seed) for seed, size in enumerate(sizes)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\nNEXT"
    with unix_pair() as (near, far):
        if coded[ahead:]:
            far.send(coded[ahead:])
        body = chunked(near, coded[:ahead])
        assert body.length is None
        assert read_all(body, step) == b"".join(parts)
        assert body.ended
        assert body.leftover + near_rest(near) == b"NEXT"


def near_rest(near: socket.socket) -> bytes:
    try:
        return near.recv(100, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def test_a_large_chunked_body_survives_the_reuse_of_its_read_buffer(over: Over) -> None:
    data = pattern(1_500_000)
    coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    with over.tcp() as (near, far):
        sending = feeder(far, coded)
        assert read_all(chunked(near), 100_000) == data
        sending.join()


def test_a_chunked_body_that_ends_early_is_connection_lost_after_its_bytes(over: Over) -> None:
    with over.tcp() as (near, far):
        far.send(b"a\r\n0123")
        end_stream(far)
        body = chunked(near)
        view = memoryview(bytearray(20))
        assert body.readinto(view) == 4
        with pytest.raises(ConnectionLost):
            body.readinto(view)
        assert body.leftover == b""


def test_a_bad_chunk_is_a_protocol_error_after_the_good_ones(over: Over) -> None:
    with over.unix() as (near, far):
        body = chunked(near, b"2\r\nok\r\n")
        view = memoryview(bytearray(2))
        assert body.readinto(view) == 2
        far.send(b"zz\r\n")
        with pytest.raises(ProtocolError):
            body.readinto(view)
