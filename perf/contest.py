"""A contest: everybody moves the same source under the same conditions, in turn, round after round."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from perf import cache
from perf.content import count_of, remove, same_content, scratch, size_of
from perf.model import Contestant, Fallible, Missing, Run, Running, Series, Settings, Table
from perf.processes import cpu_seconds, timed, tree, wait_for_newcomers

T = TypeVar("T")


def contest(
    title: str,
    contestants: Sequence[Contestant],
    source: Path | Sequence[Path],
    settings: Settings,
    *,
    on_disk: bool = False,
    cold: bool = False,
    conditions: Mapping[str, str] | None = None,
    rounds: int | None = None,
    with_memory: bool = True,
    aside: Path | None = None,
) -> Table:
    """Run everybody ``rounds`` times on ``source``, a file or a folder, and tabulate the whole processes.
    Several sources, all of the same total size, are one for each contestant.

    The target is on the disk (everything written back before each run) or in memory. Before every run
    the source is in the page cache (or out of it, where ``cold``) and the memory that the copy will take
    was touched a moment ago; afterwards, outside the clock, the copy is compared and removed. Each round
    begins with another contestant. Round 0 counts for memory only: sampling costs time, and nobody should
    pay for being first. With ``aside``, a folder on the target's filesystem, copies are moved there instead
    of being removed: for minutes after many files have been deleted, ext4 makes new ones slowly.

    A contestant that is Missing has no runs. RuntimeError where one fails or leaves something that differs.
    """
    sources = [source] * len(contestants) if isinstance(source, Path) else source
    entries = [_Entry(contestant, its) for contestant, its in zip(contestants, sources, strict=True)]
    rounds = settings.rounds if rounds is None else rounds
    with (
        scratch(settings.disk) as homes,
        scratch(settings.disk if on_disk else settings.memory) as targets,
        contextlib.ExitStack() as stack,
    ):
        for number, entry in enumerate(entries):
            home, target = homes / str(number), targets / str(number)
            home.mkdir(mode=0o700)
            target.mkdir()
            try:
                entry.running = stack.enter_context(entry.contestant.running(home, target))
            except Missing as missing:
                entry.missing = str(missing)
        ready = [entry for entry in entries if entry.running is not None]
        for turn in range(0 if with_memory else 1, rounds + 1):
            for entry in [each for each in rotated(ready, turn) if each.missing is None]:
                entry.take_part(settings, on_disk=on_disk, cold=cold, counts=turn > 0)
                entry.take_away(aside)
    series = tuple(entry.series() for entry in entries)
    return Table(title, size_of(sources[0]), count_of(sources[0]), dict(conditions or {}), series)


def rotated(entries: Sequence[T], turn: int) -> list[T]:
    """Round ``turn`` of A B C: A B C, B C A, C A B, and so on."""
    start = turn % len(entries) if entries else 0
    return [*entries[start:], *entries[:start]]


@dataclass
class _Entry:
    contestant: Contestant
    source: Path
    running: Running | None = None
    missing: str | None = None
    memory: int | None = None
    runs: list[Run] = field(default_factory=list)

    def take_part(self, settings: Settings, *, on_disk: bool, cold: bool, counts: bool) -> None:
        assert self.running is not None
        attempts = self.contestant.attempts if isinstance(self.contestant, Fallible) else 1
        for left in reversed(range(attempts)):
            try:
                command = self.running.command(self.source)
            except Missing as missing:
                self.missing = str(missing)
                return
            prepare(self.source, settings, on_disk=on_disk, cold=cold)
            try:
                self._run(command, self.running.servers, counts=counts)
                break
            except RuntimeError as error:
                if not left:
                    raise RuntimeError(f"{self.contestant.name}: {error}") from None
                print(f"  once more, since {self.contestant.name} failed: {error}", file=sys.stderr)
                if (arrived := self.running.arrived(self.source)).exists():
                    remove(arrived)

    def _run(self, command: Sequence[str], servers: Sequence[int], *, counts: bool) -> None:
        before, used = tree(servers), cpu_seconds(servers)
        try:
            done = timed(command, with_memory_of=None if counts else servers)
        finally:
            wait_for_newcomers(servers, before)
        if counts:
            self.runs.append(Run(done.seconds, done.cpu, cpu_seconds(servers) - used))
        else:
            self.memory = done.memory

    def take_away(self, aside: Path | None) -> None:
        """Check what has arrived, if it took part, and put it out of the way."""
        if self.missing is not None or self.running is None:
            return
        arrived = self.running.arrived(self.source)
        if not same_content(self.source, arrived):
            name = self.contestant.name
            raise RuntimeError(f"{name}: what arrived at {arrived} differs from {self.source}")
        if aside is None:
            remove(arrived)
        else:
            aside.mkdir(exist_ok=True)
            arrived.rename(aside / str(sum(1 for _ in aside.iterdir())))

    def series(self) -> Series:
        runs = tuple(replace(run, memory=self.memory) for run in self.runs)
        return Series(self.contestant.name, self.contestant.does, runs, self.missing)


def prepare(source: Path, settings: Settings, *, on_disk: bool, cold: bool) -> None:
    """Before every run: nothing left to write back where that matters, the source in the page cache or out of
    it, memory touched lately."""
    if on_disk:
        cache.settle()
    if cold:
        cache.drop(source)
    else:
        cache.read_once(source)
    cache.warm(settings.memory, space_of(source))


def space_of(source: Path) -> int:
    """The bytes that a copy of it will take up: holes take none."""
    return sum(
        min(status.st_size, status.st_blocks * 512)
        for status in (path.stat() for path in cache.files_of(source))
    )
