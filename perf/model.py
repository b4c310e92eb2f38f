"""The words of every contest: who takes part, what one run cost, and what a scenario found out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable


class Missing(Exception):
    """A contestant cannot take part here; the message says what would have to be installed."""


class Running(Protocol):
    """A contestant whose receiving side is up."""

    @property
    def servers(self) -> Sequence[int]:
        """The processes of the receiving side, for CPU time and memory. With their children, which
        may come and go; empty where the one command does it all."""
        ...

    def command(self, source: Path) -> Sequence[str]:
        """The whole process that is timed: it copies ``source``, a file or a folder, to the target and
        ends with 0 only when the receiving side has all of it."""
        ...

    def arrived(self, source: Path) -> Path:
        """Where ``source`` is after :meth:`command` has run: compared outside the clock, then removed."""
        ...


class Contestant(Protocol):
    """A way of getting files from one place to another."""

    @property
    def name(self) -> str:
        """As tables show it: ``tdx``, ``cp``, ``curl → nginx``."""
        ...

    @property
    def does(self) -> str:
        """What it does beyond moving bytes, and what it leaves out, in a few words:
        ``TLS, XXH3-128 at both ends, fsync``; ``no hash, no fsync``."""
        ...

    def running(self, home: Path, target: Path) -> AbstractContextManager[Running]:
        """Start the receiving side, which writes below ``target``; ``home`` is an empty folder for keys,
        configuration and state. :class:`Missing` where a program is not there."""
        ...


@runtime_checkable
class Fallible(Protocol):
    """A contestant, none of ours, some of whose runs fail by no fault of the suite's."""

    @property
    def attempts(self) -> int:
        """How often a run is begun until it counts as failed. Only the one that worked is timed."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """One whole process, exec to exit. CPU is user plus system seconds, children included; ``memory`` the
    highest sum of both ends' PSS in bytes, sampled, or None where it was not; ``figures`` what else a
    scenario measures, by the name of its unit (``resent_bytes``, ``first_byte_seconds``)."""

    seconds: float
    sender_cpu: float
    receiver_cpu: float
    memory: int | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """The runs of one contestant under one set of conditions, in the order of the rounds: the n-th run of
    each contestant of a :class:`Table` belongs to the n-th round."""

    contestant: str
    does: str
    runs: tuple[Run, ...]
    missing: str | None = None
    """Why there are no runs."""


@dataclass(frozen=True, slots=True)
class Table:
    """Contestants under the same conditions. ``bytes`` and ``files`` are what one run moves;
    ``conditions`` what tells this table from the scenario's others, in the order of the columns
    (``{"round trip": "100 ms", "loss": "0.1 %"}``)."""

    title: str
    bytes: int
    files: int
    conditions: dict[str, str]
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One figure of the targets: ``value``, whose runs lie between ``low`` and ``high``, against ``goal`` and
    ``gate``; ``better`` is ``lower`` or ``higher``."""

    id: str
    what: str
    unit: str
    value: float
    low: float
    high: float
    goal: float
    gate: float
    better: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scenario found out. ``notes`` are sentences for the report: the state of the page cache, the
    sizes, what was left out and why."""

    scenario: str
    title: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """How large, how often, and where. ``disk`` and ``memory`` are folders on a disk and on a tmpfs;
    ``rounds`` how often each contestant runs; ``scale`` 1.0 for the sizes of the targets, less for a quick
    look."""

    disk: Path
    memory: Path
    rounds: int = 5
    scale: float = 1.0

    def sized(self, size: int) -> int:
        """``size`` bytes, or the share of it that ``scale`` asks for."""
        return max(1, int(size * self.scale))
