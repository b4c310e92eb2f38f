"""Which threads wait for the kernel, and since when."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import wait_until
from tdx.control.threads import TASKS, Threads


@contextmanager
def busy(name: str, work: Callable[[], object]) -> Iterator[int]:
    """A thread of that name that does it; its number."""
    thread = threading.Thread(target=work, name=name)
    thread.start()
    assert thread.native_id is not None
    yield thread.native_id
    thread.join()


def call_of(number: int) -> str:
    return (TASKS / str(number) / "syscall").read_text().partition(" ")[0]


def test_a_thread_that_the_kernel_keeps_is_stuck_for_as_long_as_it_is_the_same_call() -> None:
    reading, writing = os.pipe()
    threads = Threads(["tdx-disk"])
    with busy("tdx-disk_0", lambda: os.read(reading, 1)) as number:
        wait_until(lambda: call_of(number).isdigit(), "it reads")
        threads.look(100.0)
        assert threads.stuck(100.0, 1.0) == []
        threads.look(130.0)
        assert threads.stuck(130.0, 10.0) == [30.0]
        assert threads.stuck(130.0, 31.0) == []
        assert threads.all_stuck("tdx-disk")
        os.write(writing, b"x")
    threads.look(160.0)
    assert threads.stuck(160.0, 0.0) == []
    assert not threads.all_stuck("tdx-disk")
    os.close(reading)
    os.close(writing)


def test_a_call_that_came_after_another_counts_from_its_own_beginning() -> None:
    reading, writing = os.pipe()
    threads = Threads(["tdx-disk"])
    with busy("tdx-disk_0", lambda: [os.read(reading, 1), os.read(reading, 1)]) as number:
        wait_until(lambda: call_of(number).isdigit(), "it reads")
        threads.look(100.0)
        before = (TASKS / str(number) / "status").read_text()
        os.write(writing, b"x")
        wait_until(
            lambda: call_of(number).isdigit() and (TASKS / str(number) / "status").read_text() != before,
            "it reads again",
        )
        threads.look(130.0)
        assert threads.stuck(140.0, 0.0) == [10.0]
        os.write(writing, b"x")
    os.close(reading)
    os.close(writing)


def test_a_thread_that_waits_for_another_thread_is_not_the_kernels() -> None:
    release = threading.Event()
    threads = Threads(["tdx-disk"])
    with busy("tdx-disk_0", release.wait) as number:
        wait_until(lambda: call_of(number).isdigit(), "it waits")
        threads.look(100.0)
        threads.look(130.0)
        assert threads.stuck(130.0, 0.0) == []
        assert not threads.all_stuck("tdx-disk")
        release.set()


def test_a_thread_that_runs_is_not_the_kernels() -> None:
    stop = False

    def spin() -> None:
        while not stop:
            pass

    threads = Threads(["tdx-disk"])
    with busy("tdx-disk_0", spin):
        threads.look(100.0)
        threads.look(130.0)
        # It may be waiting for its turn with the interpreter, which is a wait for another thread.
        assert not threads.all_stuck("tdx-disk")
        stop = True


def test_other_threads_and_an_idle_pool_are_not_looked_at() -> None:
    threads = Threads(["tdx-disk"])
    with ThreadPoolExecutor(2, thread_name_prefix="tdx-disk") as pool, busy("other", lambda: time.sleep(0.2)):
        pool.submit(time.time).result()
        threads.look(100.0)
        threads.look(130.0)
        assert threads.stuck(130.0, 0.0) == []


@pytest.mark.parametrize("machine", ["vax", "x86_64"])
def test_where_the_kernel_does_not_say_nothing_is_stuck(machine: str, tmp_path: Path) -> None:
    threads = Threads(["tdx-disk"], tmp_path, machine)
    reading, writing = os.pipe()
    with busy("tdx-disk_0", lambda: os.read(reading, 1)):
        threads.look(100.0)
        assert not threads.all_stuck("tdx-disk")
        os.write(writing, b"x")
    os.close(reading)
    os.close(writing)
