"""What copies within one machine: the floor under every transfer. And whatever is followed by `sync`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contest import Contestant, Running


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
    """``cp`` of a file, ``cp -r`` of a folder."""

    name: str = "cp"
    does: str = "no network, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
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


class Synced:
    """Another contestant, whose command is followed by ``sync``: durable once it has ended."""

    def __init__(self, inner: Contestant) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        return f"{self._inner.name}, sync"

    @property
    def does(self) -> str:
        return f"{self._inner.does}; then sync of everything"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        with self._inner.running(home, target) as running:
            yield _SyncedRunning(running)


@dataclass(frozen=True)
class _SyncedRunning:
    inner: Running

    @property
    def servers(self) -> Sequence[int]:
        return self.inner.servers

    def command(self, source: Path) -> Sequence[str]:
        return ["sh", "-c", '"$@" && sync', "sh", *self.inner.command(source)]

    def arrived(self, source: Path) -> Path:
        return self.inner.arrived(source)
