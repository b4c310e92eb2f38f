"""Turns of threads and of tasks: whoever stops waiting, or working, leaves none behind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from support.receiving import in_background
from tdx.control.turns import TaskTurns, ThreadTurns
from tdx.control.workers import Workers
from tdx.data.port import Cancel
from tdx.errors import Interrupted
from tdx.model import Owner

GREEDY, MODEST = Owner("tailscale:greedy"), Owner("tailscale:modest")


def test_a_thread_whose_body_is_cancelled_waits_no_more_and_leaves_its_turn_to_others() -> None:
    turns, cancel = ThreadTurns(1), Cancel()
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        with turns.turn(GREEDY, cancel):
            raise AssertionError("it was cancelled")

    with turns.turn(MODEST, Cancel()), in_background(wait) as waiting:
        assert waits.wait(30)
        cancel.stop()
        with pytest.raises(Interrupted):
            waiting.result(30)
    with turns.turn(MODEST, Cancel()):
        pass


def test_a_turn_that_fails_has_ended() -> None:
    turns = ThreadTurns(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turns.turn(GREEDY, Cancel()):
            raise ZeroDivisionError


def test_no_more_threads_work_at_once_than_there_are_places_and_all_come_to_an_end() -> None:
    turns, lock, at_once, most, done = ThreadTurns(2), threading.Lock(), 0, 0, 0

    def work(owner: Owner) -> None:
        nonlocal at_once, most, done
        for _ in range(100):
            with turns.turn(owner, Cancel()):
                with lock:
                    at_once += 1
                    most = max(most, at_once)
                with lock:
                    at_once -= 1
                    done += 1

    threads = [threading.Thread(target=work, args=(owner,)) for owner in [GREEDY] * 8 + [MODEST] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (at_once, done) == (0, 1000)
    assert most <= 2


async def test_a_task_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    turns = TaskTurns(1, 1)
    reached: list[str] = []

    async def work(name: str) -> None:
        async with turns.turn(GREEDY):
            reached.append(name)

    async with turns.turn(MODEST):
        first, second = (asyncio.create_task(work(name)) for name in ("first", "second"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()  # and before it has run again, its turn comes
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 30)
    assert reached == ["second"]
    async with asyncio.timeout(30), turns.turn(MODEST):
        reached.append("third")


async def test_long_work_of_one_owner_never_takes_every_thread() -> None:
    workers, release = Workers(bodies=1), threading.Event()
    try:
        hanging = [asyncio.create_task(workers.in_turn(GREEDY, release.wait, 60)) for _ in range(40)]
        assert await asyncio.wait_for(workers.in_turn(MODEST, lambda: "done"), 30) == "done"
        assert not any(task.done() for task in hanging)
        release.set()
        assert all(await asyncio.gather(*hanging))
    finally:
        release.set()
        workers.close()
