"""``--metrics-textfile`` and ``--metrics-push``: how a push ended is told to Prometheus, however it ended."""

from __future__ import annotations

import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from tdx.errors import ConfigError, TdxError, UsageError
from tdx.model import shown
from tdx_cli.main import INTERNAL, INTERRUPTED, IO_ERROR
from tdx_cli.stopping import last_words
from tdx_cli.text import seconds_of, warn

if TYPE_CHECKING:
    from tdx.config.batch import Batch
    from tdx.export.one_shot import Outcome
    from tdx_cli.batch_report import Part
    from tdx_cli.batching import Job
    from tdx_cli.report import Totals

PATIENCE: Final = 5.0
"""Seconds that writing may take when a push is over."""

HURRY: Final = 1.0
"""The same where the process is being ended."""

USELESS: Final = "{} nothing to anybody without --metrics-textfile or --metrics-push"


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where to tell it: a file for node_exporter, the URL of a Pushgateway, or both. ``others`` are the tasks
    and peers that share the file and may not be run this time."""

    textfile: Path | None
    gateway: str | None
    others: frozenset[tuple[str, str]] = frozenset()


class Measuring:
    """Around a push, in ``with``: at its end, or before the process is ended, what ``outcomes`` makes of the
    exit code is written. The exit code stays what it is where that fails, which is told in a line."""

    def __init__(self, outlets: Outlets, outcomes: Callable[[int], Sequence[Outcome]]) -> None:
        self._outlets = outlets
        self._outcomes = outcomes
        self._written = False
        self._last_words = last_words(lambda code: self._write(code, HURRY))
        self._ended = 0.0
        self._ended_at = 0.0
        """When it had ended, by the clock that only grows, and in seconds since 1970."""
        self.code = 0
        """How the push ends, unless by an exception."""

    def __enter__(self) -> Self:
        self._last_words.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._last_words.__exit__(None, None, None)
        for problem in self._write(self.code if error is None else code_of(error), PATIENCE):
            warn(f"{problem}; the push itself is not affected")

    def _write(self, code: int, seconds: float) -> list[str]:
        """What went wrong. In threads: a disk or a name service that does not answer is not waited for."""
        if self._written:
            return []
        self._written = True
        self._ended, self._ended_at = time.monotonic(), time.time()
        until = self._ended + seconds
        started = [_Writing(what, write) for what, write in self._writers(code, seconds)]
        return [problem for each in started if (problem := each.problem(until, seconds)) is not None]

    def _writers(self, code: int, seconds: float) -> list[tuple[str, Callable[[], None]]]:
        textfile, gateway, others = self._outlets.textfile, self._outlets.gateway, self._outlets.others

        def to_file() -> None:
            from tdx.export.one_shot import write_textfile

            assert textfile is not None
            write_textfile(textfile, self._outcomes(code), others)

        def to_gateway() -> None:
            from tdx.export.one_shot import post

            assert gateway is not None
            for outcome in self._outcomes(code):
                post(gateway, outcome, seconds)

        found: list[tuple[str, Callable[[], None]]] = []
        if textfile is not None:
            found.append((f"{shown(str(textfile))}: the measurements were not written", to_file))
        if gateway is not None:
            found.append((f"{shown_url(gateway)}: the measurements were not sent", to_gateway))
        return found


class _Writing:
    def __init__(self, what: str, write: Callable[[], None]) -> None:
        self._what = what
        self._write = write
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._write()
        except OSError as error:
            self._problem = str(error.strerror or error)
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"

    def problem(self, until: float, seconds: float) -> str | None:
        self._thread.join(max(until - time.monotonic(), 0))
        problem = f"not done after {seconds_of(seconds)}" if self._thread.is_alive() else self._problem
        # A Pushgateway may say anything.
        return None if problem is None else f"{self._what}: {shown(problem)}"


def code_of(error: BaseException) -> int:
    """The exit code that :mod:`tdx_cli.main` gives to it."""
    if isinstance(error, TdxError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return IO_ERROR if isinstance(error, OSError) else INTERNAL


# --- a push and a batch -----------------------------------------------------------


class PushMeasuring(Measuring):
    """Of a single push. ``totals`` is what it has come to, once there is something."""

    def __init__(self, outlets: Outlets, task: str, peer: str, interval: float | None) -> None:
        super().__init__(outlets, self._outcome)
        self._task, self.peer, self._interval = task, peer, interval
        self._began = time.monotonic()
        self.totals: Totals | None = None

    def _outcome(self, code: int) -> list[Outcome]:
        seconds = self._ended - self._began
        return [_outcome(self._task, self.peer, self.totals, self._ended_at, seconds, code, self._interval)]


class BatchMeasuring(Measuring):
    """Of each item of a batch at each of its peers; ``intervals`` by the item's name."""

    def __init__(self, outlets: Outlets, parts: Sequence[Part], intervals: dict[str, float | None]) -> None:
        super().__init__(outlets, self._of_all)
        self._parts = parts
        self._intervals = intervals

    def _of_all(self, code: int) -> list[Outcome]:
        return [
            _outcome(
                part.item,
                part.peer,
                part.totals,
                part.ended or self._ended_at,
                part.seconds,
                # What did not come to its end ended as all of it.
                part.exit_code or (0 if part.ended else code),
                self._intervals[part.item],
            )
            for part in self._parts
        ]


def _outcome(
    task: str,
    peer: str,
    totals: Totals | None,
    completed: float,
    seconds: float,
    code: int,
    interval: float | None,
) -> Outcome:
    from tdx.export.one_shot import Outcome
    from tdx_cli.report import Totals

    totals = totals or Totals()
    return Outcome(
        task=task,
        peer=peer,
        completed=completed,
        seconds=seconds,
        exit_code=code,
        size=totals.held_bytes,
        sent=totals.sent_bytes,
        resumed=totals.resumed_bytes,
        reused=totals.reused_bytes,
        retries=totals.retries,
        files=dict(totals.events),
        # All of them, so that none of an earlier run stays at a Pushgateway.
        sender=totals.sender.as_dict(),
        receiver=totals.receiver.as_dict(),
        bottleneck=totals.bottleneck,
        interval=interval,
    )


# --- what is given -----------------------------------------------------------------


def push_measuring(
    textfile: Path | None, url: str | None, task: str | None, interval: float | None, peer: str
) -> PushMeasuring:
    """What the flags of a push ask for; UsageError where that cannot be."""
    if textfile is None and url is None:
        raise UsageError(USELESS.format("--metrics-task and --metrics-interval say"))
    if task is None:
        raise UsageError(
            "measurements need --metrics-task NAME, the same at every run: a name that changes, as one with "
            "a date in it, would begin new series each time"
        )
    if not task.isprintable() or task != task.strip() or not task:
        raise UsageError(f"--metrics-task must be one line without blanks around it, not {task!r}")
    check_outlets(textfile, url)
    return PushMeasuring(Outlets(textfile, url), task, shown(peer), interval)


def check_outlets(textfile: Path | None, url: str | None) -> None:
    """UsageError where nothing could be written or sent, whatever happens."""
    if textfile is not None:
        check_textfile(textfile)
    if url is not None:
        check_url(url)


def check_textfile(path: Path) -> None:
    """UsageError where no such file can be written, or would be read."""
    name = shown(str(path))
    if path.suffix != ".prom":
        raise UsageError(f"{name}: the name must end in .prom, or node_exporter does not read the file")
    if path.is_dir():
        raise UsageError(f"{name}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(
            f"{name}: there is no folder {shown(str(path.parent))}; make it, or name another one"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{name}: files cannot be made in {shown(str(path.parent))} by this user")


def check_url(url: str) -> None:
    """UsageError where this cannot be the address of a Pushgateway."""
    try:
        parts = urllib.parse.urlsplit(url)
        fit = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fit, parts = False, urllib.parse.urlsplit("")
    if not fit or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(
            f"{shown_url(url)}: not the address of a Pushgateway, which is like http://HOST:9091 or https://HOST/PATH"
        )


def shown_url(url: str) -> str:
    """For a message: without a user and a password."""
    scheme, found, rest = url.rpartition("://") if "@" not in url else url.partition("://")
    host = (rest if found else url).rpartition("@")[2]
    return shown(f"{scheme}://{host}" if found else host)


def batch_measuring(
    batch: Batch, jobs: Sequence[Job], textfile: Path | None, url: str | None, interval: float | None
) -> BatchMeasuring | None:
    """What the flags of a batch, or else its file, ask for; UsageError or ConfigError where that cannot
    be."""
    from tdx.control.resolve import Peer

    check_outlets(textfile, url)
    try:
        check_outlets(batch.metrics_textfile, batch.metrics_push)
    except UsageError as error:
        raise ConfigError(f"{batch.path}: {error.message}") from None
    textfile, url = textfile or batch.metrics_textfile, url or batch.metrics_push
    if textfile is None and url is None:
        if interval is not None:
            raise UsageError(USELESS.format("--metrics-interval says"))
        return None
    everybody = frozenset((item.name, str(Peer.parse(peer))) for item in batch.items for peer in item.peers)
    intervals = {item.name: item.metrics_interval if interval is None else interval for item in batch.items}
    parts = [part for job in jobs for part in job.parts.values()]
    return BatchMeasuring(Outlets(textfile, url, everybody), parts, intervals)
