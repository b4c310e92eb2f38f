"""A batch may be killed at any moment: run again, it comes to the same end, and leaves nothing behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.batches import write_batch
from support.content import MIB
from support.processes import Batch, Processes, Receiver, wait_until
from support.soak import Soak

pytestmark = pytest.mark.timeout(300)

SMALL = 120
RATE = "24M"
"""Makes a run last about as long as its start."""

PHASES = ("done", "start", "any")
"""When the runs of a round are killed: once some of it is there, as they start, whenever."""


class Storm:
    """Runs of one batch, each of which is killed, to two receivers; then one that is not."""

    def __init__(
        self, soak: Soak, processes: Processes, receivers: Sequence[Receiver], area: Path, conflict: str
    ) -> None:
        self.rounds = soak.rounds(4, 60)
        self.dice = soak.dice
        self.killed = self.midway = 0
        self._processes = processes
        self._receivers = receivers
        self._source = area / "source"
        self._conflict = conflict
        self._file = write_batch(
            area / "storm.toml",
            [
                {"sources": ["source"], "recursive": True, "into": "tree"},
                {"sources": ["source/**/big*"], "into": "globbed"},
                {"sources": ["source/d1/small*"], "into": "small"},
            ],
            "parallel = 2",
            peers=[receiver.address for receiver in receivers],
            conflict=conflict,
            limit_rate=RATE,
        )

    def renew(self) -> None:
        """New content at the source, in place of what was there, and beside it; nothing at the receivers
        where what they have is kept."""
        for receiver in self._receivers if self._conflict == "skip" else ():
            for name in reversed(receiver.published):
                path = receiver.folder / name
                path.rmdir() if path.is_dir() else path.unlink()
        for number in range(SMALL):
            self._write(f"d{number % 2}/small{number:03}", self.dice.randrange(5000))
        self._write("big1", 9 * MIB)
        self._write("d0/big2", 6 * MIB + self.dice.randrange(MIB))

    def _write(self, name: str, size: int) -> None:
        path = self._source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))

    def strike(self, number: int) -> None:
        """Run it, and kill it at some moment; nothing half-done is visible then."""
        run = self._run()
        phase, luck = PHASES[number % len(PHASES)], self.dice.random()
        sys.stdout.write(f"{phase} and {luck:.3f}\n")
        if phase == "done":
            wait_until(lambda: '"event":"done"' in run.stdout or not run.running, "some of it is there")
        deadline = time.monotonic() + luck * {"start": 1.0, "done": 0.4, "any": 2.5}[phase]
        while run.running and time.monotonic() < deadline:
            time.sleep(0.002)
        self.killed += run.kill() < 0
        expected = self._expected()
        complete = 0
        for receiver in self._receivers:
            there = self._there(receiver)
            if self._conflict == "skip":
                assert there.items() <= expected.items()
            complete += len(there.items() & expected.items())
        self.midway += 0 < complete < len(self._receivers) * len(expected)

    def finish(self) -> None:
        """Run it to its end: both receivers have what the source has, and nothing else."""
        run = self._run()
        end = run.ends(0, "summary")
        assert {part["outcome"] for part in end["items"]} <= {"done", "unchanged"}, run.log()
        for receiver in self._receivers:
            assert self._there(receiver) == self._expected()
            receiver.await_silence()
            wait_until(lambda: self._left(receiver) == [], "nothing is left")  # noqa: B023  at once

    @staticmethod
    def _left(receiver: Receiver) -> list[str]:
        """Whatever lies in the folders of partials."""
        own = receiver.folder / ".tdx"
        return [str(path) for kind in ("uploads", "bundles") for path in own.glob(f"{kind}/*")]

    def _run(self) -> Batch:
        return self._processes.batch(self._file)

    def _expected(self) -> dict[str, bytes]:
        files = {
            path.relative_to(self._source).as_posix(): path.read_bytes()
            for path in self._source.rglob("*")
            if path.is_file()
        }
        return {
            **{f"tree/source/{name}": content for name, content in files.items()},
            **{f"globbed/{name}": content for name, content in files.items() if "big" in name},
            **{f"small/{name[3:]}": content for name, content in files.items() if name.startswith("d1/s")},
        }

    @staticmethod
    def _there(receiver: Receiver) -> dict[str, bytes]:
        paths = [receiver.folder / name for name in receiver.published]
        return {
            path.relative_to(receiver.folder).as_posix(): path.read_bytes()
            for path in paths
            if path.is_file()
        }


@pytest.mark.parametrize("conflict", ["overwrite", "skip"])
def test_a_batch_that_was_killed_comes_to_the_same_end_when_it_is_run_again(
    conflict: str, soak: Soak, processes: Processes, receiver: Receiver, area: Path
) -> None:
    other = processes.receiver(area / "other", area / "other-state")
    storm = Storm(soak, processes, [receiver, other], area, conflict)
    for _ in range(storm.rounds):
        storm.renew()
        for number in range(storm.dice.randrange(1, 4)):
            storm.strike(number)
        storm.finish()
    soak.tell(f"{conflict}: {storm.rounds} rounds, {storm.killed} runs killed, {storm.midway} of them midway")
    assert storm.midway >= storm.rounds // 2
