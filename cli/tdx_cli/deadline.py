"""The last word on ``--timeout``: a run that does not end by itself in time is ended."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Final, Self

from tdx.errors import TimedOut
from tdx_cli.stopping import end_at_once
from tdx_cli.text import seconds_of

GRACE: Final = 5.0
"""Seconds that a run may take to end in order, when its time is up."""

STDERR: Final = 2


class Deadline:
    """Ends the process :data:`GRACE` seconds after ``limit``, whatever it waits for then: a disk, a name
    service, or somebody who does not read what it prints. None: never. Only inside of ``with``."""

    def __init__(self, limit: float | None, grace: float = GRACE) -> None:
        self._code = TimedOut.exit_code
        self._message: str | None = None
        self._timer: threading.Timer | None = None
        if limit is not None:
            self._message = (
                f"tdx: not done after {seconds_of(limit)}, and a disk, a name service or an output still does"
                " not answer; run it again\n"
            )
            self._timer = threading.Timer(limit + grace, self._strike)
            self._timer.daemon = True

    def settle(self, code: int) -> None:
        """How it ends is known, and has been told; only what is under way does not let go yet."""
        self._code, self._message = code, None

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _strike(self) -> None:
        if self._message is not None:
            _say_at_once(self._message)
        end_at_once(self._code)


def _say_at_once(message: str) -> None:
    """Write to standard error if that takes it now: it may be what is not read."""
    with contextlib.suppress(OSError):
        poll = select.poll()
        poll.register(STDERR, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(STDERR, message.encode())
