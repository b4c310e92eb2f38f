"""P7: the same bytes as one file, as many files from one process, and from many processes at once."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf import targets
from perf.content import GIB, folder_of, random_file, scratch
from perf.contest import contest
from perf.contestants.tdx import DOES, Receiver, Tdx
from perf.model import Outcome, Settings
from perf.processes import TDX
from perf.tables import time_ratios

FILES: Final = 64
PROCESSES: Final = (1, 4, 16, 64)


@dataclass(frozen=True)
class AtOnce:
    """So many ``tdx push`` at once, each with its share of the files of a folder."""

    processes: int

    @property
    def name(self) -> str:
        return f"tdx: {FILES} files, {self.processes} process{'es' if self.processes > 1 else ''}"

    @property
    def does(self) -> str:
        return DOES

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[_AtOnceRunning]:
        inbox = target / "inbox"
        inbox.mkdir()
        with Tdx().running(home, inbox) as receiver:
            yield _AtOnceRunning(receiver, self.processes, target / "gathered")


@dataclass(frozen=True)
class _AtOnceRunning:
    receiver: Receiver
    processes: int
    gathered: Path

    @property
    def servers(self) -> Sequence[int]:
        return self.receiver.servers

    def command(self, source: Path) -> Sequence[str]:
        files = sorted(map(str, source.iterdir()))
        pushes = [
            [*TDX, "push", *files[start :: self.processes], self.receiver.peer, *self.receiver.options]
            for start in range(self.processes)
        ]
        if self.processes == 1:
            return pushes[0]
        # A shell that starts them all and fails where one of them does.
        starts = "".join(f'{shlex.join(push)} & pids="$pids $!"\n' for push in pushes)
        return ["sh", "-c", f"{starts}for pid in $pids; do wait $pid || failed=1; done; exit ${{failed:-0}}"]

    def arrived(self, source: Path) -> Path:
        """The files, moved out of the inbox into a folder that has nothing else."""
        self.gathered.mkdir()
        for path in self.receiver.inbox.iterdir():
            if path.is_file():
                path.rename(self.gathered / path.name)
        return self.gathered


def run(settings: Settings) -> Outcome:
    total = settings.sized(3 * GIB)
    one = Tdx("tdx: one file, 1 process")
    many = [AtOnce(processes) for processes in PROCESSES]
    with scratch(settings.disk) as home:
        whole = random_file(home / "whole", total // FILES * FILES)
        parts = folder_of(home / "parts", [total // FILES] * FILES)
        sources = [whole, *[parts] * len(many)]
        table = contest("The same bytes", (one, *many), sources, settings)
    notes = (
        (
            f"Page cache to tmpfs. {FILES} files of one size; so many tdx push run at once, each with "
            "its share of the files, to one tdx serve."
        ),
        "The target is for one process that pushes all the files.",
    )
    throughput = targets.P7.reached_by(time_ratios(table, one.name, many[0].name))
    return Outcome("many", "Many pushes at once", notes, (table,), (throughput,))
