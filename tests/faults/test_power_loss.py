"""The power may be cut at any moment, and the disk forget or reorder what it had not been told to keep:
what was acknowledged is there, nothing half-done has a final name, and the rest is gone on with."""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from faults.power_checks import Aftermath
from faults.power_traffic import Traffic
from support.blocklog import FLUSH, Cut, Log, Manner
from support.power import Machine
from support.processes import Processes
from support.soak import Soak

pytestmark = pytest.mark.timeout(300)

OPTIONS = ["defaults", "commit=1", "noauto_da_alloc", "data=writeback,noauto_da_alloc", "nodelalloc,commit=1"]
"""How ext4 may be mounted: each writes in another order."""

PUBLISHING = 10
"""About as many flushes make a file durable, its name, and its receipt."""

LOOKED_AT = 7
"""So many cuts are looked at for each that is gone on with, which takes much longer."""


def cuts(dice: random.Random, log: Log, traffic: Traffic, count: int) -> Iterator[Cut]:
    """At an acknowledgement; shortly before one; where a write is in doubt, and all that came with it; and
    where a journal may speak of what is not there."""
    acknowledged = [
        log.moment_at(position) for name in traffic.names.values() for position, _ in name.acknowledged
    ]
    synced = [log.moment_at(position) for position in traffic.journals_synced]
    flushes = [number for number, entry in enumerate(log.entries) if entry.kind == FLUSH]

    def somewhat_later(moment: int) -> int:
        return dice.randint(moment, flushes[bisect_left(flushes, moment)])

    for number in range(count):
        moment = dice.choice(acknowledged)
        if number % 4 == 1:
            latest = bisect_left(flushes, moment) - 1
            moment = somewhat_later(flushes[max(0, latest - dice.randrange(PUBLISHING))] + 1)
        elif number % 4 == 2:
            moment = somewhat_later(dice.randrange(flushes[-1]))
        elif number % 4 == 3 and synced:
            moment = dice.choice(synced)
        yield Cut(moment, dice.choice(list(Manner)), dice.getrandbits(32))


@contextmanager
def seen(processes: Processes) -> Generator[Processes]:
    """Their end is seen to; and their logs are shown where the test fails."""
    with processes:
        try:
            yield processes
        except BaseException:
            sys.stdout.write(processes.logs_of_all())
            raise


def run(area: Path, dice: random.Random, count: int, tally: Counter[str]) -> None:
    """Let a receiver do what it gets to do; then go on ``count`` times from where its power was cut."""
    options, apart = dice.choice(OPTIONS), dice.random() < 0.5
    with TemporaryDirectory(dir=area) as name, seen(Processes(Path(name, "logs"))) as mounts:
        place = Path(name)
        machine = Machine(mounts, place, apart=apart)
        with machine.recording(options), seen(Processes(place / "before" / "logs")) as before:
            traffic = Traffic(before, machine, place, dice)
            traffic.run()
        log = machine.log()
        for number, cut in enumerate(cuts(dice, log, traffic, count * LOOKED_AT)):
            sys.stdout.write(f"{options}, {apart=}, {len(log.entries)} entries: {cut}\n")
            tally["writes in doubt"] += len(log.volatile(cut.moment))
            logs = place / f"after-{number}" / "logs"
            with machine.after(log, cut, options), seen(Processes(logs)) as after:
                aftermath = Aftermath(machine, traffic, after, log.position(cut.moment), tally)
                aftermath.look()
                if number % LOOKED_AT == 0:
                    aftermath.go_on()


def test_what_a_power_cut_leaves_is_whole_and_is_gone_on_with(soak: Soak, area: Path) -> None:
    dice = soak.dice
    tally: Counter[str] = Counter()
    for _ in range(soak.rounds(1, 10)):
        run(area, dice, soak.rounds(2, 20), tally)
    soak.tell(", ".join(f"{count} {what}" for what, count in tally.items()))
    if soak.whole:
        assert all(tally.values()), "some kind of cut was never hit"
