from __future__ import annotations

import socket
import threading

import pytest

from support.datakit import tcp_pair, unix_pair
from tdx.data.sockets import Patience, has_answer, readable, shut, to_loop, to_worker, unpaced
from tdx.errors import Stalled


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_socket_for_a_worker_blocks_and_gives_up_after_a_tick() -> None:
    with unix_pair() as (near, _):
        to_worker(near, 0.01)
        assert near.getblocking()
        with pytest.raises(BlockingIOError):
            near.recv(1)


def test_a_socket_given_back_to_the_loop_does_not_block() -> None:
    with unix_pair() as (near, _):
        to_loop(near)
        assert near.gettimeout() == 0.0
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="needs TCP_CONGESTION, which is Linux's")
def test_what_goes_to_this_machine_is_under_a_congestion_control_that_does_not_pace() -> None:
    with socket.socket() as sock:
        unpaced(sock)
        name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        assert name == b"reno"


def test_a_socket_without_congestion_control_is_left_as_it_is() -> None:
    with unix_pair() as (near, far):
        unpaced(near)
        near.send(b"x")
        assert far.recv(1) == b"x"


def test_shut_wakes_a_reader_that_is_blocked() -> None:
    with tcp_pair() as (near, _):
        to_worker(near, 60.0)
        started = threading.Event()
        found: list[bytes] = []

        def read() -> None:
            started.set()
            found.append(near.recv(1))

        reader = threading.Thread(target=read)
        reader.start()
        started.wait()
        shut(near)
        reader.join(30)
        assert found == [b""]


def test_shut_of_a_socket_that_is_not_connected_or_closed_is_no_error() -> None:
    sock = socket.socket()
    shut(sock)
    sock.close()
    shut(sock)


def test_readable_and_has_answer_tell_bytes_from_the_end_of_the_stream() -> None:
    with tcp_pair() as (near, far):
        assert not readable(near)
        assert not has_answer(near)
        far.send(b"x")
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1, socket.MSG_PEEK) == b"x"
        assert readable(near)
        assert has_answer(near)
        near.recv(1)
        assert near.recv(1) == b""
        assert readable(near)
        assert not has_answer(near)


def test_no_byte_for_the_stall_timeout_is_a_stall() -> None:
    clock = FakeClock()
    patience = Patience(10.0, clock=clock)
    clock.now += 9.9
    patience.waited()
    clock.now += 0.1
    with pytest.raises(Stalled):
        patience.waited()


def test_a_byte_starts_the_stall_timeout_anew() -> None:
    clock = FakeClock()
    patience = Patience(10.0, clock=clock)
    for _ in range(5):
        clock.now += 9.0
        patience.waited()
        patience.moved(1)


def test_time_before_begin_is_not_held_against_the_peer() -> None:
    clock = FakeClock()
    patience = Patience(10.0, min_rate=100, clock=clock)
    clock.now += 1000.0
    patience.begin()
    clock.now += 1.0
    patience.waited()
    clock.now += 1.0
    patience.moved(1)


def test_fewer_bytes_than_the_rate_over_a_window_are_a_stall() -> None:
    clock = FakeClock()
    patience = Patience(10.0, min_rate=100, clock=clock)
    for _ in range(9):
        clock.now += 1.0
        patience.moved(99)
    clock.now += 1.0
    with pytest.raises(Stalled):
        patience.moved(99)


def test_the_rate_is_judged_window_by_window() -> None:
    clock = FakeClock()
    patience = Patience(10.0, min_rate=100, clock=clock)
    clock.now += 10.0
    patience.moved(100_000)
    clock.now += 9.0
    patience.moved(1)
    clock.now += 1.0
    with pytest.raises(Stalled):
        patience.moved(1)
