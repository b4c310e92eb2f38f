"""One run of ``tdx get``: signals, the time limit, what is said of each file, the exit code."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType
from typing import Final

from tdx.control.getting import Ended, GetOptions, Getting
from tdx.control.signals import SIGNALS, StopSignals
from tdx.errors import Interrupted, TdxError, TimedOut
from tdx.model import shown
from tdx.policy.exits import worst
from tdx_cli.report import Failure
from tdx_cli.text import flush_said, say, say_json, seconds_of, size_of, warn

WHOLE: Final = "every file is whole, where it was or where it was to go"


class Stop:
    """Ends a run by a signal, or when its time is over (see :class:`tdx.control.getting.Stop`)."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._reason: TdxError | None = None
        self._signals = StopSignals()
        self._wakes, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A signal that comes just before the sleep must end it as well.
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signals.is_first(number):
            self._reason = Interrupted(f"stopped by {signal.Signals(number).name}; {WHOLE}")

    def check(self) -> None:
        if self._reason is not None:
            raise self._reason
        if self._timeout is not None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._reason = TimedOut(f"ended after {seconds_of(self._timeout)}; {WHOLE}")
            raise self._reason

    def wait(self, seconds: float) -> None:
        if self._deadline is not None:
            seconds = min(seconds, max(0.0, self._deadline - time.monotonic()))
        select.select([self._wakes], [], [], seconds)


class Run:
    """Moves files and tells of each."""

    def __init__(self, options: GetOptions, timeout: float | None, *, as_json: bool, quiet: bool) -> None:
        self._options = options
        self._timeout = timeout
        self._as_json = as_json
        self._quiet = quiet
        self._codes: set[int] = set()

    def get(self) -> int:
        """The exit code."""
        getting = Getting(self._options, Stop(self._timeout), self._report)
        try:
            getting.run()
        except TdxError as error:
            warn(error.message)
            self._codes.add(error.exit_code)
        if not getting.ended and not self._codes and not self._quiet:
            warn("nothing is there to be moved")
        flush_said()
        return worst(self._codes)

    def _report(self, ended: Ended) -> None:
        if ended.error is not None:
            self._codes.add(ended.error.exit_code)
            path = shown(ended.file.path)
            said = ended.error.message
            warn(said if said.startswith(path) else f"{path}: {said}")
        if self._as_json:
            say_json(_event(ended))
        elif ended.error is None and not self._quiet:
            say(_line(ended))


def _event(ended: Ended) -> dict[str, object]:
    error = ended.error
    return {
        "event": "failed" if error is not None else "skipped" if ended.skipped else "moved",
        "name": ended.file.path,
        "path": None if error is not None or ended.path is None else str(ended.path.absolute()),
        "size": ended.file.size,
        "root": ended.file.root,
        "error": None if error is None else Failure.of(error).document(),
    }


def _line(ended: Ended) -> str:
    name, path = shown(ended.file.path), shown(str(ended.path))
    if ended.skipped:
        return f"{name}: left where it is, {path} is there already"
    return f"{name} -> {path}  {size_of(ended.file.size)}"
