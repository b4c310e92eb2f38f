"""Running a program of the receiver's owner for each file that has been published."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tdx.config import ServeConfig
from tdx.errors import ConfigError
from tdx.metrics import Metrics
from tdx.model import Identity, Receipt, shown

log = logging.getLogger(__name__)

QUEUED_AT_MOST: Final = 1024
OUTPUT_AT_MOST: Final = 4096
"""Bytes of a program's output that go to the log; what comes after them is read and dropped."""

TERM_SECONDS: Final = 5.0
"""What a program has after SIGTERM, before SIGKILL."""

GRACE_SECONDS: Final = 10.0
"""What programs that run have when the receiver stops."""

_TICK: Final = 0.05
_READ: Final = 65536
_LAST_READS: Final = 16
"""What is in the pipe is soon read; who inherited it may fill it for ever."""

_USUAL_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_KEPT: Final = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")

OK: Final = "ok"
FAILED: Final = "failed"
TIMEOUT: Final = "timeout"
DROPPED: Final = "dropped"
RESULTS: Final = (OK, FAILED, TIMEOUT, DROPPED)


@dataclass(frozen=True, slots=True)
class _Told:
    """One file that a program is to be told of."""

    upload: str
    path: str
    env: Mapping[str, str]


class Programs:
    """Runs ``config.on_receive`` once for each file, a few at a time, in threads of its own: whatever the
    program does, and where it hangs, no transfer and no answer waits for it.

    A file is told of at most once: what waits, or runs, when the receiver ends is not told of again.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, env: Mapping[str, str]) -> None:
        """``env`` is this process's environment, of which little is passed on. ConfigError where there is
        no such program, or it lies in DIR."""
        self._timeout = config.on_receive_timeout
        self._folder = config.folder.absolute()
        self._metrics = metrics
        self._env = clean(env)
        program = _found(config.on_receive[0], self._env["PATH"], self._folder)
        self._command = [program, *config.on_receive[1:]]
        for result in RESULTS:
            metrics.hooks.add(0, (result,))
        self._queue: queue.Queue[_Told | None] = queue.Queue(QUEUED_AT_MOST)
        self._deadline: float | None = None
        """When whatever runs is to have ended, once the receiver stops."""
        self._threads = [
            threading.Thread(target=self._work, name=f"tdx-program-{number}", daemon=True)
            for number in range(config.on_receive_at_once)
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, receipt: Receipt, identity: Identity | None) -> None:
        """Have the program run for a file that was just published. Never blocks: where too many wait, this
        one is dropped. ``identity`` None: it is not known any more who sent it."""
        told = _Told(receipt.upload, receipt.path, {**self._env, **self._about(receipt, identity)})
        try:
            if self._deadline is not None:
                raise queue.Full
            self._queue.put_nowait(told)
        except queue.Full:
            self._drop(told)

    def close(self, grace: float = GRACE_SECONDS) -> None:
        """Drop what waits; give what runs ``grace`` seconds to end, then SIGTERM, then SIGKILL. Blocks."""
        self._deadline = time.monotonic() + grace
        with contextlib.suppress(queue.Empty):
            while True:
                waiting = self._queue.get_nowait()
                if waiting is not None:
                    self._drop(waiting)
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _about(self, receipt: Receipt, identity: Identity | None) -> dict[str, str]:
        return {
            "TDX_PATH": str(self._folder / receipt.path),
            "TDX_NAME": receipt.name,
            "TDX_SIZE": str(receipt.size),
            "TDX_ROOT": receipt.root,
            "TDX_OWNER": receipt.owner,
            "TDX_PEER": "" if identity is None else identity.node,
            "TDX_USER": "" if identity is None else identity.user,
            "TDX_OUTCOME": receipt.outcome.value,
            "TDX_UPLOAD": receipt.upload,
        }

    def _drop(self, told: _Told) -> None:
        self._metrics.hooks.add(1, (DROPPED,))
        log.warning("upload %s (%s): on_receive is not run: %s", told.upload, shown(told.path), self._why())

    def _why(self) -> str:
        return "too many files wait for it" if self._deadline is None else "the receiver stops"

    # --- in a thread ----------------------------------------------------------

    def _work(self) -> None:
        while (told := self._queue.get()) is not None:
            try:
                result, why, output = self._run(told)
            except Exception as error:  # whatever it was, the next file must be told of
                result, why, output = FAILED, f"cannot be run: {error}", b""
            level = logging.INFO if result == OK else logging.WARNING
            log.log(level, "upload %s (%s): on_receive %s", told.upload, shown(told.path), why)
            for line in output.decode("utf-8", "replace").splitlines():
                log.log(level, "upload %s: on_receive said: %s", told.upload, shown(line))
            self._metrics.hooks.add(1, (result,))  # last: who sees it counted finds it logged

    def _run(self, told: _Told) -> tuple[str, str, bytes]:
        """The result, a word about it, and the beginning of the output."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(writing, True)
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    cwd=self._folder,
                    env=dict(told.env),
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            output = bytearray()
            try:
                late = not self._wait(process, reading, output)
                if late:
                    self._end(process, reading, output)
            except BaseException:
                _signal(process.pid, signal.SIGKILL)
                raise
            finally:
                code = process.wait()
        finally:
            os.close(reading)
        if late:
            return TIMEOUT, f"did not end in time and was ended ({_ending(code)})", bytes(output)
        return (OK if code == 0 else FAILED), f"ended ({_ending(code)})", bytes(output)

    def _wait(self, process: subprocess.Popen[bytes], reading: int, output: bytearray) -> bool:
        """Read what it says until it has ended; False where it has not in its time."""
        end = time.monotonic() + self._timeout
        while not _has_ended(process.pid):
            deadline = self._deadline  # it may come any time
            if time.monotonic() >= (end if deadline is None else min(end, deadline)):
                return False
            _read(reading, output)
        for _ in range(_LAST_READS):
            if not _take(reading, output):
                break
        return True

    def _end(self, process: subprocess.Popen[bytes], reading: int, output: bytearray) -> None:
        """SIGTERM to its process group, then SIGKILL to what is left of that. It has not been waited for
        yet, so the number is still its own."""
        _signal(process.pid, signal.SIGTERM)
        end = time.monotonic() + TERM_SECONDS
        while not _has_ended(process.pid) and time.monotonic() < end:
            _read(reading, output)
        _signal(process.pid, signal.SIGKILL)


def clean(env: Mapping[str, str]) -> dict[str, str]:
    """What a program gets of this process's environment. Its PATH leads to no place that depends on the
    folder it runs in, since there is what others sent."""
    kept = {name: value for name, value in env.items() if name in _KEPT or name.startswith("LC_")}
    path = [each for each in env.get("PATH", "").split(os.pathsep) if each.startswith("/")]
    return {**kept, "PATH": os.pathsep.join(path) or _USUAL_PATH}


def _found(program: str, path: str, folder: Path) -> str:
    """The program, absolute. Not one in DIR: whoever may push could put another in its place."""
    found = shutil.which(program, path=path)
    if found is None:
        raise ConfigError(f"on_receive: there is no program {program} that can be run")
    if Path(found).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"on_receive: {found} lies in the folder that is received into; move it elsewhere")
    return found


def _has_ended(process: int) -> bool:
    """Whether it has, leaving its status to be asked for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _read(reading: int, output: bytearray) -> None:
    """Take what it says next; returns soon also where it says nothing."""
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    if poller.poll(_TICK * 1000) and not _take(reading, output):
        time.sleep(_TICK / 5)  # nobody can say anything any more, so that it will have ended soon


def _take(reading: int, output: bytearray) -> bool:
    """Whether there was something to take."""
    try:
        said = os.read(reading, _READ)
    except BlockingIOError:
        return False
    output += said[: OUTPUT_AT_MOST - len(output)]
    return bool(said)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ending(code: int) -> str:
    return f"exit {code}" if code >= 0 else f"signal {-code}"
