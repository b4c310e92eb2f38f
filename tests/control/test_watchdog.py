"""When a receiver says that it lives, and what it says that it is doing."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.receiving import RunningReceiver, running
from support.wire import head
from tdx.control.receiver import Receiver
from tdx.control.threads import Threads
from tdx.control.watchdog import Watchdog
from tdx.control.workers import Workers
from tdx.errors import Busy


class Told(Threads):
    """Of threads, says what it was told to say."""

    def __init__(self, stuck: list[float], *, all_of_them: bool) -> None:
        super().__init__(())
        self.waits = stuck
        self._all = all_of_them

    def stuck(self, now: float, seconds: float) -> list[float]:
        return [each for each in self.waits if each >= seconds]

    def all_stuck(self, prefix: str) -> bool:
        return self._all


class Heard:
    def __init__(self, rounds: int) -> None:
        self.alive = 0
        self.lines: list[str] = []
        self.rounds = rounds

    def is_alive(self) -> None:
        self.alive += 1


def watched(
    receiver: Receiver, heard: Heard, threads: Threads | None = None, patience: float | None = 0.1
) -> None:
    """Watch for a while, on a loop of its own beside the receiver's."""

    async def go() -> None:
        watchdog = Watchdog(receiver, heard.is_alive, heard.lines.append, patience, threads)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watchdog.run(), 0.05 * heard.rounds + 0.3)

    asyncio.run(go())


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path) as found:
        yield found


def occupied(workers: Workers, work: Callable[[], object]) -> None:
    """All threads for the disk do this."""
    for _ in range(8):
        workers._disk.submit(work)


def test_a_receiver_with_nothing_to_do_lives_and_says_so_once(receiver: RunningReceiver) -> None:
    heard = Heard(4)
    watched(receiver.running, heard)
    assert heard.alive >= 2
    assert heard.lines == ["no transfer under way"]


def test_nobody_hears_of_life_who_did_not_ask(receiver: RunningReceiver) -> None:
    heard = Heard(1)
    watched(receiver.running, heard, patience=None)
    assert (heard.alive, heard.lines) == (0, ["no transfer under way"])


def test_threads_that_wait_for_each_other_are_no_life(
    receiver: RunningReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    heard, release = Heard(6), threading.Event()
    occupied(receiver.running.workers, release.wait)
    try:
        watched(receiver.running, heard)
    finally:
        release.set()
    assert heard.alive == 0
    assert "wait for each other" in caplog.text


def test_threads_that_the_kernel_holds_are_no_reason_to_end(receiver: RunningReceiver) -> None:
    heard = Heard(6)
    reading, writing = os.pipe()
    occupied(receiver.running.workers, lambda: os.read(reading, 1))
    try:
        watched(receiver.running, heard)
    finally:
        os.write(writing, b"12345678")
    assert heard.alive >= 2
    receiver.stop()
    os.close(reading)
    os.close(writing)


def test_a_disk_that_does_not_answer_is_told_of_and_counted_and_its_answer_too(
    receiver: RunningReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    heard, threads = Heard(4), Told([42.4, 12.0, 3.0], all_of_them=False)
    watched(receiver.running, heard, threads)
    assert heard.lines == ["no transfer under way; the disk has not answered for 42 s"]
    assert receiver.metrics.disk_waiting.value() == 42.4
    assert [record.message for record in caplog.records] == [
        "the disk has not answered for 42 s (calls that wait: 2)"
    ]


def test_a_disk_that_answers_again_is_told_of(
    receiver: RunningReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    heard, threads = Heard(4), Told([42.0], all_of_them=False)

    def heals(line: str) -> None:
        heard.lines.append(line)
        threads.waits = []

    async def go() -> None:
        watchdog = Watchdog(receiver.running, heard.is_alive, heals, 0.1, threads)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watchdog.run(), 1)

    asyncio.run(go())
    assert heard.lines[-1] == "no transfer under way"
    assert caplog.messages[-1] == "the disk answers again"
    assert receiver.metrics.disk_waiting.value() == 0


def test_what_is_on_its_way_is_told(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        wire.send(head("PUT", "/files/f", {"Content-Length": 10}))
        receiver.has_bodies(1)
        heard = Heard(1)
        watched(receiver.running, heard)
    assert heard.lines == ["1 transfer under way"]


def test_that_no_thread_can_be_started_is_not_death(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pulse() -> None:
        raise Busy("no thread")

    monkeypatch.setattr(receiver.running.workers, "pulse", pulse)
    heard = Heard(1)
    watched(receiver.running, heard)
    assert heard.alive
