"""What a push tells: JSON events for scripts, lines for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tdx.errors import TdxError
from tdx.model import shown
from tdx.policy.exits import worst
from tdx_cli.text import rate_of, say, seconds_of, size_of

if TYPE_CHECKING:
    from tdx.control.progress import Tally
    from tdx_cli.plan import Item

OUTCOMES: Final = {"published": "done", "identical": "identical", "skipped": "skipped"}
"""How an outcome of the engine is called in events."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file was not pushed: the ``error`` of an event."""

    code: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: TdxError) -> Failure:
        return cls(error.code, error.message, error.exit_code)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one file ended. ``event`` is one of done, identical, skipped, failed; the last has an
    ``error`` and neither ``root`` nor ``path``."""

    event: str
    name: str
    size: int | None
    sent_bytes: int
    resumed_bytes: int
    seconds: float
    root: str | None = None
    path: str | None = None
    error: Failure | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code


class Report:
    """Told what happens, in the loop's thread. This one says nothing (-q); others override."""

    def started(self, item: Item) -> None:
        """A file is about to be pushed."""

    def interval(self, elapsed: float) -> float | None:  # noqa: ARG002  for those that override
        """Seconds until :meth:`progress` is wanted next, ``elapsed`` seconds into a file;
        None: never."""
        return None

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        """``elapsed`` seconds into a file."""

    def ended(self, ending: Ending) -> None:
        """The file that was started last has ended."""

    def summary(self, endings: Sequence[Ending], seconds: float) -> None:
        """All of several files have ended, in ``seconds`` together."""


def json_interval(elapsed: float) -> float:
    """Often while it is short, seldom while it is long: 2 % of the time so far, in [0.1, 10] s."""
    return min(max(elapsed * 0.02, 0.1), 10.0)


class JsonReport(Report):
    """One JSON object a line on standard output; docs/cli.md describes them."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._due = 0.0

    def started(self, item: Item) -> None:
        self._due = 0.0
        self._say({"event": "started", "name": item.name, "size": item.size, "peer": self._peer})

    def interval(self, elapsed: float) -> float | None:
        return json_interval(elapsed)

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        if elapsed < self._due:
            return
        self._due = elapsed + json_interval(elapsed)
        self._say(
            {
                "event": "progress",
                "name": item.name,
                "size": tally.total,
                "phase": tally.phase,
                "sent_bytes": tally.sent,
                "resumed_bytes": tally.resumed,
                "checked_bytes": tally.checked,
                "retries": tally.retries,
                "seconds": round(elapsed, 6),
                "bottleneck": bottleneck,
            }
        )

    def ended(self, ending: Ending) -> None:
        error = ending.error
        self._say(
            {
                "event": ending.event,
                "name": ending.name,
                "size": ending.size,
                "sent_bytes": ending.sent_bytes,
                "resumed_bytes": ending.resumed_bytes,
                "seconds": round(ending.seconds, 6),
                "root": ending.root,
                "path": ending.path,
                "error": None
                if error is None
                else {"code": error.code, "message": error.message, "exit_code": error.exit_code},
            }
        )

    def summary(self, endings: Sequence[Ending], seconds: float) -> None:
        self._say(
            {
                "event": "summary",
                "files": len(endings),
                **_counts(endings),
                "sent_bytes": sum(each.sent_bytes for each in endings),
                "resumed_bytes": sum(each.resumed_bytes for each in endings),
                "seconds": round(seconds, 6),
                "exit_code": worst(each.exit_code for each in endings),
            }
        )

    @staticmethod
    def _say(event: dict[str, object]) -> None:
        # ASCII only: a name that is no valid Unicode must not end the push.
        say(json.dumps(event, separators=(",", ":")))


class TextReport(Report):
    """A line on standard output for each file that is at the peer now."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def ended(self, ending: Ending) -> None:
        if ending.error is None:
            say(self._line(ending))

    def _line(self, ending: Ending) -> str:
        name, path = shown(ending.name), shown(ending.path or "")
        if ending.event == "identical":
            return f"{name}: already at {self._peer} as {path}, identical"
        if ending.event == "skipped":
            return f"{name}: left out, {self._peer} already has {path}"
        line = (
            f"{name} -> {path} at {self._peer}  {size_of(ending.size or 0)} in {seconds_of(ending.seconds)}"
        )
        line += f" ({rate_of(ending.sent_bytes, ending.seconds)})"
        if ending.resumed_bytes:
            line += f", {size_of(ending.resumed_bytes)} resumed"
        return line

    def summary(self, endings: Sequence[Ending], seconds: float) -> None:
        counts = ", ".join(f"{count} {event}" for event, count in _counts(endings).items() if count)
        sent = sum(each.sent_bytes for each in endings)
        say(f"{len(endings)} files: {counts or 'none'}; {size_of(sent)} sent in {seconds_of(seconds)}")


class Several(Report):
    """Several reports of one push, the one that owns the terminal's last line first."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._reports = reports

    def started(self, item: Item) -> None:
        for report in self._reports:
            report.started(item)

    def interval(self, elapsed: float) -> float | None:
        wanted = [report.interval(elapsed) for report in self._reports]
        return min((seconds for seconds in wanted if seconds is not None), default=None)

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        for report in self._reports:
            report.progress(item, tally, elapsed, bottleneck)

    def ended(self, ending: Ending) -> None:
        for report in self._reports:
            report.ended(ending)

    def summary(self, endings: Sequence[Ending], seconds: float) -> None:
        for report in self._reports:
            report.summary(endings, seconds)


def _counts(endings: Sequence[Ending]) -> dict[str, int]:
    return {
        event: sum(each.event == event for each in endings)
        for event in ("done", "identical", "skipped", "failed")
    }
