"""When a signal to stop is a second one."""

from __future__ import annotations

import os
import signal

import pytest

from tdx.control.signals import ECHO, StopSignals


class Ended(Exception):
    """The process would have ended."""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows; an end of the process is Ended, with the code."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    return [100.0]


def test_the_same_signal_right_after_the_first_is_an_echo_of_it(at: list[float]) -> None:
    signals = StopSignals(lambda: at[0])
    assert signals.is_first(signal.SIGTERM)
    at[0] += ECHO * 0.99
    assert not signals.is_first(signal.SIGTERM)


def test_the_same_signal_later_ends_the_process_with_75(at: list[float]) -> None:
    signals = StopSignals(lambda: at[0])
    assert signals.is_first(signal.SIGINT)
    at[0] += ECHO
    with pytest.raises(Ended, match="75"):
        signals.is_first(signal.SIGINT)


def test_another_signal_ends_the_process_with_75_however_soon(at: list[float]) -> None:
    signals = StopSignals(lambda: at[0])
    assert signals.is_first(signal.SIGINT)
    with pytest.raises(Ended, match="75"):
        signals.is_first(signal.SIGTERM)
