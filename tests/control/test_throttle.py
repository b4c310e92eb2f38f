"""The receiver's limit: kept over all bodies, ended at once by a cancel, and never taken for a stall."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.bundle_wire import bundle, post, said
from support.devices import introduce
from support.processes import wait_until
from support.receiving import RunningReceiver, push, running
from support.wire import head
from tdx.control.resolve import Peer
from tdx.control.sender import SenderOptions
from tdx.control.throttle import ALIVE_SECONDS, BodyBrake, Throttle
from tdx.data.port import Cancel
from tdx.errors import Interrupted
from tdx.model import Owner
from tdx.policy.admission import Limits
from tdx.policy.bandwidth import UNLIMITED, RateSchedule
from tdx.proto.head import PROCESSING

ME = Owner("local:1")
NAS = Peer("nas", None)
SOON = 60.0


def nothing(_seconds: float) -> None:
    pass


def limited(rate: float) -> RateSchedule:
    return RateSchedule(rest=rate)


def test_without_a_limit_nothing_waits_and_nothing_is_cut() -> None:
    throttle = Throttle()
    assert throttle.piece(1 << 20) == 1 << 20
    assert throttle.took(ME, 1 << 40, Cancel(), nothing) == 0.0


def test_pieces_are_small_where_the_rate_is_low() -> None:
    assert Throttle(limited(1024)).piece(1 << 20) == 1024
    assert Throttle(limited(1e6)).piece(1 << 20) == 100_000
    assert Throttle(limited(1e9)).piece(1 << 20) == 1 << 20
    assert Throttle(limited(1)).piece(10) == 10


def test_many_threads_together_keep_the_rate() -> None:
    throttle, rate, pieces = Throttle(limited(1e6)), 1e6, 8

    def body(number: int) -> None:
        for _ in range(pieces):
            throttle.took(Owner(f"local:{number % 2}"), 25_000, Cancel(), nothing)

    began = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(body, range(5)))
    # The last piece of all waits for those before it, and the burst for nothing.
    assert time.monotonic() - began >= (5 * pieces * 25_000 - 25_000) / rate - 0.1 - 0.01


@pytest.fixture
def waiting() -> Callable[[Throttle, Cancel], threading.Thread]:
    def begin(throttle: Throttle, cancel: Cancel) -> threading.Thread:
        def body() -> None:
            with contextlib.suppress(Interrupted):
                throttle.took(ME, 1, cancel, nothing)

        thread = threading.Thread(target=body)
        thread.start()
        wait_until(lambda: throttle._shared.next() is not None, "it waits")
        return thread

    return begin


def in_debt(rate: float = 1.0) -> Throttle:
    """One with which the next body has ages to wait."""
    throttle = Throttle(limited(rate))
    throttle.took(ME, 1 << 30, Cancel(), nothing)
    return throttle


def test_a_cancel_ends_the_wait_and_gives_the_time_to_others(
    waiting: Callable[[Throttle, Cancel], threading.Thread],
) -> None:
    throttle, cancel = in_debt(), Cancel()
    thread = waiting(throttle, cancel)
    cancel.set(Interrupted("stopped"))
    thread.join(SOON)
    assert not thread.is_alive()
    assert throttle._shared.next() is None


def test_one_that_is_cancelled_already_does_not_wait() -> None:
    throttle, cancel = in_debt(), Cancel()
    cancel.set(Interrupted("stopped"))
    with pytest.raises(Interrupted):
        throttle.took(ME, 1, cancel, nothing)


def test_a_limit_that_is_taken_away_lets_those_go_who_wait(
    waiting: Callable[[Throttle, Cancel], threading.Thread],
) -> None:
    throttle = in_debt()
    threads = [waiting(throttle, Cancel()) for _ in range(3)]
    throttle.change(UNLIMITED)
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert throttle.took(ME, 1 << 40, Cancel(), nothing) == 0.0


def test_a_sender_that_waits_is_told_that_it_goes_on_and_others_are_not() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        seconds = [0.0, ALIVE_SECONDS / 2, ALIVE_SECONDS, 1.5 * ALIVE_SECONDS, 2 * ALIVE_SECONDS]

        class Slow(Throttle):
            def took(self, owner: Owner, n: int, cancel: Cancel, waiting: Callable[[float], None]) -> float:
                for each in seconds:
                    waiting(each)
                return seconds[-1]

        checks: list[int] = []
        brake = BodyBrake(Slow(), ME, Cancel(), ours)
        brake.took(1, lambda: checks.append(1))
        assert theirs.recv(1000) == 2 * PROCESSING
        seconds[:] = [ALIVE_SECONDS / 2]
        brake.took(1, lambda: None)
        brake.took(1, lambda: None)
        assert theirs.recv(1000) == PROCESSING
        BodyBrake(Slow(), ME, Cancel(), None).took(1, lambda: None)
        assert len(checks) == 5


# --- through the real wire ---------------------------------------------------------------------


def throttled(receiver: RunningReceiver, rate: float) -> None:
    receiver.running.throttle.change(limited(rate))


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [40_000, 200_000, 5 << 20])
def test_a_push_that_is_held_back_for_longer_than_it_may_stall_arrives(
    tmp_path: Path, size: int, over_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall, wanted = 1.0, 4.0
    monkeypatch.setattr("tdx.control.throttle.ALIVE_SECONDS", stall / 5)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (size // 256))
    with running(tmp_path, limits=Limits(stall_timeout=stall)) as receiver:
        throttled(receiver, source.stat().st_size / wanted)
        state = tmp_path / "sender"
        options = SenderOptions(retries=0, stall_timeout=stall, state=state)
        peer = receiver.peer
        if over_tls:
            introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
            peer = NAS
        result = push(peer, source, state, sender=options, streams=1)
        assert result.outcome == "published"
        assert receiver.visible() == {"source": source.read_bytes()}
        assert result.seconds >= wanted * 0.7


def test_a_plain_client_is_held_back_and_not_told_a_word(tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        throttled(receiver, 100_000)
        with receiver.connect() as wire:
            began = time.monotonic()
            answer = wire.send(head("PUT", "/files/f", {"Content-Length": 100_000}) + bytes(100_000)).answer()
            assert answer.status == 201  # the very first line that came
            assert time.monotonic() - began >= 0.7


def test_a_chunked_body_is_held_back_as_well(tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        throttled(receiver, 100_000)
        with receiver.connect() as wire:
            began = time.monotonic()
            chunk = b"186a0\r\n" + bytes(100_000) + b"\r\n0\r\n\r\n"
            sent = wire.send(head("PUT", "/files/f", {"Transfer-Encoding": "chunked"}) + chunk)
            assert sent.answer().status == 201
            assert time.monotonic() - began >= 0.7


def test_small_files_that_come_together_are_held_back_as_well(tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        throttled(receiver, 100_000)
        files = {f"{number}": bytes(10_000) for number in range(10)}
        began = time.monotonic()
        assert said(post(receiver, bundle(files))) == [("published", name) for name in files]
        assert time.monotonic() - began >= 0.7


def test_splice_keeps_to_the_limit_as_well(tmp_path: Path) -> None:
    with running(tmp_path, pump="splice") as receiver:
        throttled(receiver, 1e6)
        began = time.monotonic()
        answer = receiver.request("PUT", "/files/f", bytes(1_500_000))
        assert (answer.status, time.monotonic() - began >= 1.0) == (201, True)


def test_stopping_does_not_wait_for_a_body_that_is_held_back(tmp_path: Path) -> None:
    with running(tmp_path) as receiver:
        throttled(receiver, 1)
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/f", {"Content-Length": 100_000}) + bytes(50_000))
            wait_until(lambda: receiver.running.throttle._shared.next() is not None, "it is held back")
            began = time.monotonic()
            receiver.stop()
            assert time.monotonic() - began < SOON
