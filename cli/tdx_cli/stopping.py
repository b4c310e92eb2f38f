"""One handler of signals, and time limits, for all that a process does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Generator
from types import FrameType
from typing import Final, NoReturn

from tdx.control.signals import SIGNALS, StopSignals

_LAST_WORDS: Final[list[Callable[[int], object]]] = []


def end_at_once(code: int) -> NoReturn:
    """End this process, whatever it waits for; only what :func:`last_words` has been told has its turn."""
    for say in _LAST_WORDS:
        say(code)
    os._exit(code)


@contextlib.contextmanager
def last_words(say: Callable[[int], object]) -> Generator[None]:
    """Inside, ``say(exit code)`` is called before this process is ended at once, in whatever thread does so.
    It must not take long, and never raises."""
    _LAST_WORDS.append(say)
    try:
        yield
    finally:
        _LAST_WORDS.remove(say)


@contextlib.contextmanager
def told_of_signals(tell: Callable[[str], object]) -> Generator[None]:
    """Inside, the first SIGINT or SIGTERM has ``tell(its name)`` called in the running loop, and a second
    one ends the process. Afterwards none has an effect: nothing is left to stop, and the exit code tells
    what happened, not a late signal."""
    loop = asyncio.get_running_loop()
    signals = StopSignals(end=end_at_once)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # A second one ends the process here, not through the loop: that may be waiting for a thread
        # that waits for a disk.
        if signals.is_first(number):
            loop.call_soon_threadsafe(tell, signal.Signals(number).name)

    for number in SIGNALS:
        # Not the loop's own handlers: those leave moments in which a signal kills outright.
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def limited(seconds: float | None, tell: Callable[[float], None]) -> Generator[None]:
    """Inside, ``tell(seconds)`` is called once that many have passed; None: never."""
    timer = None
    if seconds is not None:
        timer = asyncio.get_running_loop().call_later(seconds, tell, seconds)
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
