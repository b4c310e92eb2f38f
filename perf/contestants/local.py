"""What copies within one machine: the floor under every transfer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contestants.programs import Serving
from perf.model import Running


@dataclass(frozen=True)
class Cp:
    """``cp`` of a file, ``cp -r`` of a folder; with ``then_sync``, everything is durable once it has ended,
    by one ``sync`` of the target's filesystem within the time measured."""

    then_sync: bool = False

    @property
    def name(self) -> str:
        return "cp && sync" if self.then_sync else "cp"

    @property
    def does(self) -> str:
        return f"no network, no hash, {'one sync at the end' if self.then_sync else 'no fsync'}"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        both = ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh"]
        words = both if self.then_sync else ["cp", "-r"]
        yield Serving((), target, lambda source: [*words, str(source), str(target / source.name)])


@dataclass(frozen=True)
class Dd:
    """``dd`` with its one fsync at the end: what durability alone costs."""

    name: str = "dd conv=fsync"
    does: str = "no network, no hash, fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        words = ["dd", "bs=1M", "conv=fsync", "status=none"]
        yield Serving((), target, lambda source: [*words, f"if={source}", f"of={target / source.name}"])
