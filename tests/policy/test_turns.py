"""Equal shares, whoever asks more."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.model import Owner
from tdx.policy.turns import Turns

GREEDY, MODEST, THIRD = Owner("tailscale:greedy"), Owner("tailscale:modest"), Owner("tls:third")


def test_who_is_alone_may_have_every_place() -> None:
    turns: Turns[int] = Turns(3)
    assert [turns.ask(GREEDY, number) for number in range(5)] == [True, True, True, False, False]
    assert [turns.done(GREEDY) for _ in range(5)] == [3, 4, None, None, None]


def test_a_free_place_goes_to_whom_has_the_fewest_however_long_others_have_waited() -> None:
    turns: Turns[str] = Turns(2)
    for number in range(10):
        turns.ask(GREEDY, f"greedy {number}")
    assert not turns.ask(MODEST, "modest")
    assert turns.done(GREEDY) == "modest"
    assert turns.done(GREEDY) == "greedy 2"


def test_among_equals_it_goes_round() -> None:
    turns: Turns[Owner] = Turns(1)
    assert turns.ask(GREEDY, GREEDY)
    for owner in (GREEDY, MODEST, THIRD) * 3:
        turns.ask(owner, owner)
    order = [GREEDY]
    while (following := turns.done(order[-1])) is not None:
        order.append(following)
    assert order[1:] == [GREEDY, MODEST, THIRD] * 3


def test_with_a_bound_for_each_nobody_has_every_place() -> None:
    turns: Turns[str] = Turns(3, apiece=2)
    assert [turns.ask(GREEDY, str(number)) for number in range(4)] == [True, True, False, False]
    assert turns.ask(MODEST, "modest")
    assert turns.done(MODEST) is None
    assert turns.done(GREEDY) == "2"


def test_who_withdraws_waits_no_more_and_whose_turn_has_begun_cannot() -> None:
    turns: Turns[str] = Turns(1)
    turns.ask(GREEDY, "works")
    turns.ask(GREEDY, "waits")
    turns.ask(GREEDY, "waits too")
    assert not turns.withdraw(GREEDY, "works")
    assert not turns.withdraw(MODEST, "waits")
    assert turns.withdraw(GREEDY, "waits")
    assert turns.done(GREEDY) == "waits too"
    assert not turns.withdraw(GREEDY, "waits too")
    assert turns.done(GREEDY) is None


@dataclass(frozen=True)
class Sender:
    """Bodies of one owner, each of which is received for so many seconds before its every turn."""

    owner: Owner
    bodies: int
    away: float


def shares(places: int, senders: list[Sender], seconds: float = 1.0, turn: float = 0.001) -> Counter[Owner]:
    """Turns that were had within ``seconds`` of a clock that only this function knows."""
    turns: Turns[Sender] = Turns(places)
    had: Counter[Owner] = Counter()
    numbers = itertools.count()
    events: list[tuple[float, int, bool, Sender]] = []

    def later(at: float, ends: bool, sender: Sender) -> None:
        heapq.heappush(events, (at, next(numbers), ends, sender))

    for sender in senders:
        for body in range(sender.bodies):
            later(sender.away * body / sender.bodies, False, sender)
    while events:
        now, _, ends, sender = heapq.heappop(events)
        if now > seconds:
            break
        if not ends:
            if turns.ask(sender.owner, sender):
                later(now + turn, True, sender)
            continue
        had[sender.owner] += 1
        later(now + sender.away, False, sender)
        following = turns.done(sender.owner)
        if following is not None:
            later(now + turn, True, following)
    return had


@pytest.mark.parametrize("places", [1, 2, 4, 8])
def test_one_greedy_sender_leaves_another_its_share(places: int) -> None:
    greedy = Sender(GREEDY, 64, 0.0)
    alone = shares(places, [Sender(MODEST, 2, 0.0005)])[MODEST]
    beside = shares(places, [greedy, Sender(MODEST, 2, 0.0005)])
    assert beside[MODEST] >= alone / 3
    assert sum(beside.values()) >= 0.99 * 1000 * places  # and no place stands empty


def test_a_hundred_greedy_bodies_have_no_more_than_two() -> None:
    had = shares(2, [Sender(GREEDY, 100, 0.0), Sender(MODEST, 2, 0.0), Sender(THIRD, 2, 0.0)])
    assert max(had.values()) <= 1.1 * min(had.values())


def test_slow_bodies_have_next_to_nothing_of_the_places() -> None:
    had = shares(2, [Sender(GREEDY, 200, 1.0), Sender(MODEST, 2, 0.0)])
    assert had[MODEST] >= 0.85 * 2000


def test_within_one_owner_slow_bodies_do_not_hold_up_a_fast_one() -> None:
    fast, slow = Sender(MODEST, 2, 0.0), Sender(MODEST, 200, 1.0)
    assert shares(2, [slow, fast])[MODEST] >= 1990


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("adw"), st.sampled_from([GREEDY, MODEST, THIRD])), max_size=80),
)
def test_places_are_never_exceeded_never_lost_and_never_idle_while_somebody_may_have_one(
    places: int, apiece: int, steps: list[tuple[str, Owner]]
) -> None:
    turns: Turns[tuple[Owner, int]] = Turns(places, apiece)
    working: list[tuple[Owner, int]] = []
    waiting: list[tuple[Owner, int]] = []

    def end_first(owner: Owner) -> None:
        working.remove(next(each for each in working if each[0] == owner))
        following = turns.done(owner)
        if following is not None:
            waiting.remove(following)
            working.append(following)

    for number, (action, owner) in enumerate(steps):
        if action == "a":
            (working if turns.ask(owner, (owner, number)) else waiting).append((owner, number))
        elif action == "d" and any(each[0] == owner for each in working):
            end_first(owner)
        elif action == "w" and any(each[0] == owner for each in waiting):
            last = [each for each in waiting if each[0] == owner][-1]
            assert turns.withdraw(owner, last)
            waiting.remove(last)
        has = Counter(each[0] for each in working)
        assert len(working) <= places
        assert all(count <= apiece for count in has.values())
        if len(working) < places:
            assert all(has[each[0]] >= apiece for each in waiting)
    while working:
        end_first(working[0][0])
    assert not waiting
