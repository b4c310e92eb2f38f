"""Several senders of one name at once, and either end dies at any moment: what is there is whole and there
once, what was acknowledged stays, and a later run completes each file."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Push, Receiver, wait_until
from support.soak import Soak

pytestmark = pytest.mark.timeout(300)

NAME: Final = "storm.bin"
SIZES: Final = (100_000, 4 * MIB, 24 * MIB + 4321)
SECONDS: Final = 0.6
"""About how long a push takes, its start included, and so how far into it somebody strikes."""

ENDS: Final = {
    "rename": {0, 69, 75},
    "overwrite": {0, 69, 75},
    "skip": {0, 69, 75},
    "error": {0, 69, 73, 75},
}
"""Exit codes that a push of that mode may have here: 69 where the receiver was down from the start."""


class Melee:
    """One round after the other at one receiver."""

    def __init__(self, processes: Processes, receiver: Receiver, area: Path, dice: random.Random) -> None:
        self.struck = 0
        self.mid_transfer = 0
        self._processes = processes
        self._receiver = receiver
        self._dice = dice
        self._sources = [area / which / NAME for which in ("one", "two")]
        for source in self._sources:
            source.parent.mkdir()

    def round(self, number: int) -> None:
        dice = self._dice
        mode, size = dice.choice(sorted(ENDS)), dice.choice(SIZES)
        for name in self._receiver.published:
            (self._receiver.folder / name).unlink()
        before = set(self._receiver.partials)
        for source in self._sources:
            random_file(source, size)
        contents = {sha256_of(source): source for source in self._sources}
        sys.stdout.write(f"round {number}: {size} bytes, {mode}\n")
        pushes: list[tuple[Push, Path]] = []
        for _ in range(dice.randint(2, 4)):
            source = dice.choice(self._sources)
            pushes.append((self._start(source, mode, size), source))
        for _ in range(dice.randint(1, 3)):
            if dice.random() < 0.9:
                wait_until(
                    lambda: self._receiver.staged or not any(push.running for push, _ in pushes),
                    "bytes arrive",
                )
            time.sleep(dice.random() * SECONDS / 2)
            self._strike([push for push, _ in pushes if push.running])
            self._look(contents, mode)
        for push, source in pushes:
            code = push.wait()
            assert code == -9 or code in ENDS[mode], push.log()
            self._acknowledged(push, source, mode)
        self._finish(contents, mode, before)

    def _start(self, source: Path, mode: str, size: int) -> Push:
        flags = ["--conflict", mode, "--streams", str(self._dice.randint(1, 3))]
        flags += ["--limit-rate", str(size * 4)] if size > MIB else []
        if self._dice.random() < 0.6:
            flags.append("--resume")
        return self._processes.push(source, self._receiver.address, *flags)

    def _strike(self, running: list[Push]) -> None:
        self.mid_transfer += self._receiver.staged > 0
        if running and self._dice.random() < 0.6:
            self._dice.choice(running).kill()
        else:
            self._receiver.kill()
            self._receiver.restart()
        self.struck += 1

    def _look(self, contents: dict[str, Path], mode: str) -> None:
        """Only whole files are seen; of one content never two."""
        found = [sha256_of(self._receiver.folder / name) for name in self._receiver.published]
        assert set(found) <= contents.keys(), self._receiver.published
        assert len(found) == len(set(found)), self._receiver.published
        assert mode == "rename" or len(found) <= 1

    def _acknowledged(self, push: Push, source: Path, mode: str) -> None:
        if push.code != 0 or push.last["event"] == "skipped":
            return
        there = self._receiver.folder / push.last["path"]
        assert there.exists(), push.log()
        # Another one may have come to lie over it since.
        assert mode == "overwrite" or sha256_of(there) == sha256_of(source), push.log()

    def _finish(self, contents: dict[str, Path], mode: str, before: set[Path]) -> None:
        for source in self._sources:
            push = self._processes.push(source, self._receiver.address, "--resume", "--conflict", mode)
            push.wait()
            push.ends(73 if mode == "error" and source != self._first(contents) else 0)
            self._look(contents, mode)
            self._acknowledged(push, source, mode)
        self._receiver.await_silence()
        # Whose file was not wanted leaves what it had sent before until it expires.
        assert mode in {"skip", "error"} or set(self._receiver.partials) <= before
        wanted = set(contents.values()) if mode == "rename" else {self._first(contents)}
        seen = {contents[sha256_of(self._receiver.folder / name)] for name in self._receiver.published}
        assert seen == ({self._sources[-1]} if mode == "overwrite" else wanted)

    def _first(self, contents: dict[str, Path]) -> Path:
        """Whose file has the name."""
        return contents[sha256_of(self._receiver.folder / NAME)]


def test_of_senders_that_die_at_random_none_spoils_what_another_one_sends(
    soak: Soak, processes: Processes, receiver: Receiver, area: Path
) -> None:
    melee, rounds = Melee(processes, receiver, area, soak.dice), soak.rounds(5, 400)
    for number in range(rounds):
        melee.round(number)
    soak.tell(f"{rounds} rounds, {melee.struck} killed, of which {melee.mid_transfer} in the middle of bytes")
    assert melee.struck >= rounds
