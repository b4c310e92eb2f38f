from __future__ import annotations

import threading

import pytest

from support.datakit import pump_threads
from tdx.data.buffers import BufferPool
from tdx.data.relay import Relay


def ignore(_: BaseException) -> None:
    pass


def test_jobs_are_worked_on_in_order_in_one_other_thread() -> None:
    seen: list[tuple[int, str]] = []
    relay: Relay[int, int] = Relay(
        [1, 2], lambda job: seen.append((job, threading.current_thread().name)), ignore, "tdx-write"
    )
    for job in range(50):
        relay.put(relay.take(), job)
    assert sorted(relay.finish()) == [1, 2]
    assert seen == [(job, "tdx-write") for job in range(50)]
    assert pump_threads() == []


def test_the_owner_runs_ahead_by_no_more_than_the_tokens() -> None:
    gate = threading.Event()

    def work(_: int) -> None:
        gate.wait(30)

    relay: Relay[int, int] = Relay([1, 2], work, ignore, "tdx-write")
    relay.put(relay.take(), 1)
    relay.put(relay.take(), 2)
    third = threading.Thread(target=relay.take)
    third.start()
    third.join(0.05)
    assert third.is_alive()
    gate.set()
    third.join(30)
    assert not third.is_alive()
    relay.give_back(1)
    relay.finish()


def test_after_an_error_the_owner_is_told_and_later_jobs_are_dropped() -> None:
    told: list[BaseException] = []
    done: list[int] = []
    failed = threading.Event()

    def note(error: BaseException) -> None:
        told.append(error)
        failed.set()

    def work(job: int) -> None:
        if job == 1:
            raise ValueError("broken")
        done.append(job)

    relay: Relay[int, int] = Relay([1, 2, 3, 4], work, note, "tdx-write")
    tokens = [relay.take() for _ in range(4)]
    for token in tokens[:3]:
        relay.put(token, token - 1)
    assert failed.wait(30)
    with pytest.raises(ValueError, match="broken"):
        relay.take()
    relay.give_back(tokens[3])
    assert len(relay.finish()) == 4
    assert done == [0]
    assert told == [relay.error]
    assert pump_threads() == []


def test_a_buffer_given_back_is_the_next_one_taken() -> None:
    pool = BufferPool(4096)
    first, second = pool.take(), pool.take()
    assert first is not second
    assert len(first) == 4096
    pool.give(first)
    assert pool.take() is first


def test_no_more_buffers_are_kept_than_the_pool_may() -> None:
    pool = BufferPool(4096, kept=1)
    first, second = pool.take(), pool.take()
    pool.give(first)
    pool.give(second)
    assert pool.take() is first
    assert pool.take() is not second
