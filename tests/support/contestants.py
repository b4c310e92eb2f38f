"""Somebody who takes part in a contest of the benchmarks, with a shell command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from perf.model import Missing, Running


@dataclass
class Scripted:
    """Takes part with a shell command; writes its name into ``order`` for each run."""

    name: str
    script: str = 'cp -r "$1" "$2"'
    does: str = "as it is told"
    order: list[str] = field(default_factory=list)
    missing: str | None = None

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        if self.missing == "at once":
            raise Missing("it is not installed")
        yield ScriptedRunning(self, target)


@dataclass
class ScriptedRunning:
    of: Scripted
    target: Path
    servers: Sequence[int] = ()

    def command(self, source: Path) -> Sequence[str]:
        if self.of.missing == "for this":
            raise Missing("it copies nothing of this kind")
        self.of.order.append(self.of.name)
        return ["sh", "-c", self.of.script, "sh", str(source), str(self.arrived(source))]

    def arrived(self, source: Path) -> Path:
        return self.target / source.name
