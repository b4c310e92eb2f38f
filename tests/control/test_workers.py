"""Threads beside the loop: a cancelled task never leaves one behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tdx.control.workers import Workers, run_joined
from tdx.errors import Busy


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def test_a_task_cancelled_twice_still_waits_for_its_thread(pool: ThreadPoolExecutor) -> None:
    running, release, woken = threading.Event(), threading.Event(), asyncio.Event()
    done = False

    def work() -> None:
        nonlocal done
        running.set()
        assert release.wait(30)
        done = True

    task = asyncio.create_task(run_joined(pool, work, woken.set))
    await asyncio.to_thread(running.wait, 30)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert woken.is_set()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_a_failure_of_the_work_reaches_its_caller(pool: ThreadPoolExecutor) -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_joined(pool, work, lambda: None)


async def test_work_for_which_no_thread_can_be_started_is_busy_and_never_done_later(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(Busy, match="can't start new thread"):
            await run_joined(pool, lambda: done.append("given up"), lambda: None)
    await run_joined(pool, lambda: done.append("after"), lambda: None)
    assert done == ["after"]


async def test_long_work_does_not_keep_short_work_waiting() -> None:
    workers = Workers(bodies=1, disk=1, long=1)
    release = threading.Event()
    try:
        long = asyncio.create_task(workers.at_length(release.wait, 30))
        assert await workers.on_disk(lambda: "short") == "short"
        assert not long.done()
        release.set()
        assert await long
    finally:
        release.set()
        workers.close()


async def test_work_that_can_be_woken_ends_early() -> None:
    workers = Workers(bodies=1)
    stop = threading.Event()
    try:
        task = asyncio.create_task(workers.until(stop.set, lambda: stop.wait(30)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stop.is_set()
    finally:
        workers.close()
