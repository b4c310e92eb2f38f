"""In which order things happen, for somebody to watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from observe.traffic import Traffic

STEP: Final = 0.25


def rounds(traffic: Traffic, *, pause: float) -> Iterator[None]:
    """Without end, one thing after the other, with a pause of so many seconds after each. Yields now and
    then, and what is on its way goes on meanwhile."""
    traffic.silent()
    number = 0
    while True:
        steps: list[Callable[[], None]] = [
            traffic.sizes,
            traffic.resumed,
            traffic.nightly,
            traffic.changed,
            traffic.failing,
            traffic.sizes,
        ]
        if number % 3 == 1:
            steps += [traffic.corrupted, traffic.refused]
        offsite = traffic.offsite()
        for step in steps:
            step()
            yield from _pause(pause)
        while offsite.running:
            yield from _pause(STEP)
        offsite.ends(0, "done")
        traffic.tidy()
        number += 1
        if number % 3 == 0:
            traffic.heard()
            traffic.silent()


def _pause(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while True:
        yield
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(STEP, left))
