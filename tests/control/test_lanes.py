"""Which parts of which jobs are done when, on a clock that jumps."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from support.virtual_time import run
from tdx.control.lanes import PATIENCE, Lanes


@dataclass
class Log:
    """Does parts that take as long as ``seconds`` says of their peer; less than nothing fails at once."""

    seconds: dict[str, float]
    began: dict[tuple[str, str], float] = field(default_factory=dict)
    ended: dict[tuple[str, str], float] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    async def push(self, job: str, peer: str) -> bool:
        loop = asyncio.get_running_loop()
        self.began[job, peer] = loop.time()
        running = [each for each in self.began if each not in self.ended]
        now = sum(1 for _, other in running if other == peer)
        self.most[peer] = max(self.most.get(peer, 0), now)
        await asyncio.sleep(max(self.seconds[peer], 0.0))
        self.ended[job, peer] = loop.time()
        return self.seconds[peer] >= 0

    def work(self, jobs: dict[str, str], at_once: int = 1) -> None:
        run(Lanes(at_once, self.push).work([(job, list(peers)) for job, peers in jobs.items()]))


def test_jobs_are_done_one_after_the_other_in_their_order() -> None:
    log = Log({"a": 5.0})
    log.work({"1": "a", "2": "a", "3": "a"})
    assert log.began == {("1", "a"): 0.0, ("2", "a"): 5.0, ("3", "a"): 10.0}


def test_as_many_as_asked_for_are_done_at_a_time() -> None:
    log = Log({"a": 5.0, "b": 5.0})
    log.work({"1": "a", "2": "b", "3": "a"}, at_once=2)
    assert log.began == {("1", "a"): 0.0, ("2", "b"): 0.0, ("3", "a"): 5.0}


def test_the_parts_of_a_job_begin_together_and_end_each_for_itself() -> None:
    log = Log({"a": 5.0, "b": 9.0})
    log.work({"1": "ab", "2": "a"})
    assert log.began == {("1", "a"): 0.0, ("1", "b"): 0.0, ("2", "a"): 9.0}
    assert log.ended["1", "a"] == 5.0


def test_a_peer_that_is_behind_keeps_only_its_own_parts_waiting() -> None:
    log = Log({"fast": 10.0, "slow": 100_000.0})
    lanes = Lanes(1, log.push)
    run(lanes.work([(job, ["fast", "slow"]) for job in "123"]))
    behind = 2 * 10.0 + PATIENCE
    assert log.began["2", "fast"] == behind
    assert log.began["3", "fast"] == behind + 10.0
    assert log.most["slow"] == 1
    assert log.ended["3", "slow"] == 300_000.0


def test_a_peer_that_has_caught_up_is_waited_for_again() -> None:
    log = Log({"fast": 1.0, "slow": 40.0, "other": 100.0})
    lanes = Lanes(1, log.push)
    run(lanes.work([("1", ["fast", "slow"]), ("2", ["other"]), ("3", ["slow"]), ("4", ["fast"])]))
    behind = 2 * 1.0 + PATIENCE
    assert log.began["2", "other"] == behind
    assert log.began["3", "slow"] == behind + 100.0
    assert log.began["4", "fast"] == behind + 140.0


def test_what_is_only_for_a_peer_that_is_behind_keeps_nothing_waiting() -> None:
    log = Log({"fast": 1.0, "slow": 1000.0})
    lanes = Lanes(1, log.push)
    run(lanes.work([("1", ["fast", "slow"]), ("2", ["slow"]), ("3", ["fast"])]))
    assert log.began["3", "fast"] == 2 * 1.0 + PATIENCE
    assert log.began["2", "slow"] == 1000.0


def test_one_whose_others_failed_is_no_slower_than_they_are() -> None:
    log = Log({"dead": -1.0, "busy": 1000.0, "other": 1.0})
    lanes = Lanes(1, log.push)
    run(lanes.work([("1", ["dead", "busy"]), ("2", ["other"])]))
    assert log.began["2", "other"] == 1000.0


def test_after_a_stop_nothing_begins() -> None:
    log = Log({"a": 5.0, "b": 7.0})
    lanes = Lanes(1, log.push)

    async def work() -> None:
        asyncio.get_running_loop().call_later(1.0, lanes.stop)
        await lanes.work([("1", ["a", "b"]), ("2", ["a"])])

    run(work())
    assert set(log.ended) == {("1", "a"), ("1", "b")}


def test_after_a_stop_a_part_that_waits_for_its_turn_does_not_begin() -> None:
    log = Log({"fast": 1.0, "slow": 1000.0})
    lanes = Lanes(1, log.push)

    async def work() -> None:
        asyncio.get_running_loop().call_later(100.0, lanes.stop)
        await lanes.work([("1", ["fast", "slow"]), ("2", ["fast", "slow"])])

    run(work())
    assert set(log.ended) == {("1", "fast"), ("1", "slow"), ("2", "fast")}


@given(
    seconds=st.lists(st.sampled_from([-1.0, 0.0, 1.0, 20.0, 500.0]), min_size=3, max_size=3),
    jobs=st.lists(st.sampled_from(["a", "b", "c", "ab", "bc", "abc"]), max_size=8),
    at_once=st.integers(1, 3),
)
def test_every_part_is_done_once_and_no_peer_has_more_than_its_turns(
    seconds: list[float], jobs: list[str], at_once: int
) -> None:
    log = Log(dict(zip("abc", seconds, strict=True)))
    named = {str(number): peers for number, peers in enumerate(jobs)}
    log.work(named, at_once)
    assert set(log.ended) == {(job, peer) for job, peers in named.items() for peer in peers}
    assert all(most <= at_once for most in log.most.values())
    for peer in "abc":
        order = [job for job, other in log.began if other == peer]
        assert order == [job for job, peers in named.items() if peer in peers]
