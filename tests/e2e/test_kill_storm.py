"""Either end may die at any moment: a later run makes the file whole, and nothing else is left."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from support.content import MIB, chosen_seed, random_file, sha256_of
from support.processes import Processes, Push, Receiver, wait_until

ROUNDS = 20
SIZE = 64 * MIB
RATE = "512M"

START_UP = 0.25
"""About how many seconds a push takes before it sends."""

LOST_AT_MOST = 24 * MIB
"""What is sent again after a stroke: an extent that was not whole, and what lay in socket buffers."""

WINDING_UP = 0.12
"""About how many seconds commit and exit take."""


class Moment:
    """When to strike: during start-up, after a fraction of the file, or from the last byte on."""

    def __init__(self, dice: random.Random, number: int) -> None:
        self.phase = ("start", "transfer", "transfer", "end")[number % 4]
        self.luck = dice.random()

    def __str__(self) -> str:
        return f"{self.phase} {self.luck:.3f}"

    def await_it(self, push: Push, receiver: Receiver) -> None:
        """Return when it has come, or the push has ended before."""
        if self.phase == "start":
            time.sleep(self.luck * START_UP)
        elif self.phase == "transfer":
            self._await_bytes(push, receiver, int(self.luck * SIZE))
        else:
            self._await_bytes(push, receiver, SIZE - 4 * MIB)
            time.sleep(self.luck * WINDING_UP)

    @staticmethod
    def _await_bytes(push: Push, receiver: Receiver, count: int) -> None:
        wait_until(
            lambda: not push.running or receiver.staged >= max(count, 1) or receiver.published,
            f"{count} bytes have arrived",
        )


class Storm:
    """Rounds of pushing a file that is new each time, into a receiver whose folder is empty."""

    def __init__(self, processes: Processes, receiver: Receiver, area: Path) -> None:
        seed = chosen_seed()
        sys.stdout.write(f"TDX_TEST_SEED={seed}\n")
        self.moments = [Moment(random.Random(f"{seed} {number}"), number) for number in range(ROUNDS)]
        self._processes = processes
        self._receiver = receiver
        self._content = random_file(area / "content", SIZE)
        self._source = area / "storm.bin"
        self.mid_transfer = 0

    def prepare(self, number: int, moment: Moment) -> None:
        """A new source; nothing of the last round is in the folder."""
        sys.stdout.write(f"round {number}: {moment}\n")
        for name in self._receiver.published:
            (self._receiver.folder / name).unlink()
        # Every extent differs from that of any other round at the same place.
        content = self._content.read_bytes()
        turn = (number + 1) * 4099
        self._source.unlink(missing_ok=True)
        self._source.write_bytes(content[turn:] + content[:turn])

    def push(self, *flags: str) -> Push:
        return self._processes.push(
            self._source, self._receiver.address, "--resume", *flags
        )

    def struck(self) -> None:
        """Note where the stroke hit: nothing half-done is visible, whatever it was."""
        assert self._receiver.published in ([], [self._source.name])
        self.mid_transfer += not self._receiver.published and 0 < self._receiver.staged < SIZE

    def finish(self, held: int | None) -> None:
        """Push again, and hold what is there against what should be. ``held``: what the receiver
        vouched for after the stroke, where that is known."""
        complete = bool(self._receiver.published)
        push = self.push()
        end = push.ends(0)
        assert end["event"] in {"done", "identical"}, push.log()
        if complete:
            assert (end["event"], end["sent_bytes"]) == ("identical", 0), push.log()
        if end["event"] == "done":
            assert end["resumed_bytes"] + end["sent_bytes"] == SIZE, push.log()
            assert held in {None, end["resumed_bytes"]}, push.log()
        assert self._receiver.published == [self._source.name], push.log()
        assert self._receiver.partials == []
        assert sha256_of(self._receiver.folder / self._source.name) == sha256_of(self._source)


@pytest.fixture
def storm(processes: Processes, receiver: Receiver, area: Path) -> Storm:
    return Storm(processes, receiver, area)


def test_a_sender_killed_at_any_moment_leaves_what_the_next_run_completes(
    storm: Storm, receiver: Receiver
) -> None:
    for number, moment in enumerate(storm.moments):
        storm.prepare(number, moment)
        push = storm.push("--limit-rate", RATE)
        moment.await_it(push, receiver)
        push.kill()
        storm.struck()
        # Every other time the next run is there before the receiver is through with the last one.
        if (number + number // 4) % 2:
            storm.finish(None)
        else:
            receiver.await_silence()
            storm.finish(receiver.held())
    assert storm.mid_transfer >= ROUNDS // 5


def test_a_receiver_killed_at_any_moment_is_continued_where_it_was(storm: Storm, receiver: Receiver) -> None:
    for number, moment in enumerate(storm.moments):
        storm.prepare(number, moment)
        push = storm.push("--limit-rate", RATE)
        moment.await_it(push, receiver)
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
        assert push.last["sent_bytes"] <= SIZE + LOST_AT_MOST, push.log()
        storm.finish(None)
    assert storm.mid_transfer >= ROUNDS // 5
