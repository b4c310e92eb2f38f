"""P4: a push that was killed is continued: how soon new bytes flow, and how many travel twice."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf import targets
from perf.content import GIB, random_file, remove, same_content, scratch, sparse_file
from perf.contest import space_of
from perf.contestants.tdx import Receiver, Tdx
from perf.model import Outcome, Run, Series, Settings, Table
from perf.processes import ENVIRONMENT, TDX, PeakMemory, cpu_seconds, reap
from tdx.control.sending import NEAR_STREAMS
from tdx.integrity import MAX_EXTENT

POLL_SECONDS: Final = 0.002
PATIENCE_SECONDS: Final = 120.0
FIRST_BYTE: Final = "first_new_byte_seconds"
AGAIN: Final = "sent_again_bytes"


def run(settings: Settings) -> Outcome:
    large, dense = settings.sized(100 * GIB), settings.sized(3 * GIB)
    ends = settings.sized(GIB)
    with scratch(settings.disk) as home:
        sparse = resumed(
            "100 GiB sparse, disk to disk",
            lambda path: sparse_file(path, large, ends),
            0.375,  # of the data: within the first stretch of it
            home,
            home / "inbox",
            settings.rounds,
        )
        with scratch(settings.memory) as target:
            halfway = resumed(
                "3 GiB killed at 50 %, page cache to tmpfs",
                lambda path: random_file(path, dense),
                0.5,
                home,
                target,
                settings.rounds,
            )
    notes = (
        (
            "The first push is killed (SIGKILL) when the receiver has counted the bytes; the time is "
            "that of the second, tdx push --resume, from exec until the receiver counts its first new "
            "byte, and to its exit."
        ),
        (
            "Memory and CPU seconds are those of the second push; the receiver is asked for its "
            f"counters every {POLL_SECONDS * 1000:g} ms meanwhile, which is in its CPU seconds."
        ),
        f"The sparse file has {ends / GIB:g} GiB of data at each end, on the disk, as its copy.",
    )
    runs = sparse.series[0].runs
    found = (
        targets.P4_TIME.reached_by([run.figures[FIRST_BYTE] for run in runs]),
        targets.P4_AGAIN.reached_by([run.figures[AGAIN] / (NEAR_STREAMS * MAX_EXTENT) for run in runs]),
    )
    return Outcome("resume", "Resume after a kill", notes, (sparse, halfway), found)


def resumed(
    title: str, make: Callable[[Path], Path], share: float, home: Path, target: Path, rounds: int
) -> Table:
    """Push, kill after ``share`` of the data, and resume, each time into an inbox of its own."""
    source = make(home / "source")
    tdx = Tdx(flags=("--resume", "--json"))
    try:
        runs: list[Run] = []
        for number in range(rounds):
            inbox = target / f"inbox-{number}"
            inbox.mkdir(parents=True)
            with scratch(home) as states, tdx.running(states, inbox) as receiver:
                runs.append(_Push(receiver, source, space_of(source)).killed_and_resumed(share))
            remove(inbox)
        size = source.stat().st_size
    finally:
        remove(source)
    return Table(title, size, 1, {}, (Series(tdx.name, tdx.does, tuple(runs)),))


@dataclass(frozen=True)
class _Push:
    receiver: Receiver
    source: Path
    data: int

    def killed_and_resumed(self, share: float) -> Run:
        first = self._start()
        self._wait_for(share * self.data)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        before, used = self._when_still(), cpu_seconds(self.receiver.servers)
        started = time.perf_counter()
        second = self._start()
        with PeakMemory([*self.receiver.servers, second.pid]) as memory:
            self._wait_for(before + 1)
            soon = time.perf_counter() - started
            output, cpu = reap(second)
            seconds = time.perf_counter() - started
        if not same_content(self.source, self.receiver.arrived(self.source)):
            raise RuntimeError("what arrived after a resume differs")
        again = before + json.loads(output.splitlines()[-1])["sent_bytes"] - self.data
        spent = cpu_seconds(self.receiver.servers) - used
        return Run(seconds, cpu, spent, memory.peak, {FIRST_BYTE: soon, AGAIN: float(again)})

    def _start(self) -> subprocess.Popen[str]:
        options = [each for each in self.receiver.options if each != "-q"]
        command = [*TDX, "push", str(self.source), self.receiver.peer, *options]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def _received(self) -> float:
        return self.receiver.counter("tdx_received_bytes_total")

    def _wait_for(self, received: float) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._received() < received:
            if time.monotonic() > deadline:
                raise RuntimeError("the receiver's byte counter stands still")
            time.sleep(POLL_SECONDS)

    def _when_still(self) -> int:
        """The byte counter once nothing moves it any more."""
        before = -1.0
        while (now := self._received()) != before:
            before = now
            time.sleep(0.2)
        return int(now)
