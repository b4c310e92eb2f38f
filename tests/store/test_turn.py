"""Whoever has the turn works alone, and nobody's work depends on getting it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from tdx.store.turn import PATIENCE, Turn


class Lock:
    """One that can be had or not, and who asks for it waits no time."""

    def __init__(self, *, free: bool = True) -> None:
        self._free = free
        self.waited: list[float] = []

    def acquire(self, timeout: float) -> bool:
        self.waited.append(timeout)
        got, self._free = self._free, False
        return got

    def release(self) -> None:
        assert not self._free
        self._free = True

    def free(self) -> bool:
        return self._free


def turn_of(lock: Lock) -> Turn:
    return Turn(cast("threading.Lock", lock))


def test_the_turn_is_ones_own_until_one_leaves_it() -> None:
    lock = Lock()
    with turn_of(lock):
        assert not lock.free()
    assert lock.free()


def test_who_fails_leaves_it_too() -> None:
    lock = Lock()
    with pytest.raises(ZeroDivisionError), turn_of(lock) as turn, turn.aside():
        raise ZeroDivisionError
    assert lock.free()
    assert len(lock.waited) == 2


def test_others_have_their_turn_while_one_is_aside() -> None:
    lock = Lock()
    with turn_of(lock) as turn:
        with turn.aside():
            assert lock.free()
            with turn_of(lock):
                assert not lock.free()
        assert not lock.free()


def test_out_of_turn_aside_is_nothing() -> None:
    lock = Lock()
    with turn_of(lock).aside():
        assert lock.free()
    assert lock.waited == []


def test_who_has_waited_long_enough_goes_on_and_leaves_the_other_one_its_turn() -> None:
    lock = Lock(free=False)
    with turn_of(lock) as turn:
        with turn.aside():
            assert not lock.free()
        assert not lock.free()
    assert not lock.free()
    assert lock.waited == [PATIENCE]


def test_two_threads_are_never_in_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdx.store.turn.PATIENCE", 30.0)  # a busy machine may stop a thread for longer
    lock, together, inside = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal together, inside
        turn = Turn(lock)
        for _ in range(200):
            with turn:
                inside += 1
                together = max(together, inside)
                inside -= 1
                with turn.aside():
                    pass

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work) for _ in range(4)]:
            done.result(30)
    assert together == 1
