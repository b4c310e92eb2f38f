"""Either end may die at any moment: a later run makes the file whole, and nothing else is left."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Push, Receiver, wait_until
from support.soak import Soak

pytestmark = pytest.mark.timeout(300)

LARGE = 96 * MIB
ONE_EXTENT = 4 * MIB
"""Goes as a single request, which is never continued but repeated."""

LOST_AT_MOST = 40 * MIB
"""What is sent again after a stroke: of each of two streams an extent that was not whole, and what lay in the
socket buffers of both ends (up to 10 MiB, and the kernel counts generously)."""

START_UP = 0.25
"""About how many seconds a push takes before it sends."""

WINDING_UP = 0.12
"""About how many seconds commit and exit take."""


@dataclass(frozen=True)
class Moment:
    """When to strike: during start-up, after a fraction of the file, or from its end on."""

    phase: str
    luck: float

    @classmethod
    def thrown(cls, dice: random.Random, number: int) -> Moment:
        return cls(("start", "transfer", "transfer", "end")[number % 4], dice.random())

    def await_it(self, push: Push, receiver: Receiver, size: int) -> None:
        """Return when it has come, or the push has ended before."""
        if self.phase == "start":
            time.sleep(self.luck * START_UP)
            return
        count = int(self.luck * size) if self.phase == "transfer" else size * 19 // 20
        wait_until(
            lambda: not push.running or receiver.staged >= max(count, 1) or receiver.published,
            f"{count} bytes have arrived",
        )
        if self.phase == "end":
            time.sleep(self.luck * WINDING_UP)


class Storm:
    """Rounds of pushing a file that is new each time, into a receiver whose folder is empty."""

    def __init__(self, soak: Soak, processes: Processes, receiver: Receiver, area: Path, size: int) -> None:
        self.rounds = soak.rounds(12, 160)
        dice = soak.dice
        self.moments = [Moment.thrown(dice, number) for number in range(self.rounds)]
        self.size = size
        self.mid_transfer = 0
        self._soak = soak
        self._processes = processes
        self._receiver = receiver
        self._content = random_file(area / "content", size).read_bytes()
        self._source = area / "storm.bin"

    def start(self, number: int) -> Push:
        """Push a new source into an empty folder, and wait for the moment of this round."""
        moment = self.moments[number]
        sys.stdout.write(f"round {number}: {moment}\n")
        for name in self._receiver.published:
            (self._receiver.folder / name).unlink()
        # Every extent differs from that of any other round at the same place.
        turn = (number + 1) * 4099
        self._source.unlink(missing_ok=True)
        self._source.write_bytes(self._content[turn:] + self._content[:turn])
        push = self._push("--limit-rate", str(self.size * 8))
        moment.await_it(push, self._receiver, self.size)
        return push

    def struck(self) -> None:
        """Note where the stroke hit: nothing half-done is visible, whatever it was."""
        assert self._receiver.published in ([], [self._source.name])
        self.mid_transfer += not self._receiver.published and 0 < self._receiver.staged < self.size

    def finish(self, held: int | None) -> None:
        """Push again, and hold what is there against what should be. ``held``: what the receiver
        vouched for after the stroke, where that is known."""
        complete = bool(self._receiver.published)
        push = self._push()
        end = push.ends(0)
        assert end["event"] in {"done", "identical"}, push.log()
        if complete:
            assert end["event"] == "identical", push.log()
            # A single request may be on its way before its answer is.
            assert not end["sent_bytes"] or self.size == ONE_EXTENT, push.log()
        if end["event"] == "done":
            assert end["resumed_bytes"] + end["sent_bytes"] == self.size, push.log()
            assert held in {None, end["resumed_bytes"]}, push.log()
        assert self._receiver.published == [self._source.name], push.log()
        assert self._receiver.partials == []
        assert sha256_of(self._receiver.folder / self._source.name) == sha256_of(self._source)

    def over(self) -> None:
        """Enough of the strokes fell in the middle."""
        self._soak.tell(
            f"{self.rounds} rounds, {self.mid_transfer} killed in the middle of {self.size} bytes"
        )
        assert self.mid_transfer >= self.rounds // 5

    def _push(self, *flags: str) -> Push:
        return self._processes.push(self._source, self._receiver.address, "--resume", *flags)


@pytest.fixture(params=[LARGE, ONE_EXTENT])
def storm(
    request: pytest.FixtureRequest, soak: Soak, processes: Processes, receiver: Receiver, area: Path
) -> Storm:
    return Storm(soak, processes, receiver, area, request.param)


def test_a_sender_killed_at_any_moment_leaves_what_the_next_run_completes(
    storm: Storm, receiver: Receiver
) -> None:
    for number in range(storm.rounds):
        storm.start(number).kill()
        storm.struck()
        # Every other time the next run is there before the receiver is through with the last one.
        if (number + number // 4) % 2:
            storm.finish(None)
        else:
            receiver.await_silence()
            storm.finish(receiver.held())
    storm.over()


def test_a_receiver_killed_at_any_moment_is_continued_where_it_was(storm: Storm, receiver: Receiver) -> None:
    for number in range(storm.rounds):
        push = storm.start(number)
        receiver.kill()
        storm.struck()
        if (number + number // 4) % 2:
            push.kill()
            receiver.restart()
            storm.finish(receiver.held())
            continue
        receiver.restart()
        # A push that has not met the receiver even once gives up: nobody may be there.
        code = push.wait()
        assert code == 0 or (code == 69 and push.last["sent_bytes"] == 0), push.log()
        assert push.last["sent_bytes"] <= storm.size + LOST_AT_MOST, push.log()
        storm.finish(None)
    storm.over()
