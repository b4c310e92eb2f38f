"""One direction of the emulated link, on a virtual clock: rate, delay, loss, and the room in its queue."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.wan.pipe import LEAST_QUEUE, Conditions, Pipe

MBIT = 125_000.0


def arrivals(pipe: Pipe, until: float, step: float = 0.001) -> list[tuple[float, bytes]]:
    """When each packet leaves, looking every ``step`` seconds."""
    found: list[tuple[float, bytes]] = []
    for tick in range(math.ceil(until / step) + 1):
        found += [(tick * step, packet) for packet in pipe.leave(tick * step)]
    return found


def test_a_packet_takes_its_time_at_the_rate_and_then_the_delay() -> None:
    pipe = Pipe(Conditions(rate=1500.0, delay=0.05), seed=1)
    pipe.enter([bytes(1500)], 0.0)
    assert pipe.next_at == pytest.approx(1.05)
    assert list(pipe.leave(1.04)) == []
    assert list(pipe.leave(1.06)) == [bytes(1500)]
    assert pipe.next_at is None


def test_packets_leave_in_the_order_in_which_they_came_and_at_the_rate() -> None:
    pipe = Pipe(Conditions(rate=MBIT * 8, delay=0.05, queue=1 << 20), seed=1)
    packets = [number.to_bytes(2, "big") + bytes(998) for number in range(500)]
    pipe.enter(packets[:200], 0.0)
    pipe.enter(packets[200:], 0.1)
    found = arrivals(pipe, 1.0)
    assert [packet for _, packet in found] == packets
    assert found[0][0] == pytest.approx(0.051, abs=0.0011)
    assert found[-1][0] == pytest.approx(0.55, abs=0.0011)
    assert (pipe.delivered, pipe.bytes) == (500, 500_000)


def test_what_finds_no_room_is_dropped_and_the_rest_goes_on() -> None:
    pipe = Pipe(Conditions(rate=10_000.0, delay=0.0, queue=5_000), seed=1)
    pipe.enter([bytes(1000)] * 8, 0.0)
    assert (pipe.overflowed, pipe.most_waiting) == (3, 5_000)
    pipe.enter([bytes(1000)] * 3, 0.2)
    assert (pipe.overflowed, pipe.most_waiting) == (4, 5_000)
    assert len(list(pipe.leave(1.0))) == 7


def test_without_a_word_the_queue_holds_a_round_trip_and_never_less_than_its_least() -> None:
    assert Conditions(rate=100 * MBIT, delay=0.05).room == 1_250_000
    assert Conditions(rate=MBIT, delay=0.005).room == LEAST_QUEUE


def test_the_same_seed_loses_the_same_packets() -> None:
    def lost(seed: int) -> list[int]:
        pipe = Pipe(Conditions(rate=1e9, delay=0.0, loss=0.1), seed=seed)
        pipe.enter([number.to_bytes(2, "big") for number in range(1000)], 0.0)
        arrived = {int.from_bytes(packet, "big") for packet in pipe.leave(1.0)}
        return sorted(set(range(1000)) - arrived)

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)
    assert 40 < len(lost(1)) < 160


@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.1), st.lists(st.integers(1, 1500), min_size=1, max_size=20)), max_size=20
    ),
    st.integers(1500, 20_000),
)
def test_no_more_waits_than_there_is_room_for_and_every_packet_is_accounted_for(
    bursts: list[tuple[float, list[int]]], room: int
) -> None:
    pipe = Pipe(Conditions(rate=50_000.0, delay=0.01, loss=0.2, queue=room), seed=3)
    now, sent = 0.0, 0
    for pause, sizes in bursts:
        now += pause
        pipe.enter([bytes(size) for size in sizes], now)
        sent += len(sizes)
        assert pipe.most_waiting <= room
    left = sum(1 for _ in pipe.leave(now + 60.0))
    assert pipe.delivered == left == sent - pipe.lost - pipe.overflowed
