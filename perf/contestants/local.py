"""What copies within one machine: the floor under every transfer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contest import Running


@dataclass(frozen=True)
class _Local:
    """A :class:`perf.contest.Running` of one command: ``{source}`` and ``{copy}`` are filled in."""

    words: tuple[str, ...]
    target: Path

    @property
    def servers(self) -> Sequence[int]:
        return ()

    def command(self, source: Path) -> Sequence[str]:
        return [word.format(source=source, copy=self.arrived(source)) for word in self.words]

    def arrived(self, source: Path) -> Path:
        return self.target / source.name


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
        if self.then_sync:
            both = 'cp -r "$1" "$2" && sync -f "$2"'
            yield _Local(("sh", "-c", both, "sh", "{source}", "{copy}"), target)
        else:
            yield _Local(("cp", "-r", "{source}", "{copy}"), target)


@dataclass(frozen=True)
class Dd:
    """``dd`` with its one fsync at the end: what durability alone costs."""

    name: str = "dd conv=fsync"
    does: str = "no network, no hash, fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        words = ("dd", "bs=1M", "conv=fsync", "status=none", "if={source}", "of={copy}")
        yield _Local(words, target)
