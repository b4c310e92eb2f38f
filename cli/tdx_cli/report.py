"""What a push tells: JSON events for scripts, lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tdx.errors import TdxError
from tdx.model import Stages, shown
from tdx.policy.exits import worst
from tdx_cli.text import count_of, flush_said, rate_of, say, say_json, seconds_of, size_of

if TYPE_CHECKING:
    from tdx.control.items import Item, PartEnded
    from tdx.control.progress import Tally

OUTCOMES: Final = {"published": "done", "identical": "identical", "skipped": "skipped"}
"""How an outcome of the engine is called in events."""

LONG_SECONDS: Final = 5.0
"""Who waited so long for a file is told what for."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file was not pushed, or moved: the ``error`` of an event."""

    code: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: TdxError) -> Failure:
        return cls(error.code, error.message, error.exit_code)

    def document(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "exit_code": self.exit_code}


@dataclass(slots=True)
class Ending:
    """How one file ended. ``event`` is one of done, identical, skipped, failed; the last has an
    ``error`` and neither ``root`` nor ``path``. ``together``: with other files, and ``seconds`` is
    what they all took. ``sender`` and ``receiver`` are the stage seconds of both ends, of files together this
    one's share."""

    event: str
    name: str
    size: int | None
    sent_bytes: int
    resumed_bytes: int
    seconds: float
    root: str | None = None
    path: str | None = None
    error: Failure | None = None
    together: bool = False
    reused_bytes: int = 0
    sender: Stages = field(default_factory=Stages)
    receiver: Stages = field(default_factory=Stages)
    bottleneck: str | None = None
    retries: int = 0

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code


@dataclass(slots=True)
class Totals:
    """The sum of the files that have ended, and apart from them of the folders and links that are at the
    peer; ``refused`` are those that are not. ``held_bytes`` is the size of the files that the peer has now,
    ``sender`` and ``receiver`` the stage seconds of both ends, ``bottleneck`` what all of it waited for."""

    files: int = 0
    folders: int = 0
    links: int = 0
    refused: int = 0
    sent_bytes: int = 0
    resumed_bytes: int = 0
    reused_bytes: int = 0
    held_bytes: int = 0
    events: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("done", "identical", "skipped", "failed"), 0)
    )
    codes: set[int] = field(default_factory=set[int])
    sender: Stages = field(default_factory=Stages)
    receiver: Stages = field(default_factory=Stages)
    bottleneck: str | None = None
    retries: int = 0

    def add(self, ending: Ending) -> None:
        self.files += 1
        self.retries += ending.retries
        self.sender.add(ending.sender)
        self.receiver.add(ending.receiver)
        self.sent_bytes += ending.sent_bytes
        self.resumed_bytes += ending.resumed_bytes
        self.reused_bytes += ending.reused_bytes
        if ending.event in {"done", "identical"}:
            self.held_bytes += ending.size or 0
        self.events[ending.event] += 1
        self.codes.add(ending.exit_code)

    def add_part(self, ending: PartEnded) -> None:
        if ending.error is not None:
            self.refused += 1
            self.codes.add(ending.error.exit_code)
        elif kind_of(ending) == "folder":
            self.folders += 1
        else:
            self.links += 1


@dataclass(slots=True)
class Overall:
    """How far a run of several files is. ``files`` and ``size`` are None until all have been seen;
    ``done`` is in bytes, what need not be sent among them; ``sent`` only grows."""

    ended: int
    files: int | None
    done: int
    size: int | None
    sent: int
    bottleneck: str | None


def kind_of(ending: PartEnded) -> str:
    """``folder`` or ``link``."""
    return type(ending.part).__name__.lower()


class Report:
    """Told what happens, in the loop's thread. This one says nothing (-q); others override."""

    def started(self, item: Item) -> None:
        """A file is about to be pushed."""

    def interval(self, elapsed: float) -> float | None:  # noqa: ARG002  for those that override
        """Seconds until :meth:`progress` and :meth:`overall` are wanted next, ``elapsed`` seconds into
        a file, or where small ones are on their way into the run; None: never."""
        return None

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        """``elapsed`` seconds into a file that travels by itself."""

    def overall(self, so_far: Overall, elapsed: float) -> None:
        """``elapsed`` seconds into the run."""

    def ended(self, ending: Ending) -> None:
        """A file that was started has ended."""

    def part_ended(self, ending: PartEnded) -> None:
        """A folder or a link has ended. Nobody was told before that it began."""

    def flush(self) -> None:
        """Nothing more happens for now."""

    def summary(self, totals: Totals, seconds: float) -> None:
        """All of several files have ended, in ``seconds`` together."""


def waiting(of: Ending | Totals) -> dict[str, object]:
    """Where the time went, as it stands in events."""
    return {
        "stages": {"sender": of.sender.took_time(), "receiver": of.receiver.took_time()},
        "bottleneck": of.bottleneck,
        "retries": of.retries,
    }


def limited_by(of: Ending | Totals, seconds: float) -> str:
    """How a line ends for people who waited so long."""
    return f", limited by {of.bottleneck}" if of.bottleneck and seconds >= LONG_SECONDS else ""


def json_interval(elapsed: float) -> float:
    """Often while it is short, seldom while it is long: 2 % of the time so far, in [0.1, 10] s."""
    return min(max(elapsed * 0.02, 0.1), 10.0)


class JsonReport(Report):
    """One JSON object a line on standard output; docs/cli.md describes them. In a batch each says which
    ``item`` it is of, and of which peer."""

    def __init__(self, peer: str, item: str | None = None) -> None:
        self._peer = peer
        self._also = {} if item is None else {"item": item, "peer": peer}
        self._due: dict[str, float] = {}

    def started(self, item: Item) -> None:
        self._due.pop(item.name, None)
        self._say({"event": "started", "name": item.name, "size": item.size, "peer": self._peer})

    def interval(self, elapsed: float) -> float | None:
        return json_interval(elapsed)

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        if elapsed < self._due.get(item.name, 0.0):
            return
        self._due[item.name] = elapsed + json_interval(elapsed)
        self._say(
            {
                "event": "progress",
                "name": item.name,
                "size": tally.total,
                "phase": tally.phase,
                "sent_bytes": tally.sent,
                "resumed_bytes": tally.resumed,
                "reused_bytes": tally.reused,
                "checked_bytes": tally.checked,
                "retries": tally.retries,
                "seconds": round(elapsed, 6),
                "bottleneck": bottleneck,
            }
        )
        self.flush()

    def ended(self, ending: Ending) -> None:
        error = ending.error
        self._say(
            {
                "event": ending.event,
                "name": ending.name,
                "size": ending.size,
                "sent_bytes": ending.sent_bytes,
                "resumed_bytes": ending.resumed_bytes,
                "reused_bytes": ending.reused_bytes,
                "seconds": round(ending.seconds, 6),
                "root": ending.root,
                "path": ending.path,
                "error": None if error is None else error.document(),
                **waiting(ending),
            }
        )

    def part_ended(self, ending: PartEnded) -> None:
        error = ending.error
        self._say(
            {
                "event": kind_of(ending),
                "name": ending.part.name,
                "outcome": ending.outcome,
                "path": ending.path,
                "error": None if error is None else Failure.of(error).document(),
            }
        )

    def flush(self) -> None:
        flush_said()

    def summary(self, totals: Totals, seconds: float) -> None:
        self._say(
            {
                "event": "summary",
                "files": totals.files,
                **totals.events,
                "folders": totals.folders,
                "links": totals.links,
                "refused": totals.refused,
                "sent_bytes": totals.sent_bytes,
                "resumed_bytes": totals.resumed_bytes,
                "reused_bytes": totals.reused_bytes,
                "seconds": round(seconds, 6),
                "exit_code": worst(totals.codes),
                **waiting(totals),
            }
        )
        self.flush()

    def _say(self, event: dict[str, object]) -> None:
        say_json({**event, **self._also}, flush=False)


class TextReport(Report):
    """A line on standard output for each file that is at the peer now. ``brief``: only for each that was
    sent; others, and folders and links, are in the sum."""

    def __init__(self, peer: str, *, brief: bool = False) -> None:
        self._peer = peer
        self._brief = brief

    def ended(self, ending: Ending) -> None:
        if ending.error is None and not (self._brief and ending.event in ("identical", "skipped")):
            say(self._line(ending), flush=False)

    def part_ended(self, ending: PartEnded) -> None:
        if ending.error is None and not self._brief:
            what = {"same": "already at", "made": "made at", "skipped": "left out, taken at"}[ending.outcome]
            name, path = shown(ending.part.name), shown(ending.path or "")
            say(f"{name}: {kind_of(ending)} {what} {self._peer} as {path}", flush=False)

    def _line(self, ending: Ending) -> str:
        name, path = shown(ending.name), shown(ending.path or "")
        if ending.event == "identical":
            return f"{name}: already at {self._peer} as {path}, identical"
        if ending.event == "skipped":
            return f"{name}: left out, {self._peer} already has {path}"
        line = f"{name} -> {path} at {self._peer}  {size_of(ending.size or 0)}"
        if ending.together:
            return line
        line += f" in {seconds_of(ending.seconds)} ({rate_of(ending.sent_bytes, ending.seconds)})"
        if ending.resumed_bytes:
            line += f", {size_of(ending.resumed_bytes)} resumed"
        if ending.reused_bytes:
            taken = size_of(ending.reused_bytes)
            line += f", {size_of(ending.sent_bytes)} sent, {taken} taken from the earlier version"
        return line + limited_by(ending, ending.seconds)

    def flush(self) -> None:
        flush_said()

    def summary(self, totals: Totals, seconds: float) -> None:
        counts = ", ".join(f"{count} {event}" for event, count in totals.events.items() if count)
        others = {
            "folder": totals.folders,
            "link": totals.links,
        }
        parts = "".join(f"; {count_of(count, what)}" for what, count in others.items() if count)
        if totals.refused:
            parts += f"; {totals.refused} folders or links refused"
        say(
            f"{count_of(totals.files, 'file')}: {counts or 'none'}{parts};"
            f" {size_of(totals.sent_bytes)} sent in {seconds_of(seconds)}{limited_by(totals, seconds)}"
        )


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

    def overall(self, so_far: Overall, elapsed: float) -> None:
        for report in self._reports:
            report.overall(so_far, elapsed)

    def ended(self, ending: Ending) -> None:
        for report in self._reports:
            report.ended(ending)

    def part_ended(self, ending: PartEnded) -> None:
        for report in self._reports:
            report.part_ended(ending)

    def flush(self) -> None:
        for report in self._reports:
            report.flush()

    def summary(self, totals: Totals, seconds: float) -> None:
        for report in self._reports:
            report.summary(totals, seconds)
