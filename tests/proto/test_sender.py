"""The sender's transition table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import IllegalTransition
from tdx.model import MAX_REPAIR_ROUNDS
from tdx.proto.sender import PUSH_TABLE, PushEvent, PushMachine, PushState

S, E = PushState, PushEvent


WAY_TO = {
    S.NEW: (),
    S.OPENING: (E.OPEN,),
    S.CHECKING: (E.OPEN, E.SAME_NAME),
    S.SENDING: (E.OPEN, E.OPENED),
    S.COMMITTING: (E.OPEN, E.OPENED, E.SENT),
    S.REPAIRING: (E.OPEN, E.OPENED, E.SENT, E.DIFFER),
    S.DONE: (E.OPEN, E.RECEIPT),
    S.FAILED: (E.OPEN, E.OPENED, E.SENT, E.FAIL),
}


def after(*events: PushEvent) -> PushMachine:
    machine = PushMachine()
    for event in events:
        machine.handle(event)
    return machine


def test_a_push_is_opened_sent_committed_and_done() -> None:
    assert after(E.OPEN, E.OPENED, E.SENT, E.RECEIPT).state is S.DONE


def test_a_push_of_one_extent_is_done_with_its_first_answer() -> None:
    assert after(E.OPEN, E.RECEIPT).state is S.DONE


def test_an_identical_file_is_done_after_the_check() -> None:
    assert after(E.OPEN, E.SAME_NAME, E.RECEIPT).state is S.DONE


def test_a_different_file_of_the_same_name_is_sent() -> None:
    assert after(E.OPEN, E.SAME_NAME, E.DIFFERENT).state is S.SENDING


def test_a_repair_ends_in_another_commit() -> None:
    machine = after(E.OPEN, E.OPENED, E.SENT, E.DIFFER)
    assert machine.state is S.REPAIRING
    assert machine.rounds == 1
    assert machine.handle(E.SENT) is S.COMMITTING


def test_a_receiver_that_always_differs_does_not_keep_a_sender_for_ever() -> None:
    machine = after(E.OPEN, E.OPENED, E.SENT, *[E.DIFFER, E.SENT] * MAX_REPAIR_ROUNDS)
    assert machine.state is S.COMMITTING
    assert machine.handle(E.DIFFER) is S.FAILED


@pytest.mark.parametrize("state", [S.DONE, S.FAILED])
def test_nothing_leaves_an_end(state: PushState) -> None:
    assert not [event for start, event in PUSH_TABLE if start is state]


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_every_pair_is_either_in_the_table_or_refused_without_effect(
    state: PushState, event: PushEvent
) -> None:
    machine = after(*WAY_TO[state])
    assert machine.state is state
    following = PUSH_TABLE.get((state, event))
    if following is not None:
        assert machine.handle(event) is following
    else:
        with pytest.raises(IllegalTransition, match=f"{state} takes no {event}"):
            machine.handle(event)
        assert machine.state is state


def test_a_push_fails_only_where_repairs_do_not_end() -> None:
    assert {pair for pair, following in PUSH_TABLE.items() if following is S.FAILED} == {
        (S.COMMITTING, E.FAIL)
    }


@given(st.lists(st.sampled_from(E), max_size=40))
def test_a_push_follows_its_table_and_nothing_else(events: list[PushEvent]) -> None:
    machine = PushMachine()
    for event in events:
        before, rounds = machine.state, machine.rounds
        expected = PUSH_TABLE.get((before, event))
        if expected is None:
            with pytest.raises(IllegalTransition, match=f"{before} takes no"):
                machine.handle(event)
            assert machine.state is before
        elif event is E.DIFFER and rounds == MAX_REPAIR_ROUNDS:
            assert machine.handle(event) is S.FAILED
        else:
            assert machine.handle(event) is expected
        assert machine.rounds <= MAX_REPAIR_ROUNDS


def test_done_is_reached_by_a_receipt_only() -> None:
    assert {event for (_, event), following in PUSH_TABLE.items() if following is S.DONE} == {E.RECEIPT}
