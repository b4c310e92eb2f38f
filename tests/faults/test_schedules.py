"""Whatever fails, and whenever: nothing half-done is seen, nothing acknowledged is lost, and a later run
makes the file whole."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.scenes import EXTENT, SCENES, File, Many, Scene
from faults.storm import PUMPS, STORE, Storm, StormySystem, Strike, over_pumps
from support.proxy import Fault, Plan, mistreating
from support.receiving import local_store, running
from support.soak import Soak
from support.vouching import Vouching
from tdx.policy.admission import Limits

pytestmark = [pytest.mark.usefixtures("short_waits"), pytest.mark.timeout(300)]

RUNS = 3
"""At most so many meet faults; the next one meets none."""

NETWORK = ("cut", "reset", "half-close", "lose-answers", "delay", "duplicate", "stall")
WEIGHTS = (6, 6, 4, 5, 4, 4, 1)

LIMITS = Limits(stall_timeout=1.5, head_timeout=5.0)


class Failures(logging.Handler):
    """What the engine logs as a failure that it did not expect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(logging.Formatter().format(record))


@pytest.fixture
def failures() -> Iterator[Failures]:
    handler = Failures()
    logging.getLogger("tdx").addHandler(handler)
    yield handler
    logging.getLogger("tdx").removeHandler(handler)


def network(dice: random.Random, scene: Scene) -> Plan:
    """What happens to the connections of one run."""
    faults: list[Fault | None] = []
    for _ in range(dice.choice((0, 0, 1, 2, 5))):
        (kind,) = dice.choices(NETWORK, WEIGHTS)
        after = dice.randrange(dice.choice((300, 2000, EXTENT, 3 * EXTENT)))
        faults.append(Fault(kind, after))
        if scene.may_flip and dice.random() < 0.3:
            faults.append(Fault("flip", 2000 + dice.randrange(EXTENT)))
    return lambda number: faults[number] if number < len(faults) else None


def strikes(dice: random.Random) -> list[Strike]:
    found = [Strike.thrown(dice, STORE) for _ in range(dice.choice((0, 1, 2, 4)))]
    return found + [Strike.thrown(dice, PUMPS) for _ in range(dice.choice((0, 1, 2)))]


@pytest.mark.parametrize("kind", SCENES, ids=lambda kind: kind.__name__.lower())
def test_whatever_fails_nothing_is_lost_and_nothing_is_half_done(
    soak: Soak, kind: type[Scene], failures: Failures, monkeypatch: pytest.MonkeyPatch
) -> None:
    storm, did = Storm(), Counter[str]()
    over_pumps(storm, monkeypatch)
    rounds, files = soak.rounds(15, 1500), 0
    for number in range(rounds):
        dice = random.Random(f"{soak.seed} {kind.__name__} {number}")
        with tempfile.TemporaryDirectory(prefix="tdx-faults-", dir="/dev/shm") as folder:
            one_schedule(dice, kind, Path(folder), storm, did)
        assert failures.records == [], "\n".join(failures.records)
        open_files = len(os.listdir("/proc/self/fd"))
        # The first one opens what the process keeps.
        assert open_files == (files or open_files)
        files = open_files
    met = sum(storm.struck.values())
    soak.tell(f"{rounds} schedules, {did}, {met} calls failed of {len(storm.struck)} kinds")
    assert not soak.whole or (met and did["runs that failed"])


def one_schedule(
    dice: random.Random, kind: type[Scene], folder: Path, storm: Storm, did: Counter[str]
) -> None:
    system, unread, unseen = StormySystem(storm), storm.unread, storm.unseen
    with running(
        folder,
        make_store=local_store(system),
        limits=LIMITS,
        pump=dice.choice([None, "buffered"]),
        providers=[Vouching(f"local:{os.getuid()}")],
    ) as receiver:
        scene = kind(dice, folder, receiver)
        sys.stdout.write(f"{scene}\n")
        for _ in range(dice.randint(1, RUNS)):
            plan, brewing = network(dice, scene), strikes(dice)
            sys.stdout.write(f"  {[plan(number) for number in range(10) if plan(number)]} {brewing}\n")
            storm.brew(brewing)
            with mistreating(receiver.port, plan) as proxy:
                acknowledged = scene.run(proxy.peer, resume=dice.random() < 0.7)
            storm.calm()
            did["runs that were acknowledged" if acknowledged else "runs that failed"] += 1
            receiver.is_quiet()
            scene.check(acknowledged=acknowledged, unread=storm.unread - unread)
            if dice.random() < 0.3:
                receiver.restart()
                scene.check(acknowledged=acknowledged, unread=storm.unread - unread)
        receiver.restart()  # until then a file or a directory of which a sync failed is in doubt
        refused = scene.refused
        scene.told.clear()
        assert scene.run(receiver.peer, resume=True) != refused, scene.told
        receiver.is_quiet()
        scene.check(acknowledged=not refused, unread=storm.unread - unread)
        if isinstance(scene, File | Many) and not refused:
            receiver.restart()  # what could not be removed at its end is removed now
            # A partial that could not be seen when a fresh run came stays until it expires.
            assert receiver.staged() == [] or storm.unseen > unseen
    assert system.fds == set()
