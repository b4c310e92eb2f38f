"""In which order things happen, for somebody to watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from observe.traffic import Traffic
from support.processes import Push

STEP: Final = 0.25


def rounds(traffic: Traffic, *, pause: float) -> Iterator[None]:
    """Without end, one thing after the other, with a pause of so many seconds after each. Yields now and
    then, and what is on its way goes on meanwhile."""
    number = 0
    while True:
        offsite = traffic.offsite()
        steps: list[Callable[[], None]] = [
            traffic.sizes,
            traffic.resumed,
            traffic.nightly,
            traffic.changed,
            traffic.failing,
            traffic.sizes,
        ]
        rare = (traffic.silent, traffic.astray, partial(traffic.nightly, outage=True))[number % 3]
        for step in steps:
            step()
            yield from _pause(pause)
        yield from _until_ended(offsite)
        rare()
        yield from _pause(pause)
        traffic.tidy()
        number += 1


def _until_ended(push: Push) -> Iterator[None]:
    while push.running:
        yield from _pause(STEP)
    push.ends(0, "done")


def _pause(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while True:
        yield
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(STEP, left))
