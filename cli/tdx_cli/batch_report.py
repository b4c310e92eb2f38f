"""What a batch tells at its end: how each item fared with each of its peers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

from tdx.model import shown
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.exits import worst
from tdx_cli.progress import REDRAW, TerminalReport
from tdx_cli.push import UNABLE
from tdx_cli.report import Ending, Failure, Overall, Report, Totals, waiting
from tdx_cli.text import columns, flush_said, say, size_of

HEADING: Final = ("ITEM", "PEER", "FILES", "SENT", "OUTCOME", "SECONDS")
COUNTS: Final = ("files", "folders", "links", "refused", "sent_bytes", "resumed_bytes", "reused_bytes")
STYLES: Final = {"failed": "red", "stopped": "yellow", "not begun": "yellow"}


@dataclass(slots=True)
class Part:
    """One item at one peer. ``began``: it was tried; ``stopped``: by a signal or a time limit; ``error``:
    what kept it from pushing anything, or stopped it. ``seconds`` is what it took, ``ended`` when it did, in
    seconds since 1970; 0 where it has not."""

    item: str
    peer: str
    totals: Totals = field(default_factory=Totals)
    seconds: float = 0.0
    ended: float = 0.0
    began: bool = False
    stopped: bool = False
    error: Failure | None = None

    @property
    def outcome(self) -> str:
        """``not begun``, ``stopped``, ``failed`` (some of it is not at the peer), ``nothing`` (nothing was
        there to push), ``unchanged`` (the peer had all of it, or kept what it had) or ``done``."""
        if not self.began:
            return "not begun"
        if self.stopped:
            return "stopped"
        if self.exit_code:
            return "failed"
        if not (self.totals.files or self.totals.folders or self.totals.links):
            return "nothing"
        return "done" if self.totals.events["done"] else "unchanged"

    @property
    def exit_code(self) -> int:
        return worst(self.totals.codes | ({self.error.exit_code} if self.error is not None else set()))

    def document(self) -> dict[str, object]:
        """As it stands in the summary's event."""
        error = self.error
        return {
            "item": self.item,
            "peer": self.peer,
            "outcome": self.outcome,
            "files": self.totals.files,
            **self.totals.events,
            "folders": self.totals.folders,
            "links": self.totals.links,
            "refused": self.totals.refused,
            "sent_bytes": self.totals.sent_bytes,
            "resumed_bytes": self.totals.resumed_bytes,
            "reused_bytes": self.totals.reused_bytes,
            "seconds": round(self.seconds, 6),
            "error": None if error is None else error.document(),
            "exit_code": self.exit_code,
            **waiting(self.totals),
        }

    def row(self) -> tuple[str, ...]:
        """As it stands in the table that people get."""
        totals, outcome = self.totals, self.outcome
        failed = totals.events["failed"]
        if failed and failed < totals.files:
            outcome += f", {failed} of {totals.files} files"
        if self.exit_code:
            outcome += f" ({self.exit_code})"
        seconds = f"{self.seconds:.1f}" if self.began else "-"
        return (
            shown(self.item),
            shown(self.peer),
            str(totals.files),
            size_of(totals.sent_bytes),
            outcome,
            seconds,
        )


def draws(stream: TextIO | None) -> bool:
    """Whether this is a terminal on which more can be done than to write one line after the other."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in UNABLE


def summary_of(name: str, parts: Sequence[Part], seconds: float, exit_code: int) -> dict[str, object]:
    """The last event of a batch."""
    whole = Totals()
    for part in parts:
        for key in COUNTS:
            setattr(whole, key, getattr(whole, key) + getattr(part.totals, key))
        for event, count in part.totals.events.items():
            whole.events[event] += count
        whole.sender.add(part.totals.sender)
        whole.receiver.add(part.totals.receiver)
        whole.retries += part.totals.retries
    whole.bottleneck = name_bottleneck(whole.sender, whole.receiver)
    return {
        "event": "summary",
        "batch": name,
        "files": whole.files,
        **whole.events,
        "folders": whole.folders,
        "links": whole.links,
        "refused": whole.refused,
        "sent_bytes": whole.sent_bytes,
        "resumed_bytes": whole.resumed_bytes,
        "reused_bytes": whole.reused_bytes,
        "seconds": round(seconds, 6),
        "items": [part.document() for part in parts],
        "exit_code": exit_code,
        **waiting(whole),
    }


def say_table(heading: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None]) -> None:
    """Columns as wide as they need to be, figures to the right; on a terminal with colours."""
    if draws(sys.stdout):
        _draw_table(heading, rows, styles)
        return
    for line in columns([heading, *rows], RIGHT):
        say(line, flush=False)
    flush_said()


RIGHT: Final = frozenset({"FILES", "SENT", "BYTES", "SECONDS"})


def _draw_table(heading: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None]) -> None:
    # NO_COLOR is rich's to respect.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in heading:
        table.add_column(title, justify="right" if title in RIGHT else "left", overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*(Text(text, style=style or "none") for text in row))
    Console().print(table)


class Live:
    """One live line on standard error for all that is on its way."""

    def __init__(self) -> None:
        self._bar = TerminalReport(several=True)
        self._latest: dict[int, Overall] = {}
        self._drawn = 0.0

    def part(self, began: float) -> Report:
        """What the run of one part, which begins ``began`` seconds into the batch, is to report to."""
        return _LivePart(self, len(self._latest), began)

    def update(self, part: int, so_far: Overall, elapsed: float) -> None:
        self._latest[part] = so_far
        if elapsed - self._drawn < REDRAW / 2:
            return
        self._drawn = elapsed
        parts = self._latest.values()
        whole = Overall(
            ended=sum(each.ended for each in parts),
            files=_sum([each.files for each in parts]),
            done=sum(each.done for each in parts),
            size=_sum([each.size for each in parts]),
            sent=sum(each.sent for each in parts),
            bottleneck=so_far.bottleneck,
        )
        self._bar.overall(whole, elapsed)

    def clear(self) -> None:
        """The line goes; the next update brings it back."""
        self._bar.clear()

    def begun(self, part: int) -> None:
        self._latest[part] = Overall(0, None, 0, None, 0, None)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


class _LivePart(Report):
    def __init__(self, live: Live, number: int, began: float) -> None:
        self._live, self._number, self._began = live, number, began
        live.begun(number)

    def interval(self, elapsed: float) -> float | None:  # noqa: ARG002  the base's
        return REDRAW

    def overall(self, so_far: Overall, elapsed: float) -> None:
        self._live.update(self._number, so_far, self._began + elapsed)

    def ended(self, ending: Ending) -> None:  # noqa: ARG002  the base's
        self._live.clear()
