"""The live line on a terminal: how much, how fast, how long still, and what holds it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tdx.model import shown
from tdx.policy.speed import Speed
from tdx_cli.report import Ending, Overall, Report
from tdx_cli.text import seconds_of, size_of

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tdx.control.items import Item
    from tdx.control.progress import Tally

PATIENCE: Final = 0.5
"""Seconds before a file gets a line: most small ones never need it, nor the import of rich."""

REDRAW: Final = 0.2
"""Seconds between two pictures: more would take the interpreter from the threads that hash."""

ROOM_FOR_A_BAR: Final = 100
"""Columns of a terminal that has room for a bar beside the figures and what holds it up."""

PHASES: Final = {
    "connecting": "connecting",
    "checking": "comparing with what is there",
    "committing": "making it durable",
}
"""What stands in the place of the bottleneck while no content travels."""


def percentage(done: int, total: int | None) -> str:
    """Never 100 % before it is: ``47%``; empty where the total is unknown."""
    if total is None:
        return ""
    return f"{min(done * 100 // total, 100)}%" if total else "100%"


class TerminalReport(Report):
    """One line on standard error: for the file that is on its way, gone when it has ended, or for the
    run as a whole where there are ``several``."""

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self._speed = Speed()
        self._live: Progress | None = None
        self._task: TaskID | None = None

    def interval(self, elapsed: float) -> float | None:
        return REDRAW if elapsed >= PATIENCE else PATIENCE - elapsed

    def progress(self, item: Item, tally: Tally, elapsed: float, bottleneck: str | None) -> None:
        if self._several:
            return
        checking = tally.phase == "checking"
        moved = tally.checked if checking else tally.sent
        done = moved if checking else moved + tally.resumed + tally.reused
        limited = "" if bottleneck is None else f"limited by {bottleneck}"
        note = PHASES.get(tally.phase, limited)
        self._draw(shown(item.name), moved, done, tally.total, note, elapsed)

    def overall(self, so_far: Overall, elapsed: float) -> None:
        if not self._several:
            return
        title = f"{so_far.ended} files" if so_far.files is None else f"{so_far.ended} of {so_far.files} files"
        note = "" if so_far.bottleneck is None else f"limited by {so_far.bottleneck}"
        self._draw(title, so_far.sent, so_far.done, so_far.size, note, elapsed)

    def _draw(self, title: str, moved: int, done: int, total: int | None, note: str, elapsed: float) -> None:
        if total is not None:
            # What is sent twice after a broken connection counts once here.
            done = min(done, total)
        self._speed.observe(moved, elapsed)
        if elapsed < PATIENCE:
            return
        rate = self._speed.rate
        left = None if total is None else self._speed.eta(total - done)
        live, task = self._line()
        live.update(
            task,
            description=title,
            total=total,
            completed=done,
            percent=percentage(done, total),
            size=size_of(done) if total is None else f"{size_of(done)} of {size_of(total)}",
            rate="" if rate is None else f"{size_of(rate)}/s",
            eta="" if left is None else f"{seconds_of(left)} left",
            note=note,
        )
        live.refresh()

    def ended(self, ending: Ending) -> None:  # noqa: ARG002  the base's
        # A line of another report follows. Where the run goes on, the next picture brings it back.
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._live is not None:
            self._live.stop()
            self._live = self._task = None

    def _line(self) -> tuple[Progress, TaskID]:
        if self._live is not None and self._task is not None:
            return self._live, self._task
        # NO_COLOR and dumb terminals are rich's to respect.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        def text(key: str, style: str = "none", least: int | None = None) -> TextColumn:
            # Where the terminal is narrow, the words give way to the figures.
            column = Column(no_wrap=True, min_width=least)
            return TextColumn(f"{{task.fields[{key}]}}", style=style, markup=False, table_column=column)

        console = Console(stderr=True)
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            text("percent", least=4),
            *([BarColumn(bar_width=20)] if console.width >= ROOM_FOR_A_BAR else []),
            text("size", least=20),
            text("rate", "green", least=11),
            text("eta", "cyan", least=10),
            text("note", "yellow"),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._live.add_task("", total=None, percent="", size="", rate="", eta="", note="")
        self._live.start()
        return self._live, self._task
