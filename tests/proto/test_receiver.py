"""The receiver's transition table, its refusals, and the leases on extents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx import errors
from tdx.model import MAX_REPAIR_ROUNDS
from tdx.proto.diagrams import diagram, document
from tdx.proto.receiver import (
    UPLOAD_TABLE,
    Leases,
    UploadEvent,
    UploadMachine,
    UploadState,
)

S, E = UploadState, UploadEvent
ENDED = (S.PUBLISHED, S.FAILED, S.CANCELLED, S.SUPERSEDED)


def after(*events: UploadEvent) -> UploadMachine:
    machine = UploadMachine()
    for event in events:
        machine.handle(event)
    return machine


def test_an_upload_is_sent_committed_repaired_and_published() -> None:
    machine = after(E.BODY, E.BODY, E.COMMIT, E.DIFFER, E.BODY, E.COMMIT)
    assert machine.state is S.COMMITTING
    assert machine.handle(E.PUBLISH) is S.PUBLISHED


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_every_pair_is_either_in_the_table_or_refused_without_effect(
    state: UploadState, event: UploadEvent
) -> None:
    machine = UploadMachine(state)
    following = UPLOAD_TABLE.get((state, event))
    if following is not None:
        assert machine.handle(event) is following
    else:
        with pytest.raises(errors.TdxError):
            machine.handle(event)
        assert machine.state is state


@pytest.mark.parametrize("event", E)
def test_anything_to_a_superseded_upload_is_superseded(event: UploadEvent) -> None:
    with pytest.raises(errors.Superseded):
        UploadMachine(S.SUPERSEDED).handle(event)


@pytest.mark.parametrize("event", [E.BODY, E.COMMIT, E.TAKEOVER, E.CANCEL, E.SUPERSEDE])
def test_a_running_commit_is_waited_for(event: UploadEvent) -> None:
    with pytest.raises(errors.UploadBusy):
        after(E.COMMIT).handle(event)


@pytest.mark.parametrize("event", E)
def test_a_cancelled_upload_is_not_found(event: UploadEvent) -> None:
    with pytest.raises(errors.NotFound, match="cancelled"):
        UploadMachine(S.CANCELLED).handle(event)


@pytest.mark.parametrize("state", ENDED)
def test_nothing_leaves_an_end(state: UploadState) -> None:
    assert not [event for start, event in UPLOAD_TABLE if start is state]


def test_a_failed_upload_answers_a_repeated_commit_as_before() -> None:
    machine = UploadMachine(S.FAILED)
    with pytest.raises(errors.VerificationFailed):
        machine.handle(E.COMMIT)
    with pytest.raises(errors.IllegalTransition, match="failed takes no body"):
        machine.handle(E.BODY)


def test_publishing_without_a_commit_is_illegal() -> None:
    with pytest.raises(errors.IllegalTransition, match="open takes no publish"):
        UploadMachine().handle(E.PUBLISH)


def test_the_repair_after_the_last_round_gives_up() -> None:
    machine = UploadMachine()
    for done in range(MAX_REPAIR_ROUNDS):
        assert machine.rounds == done
        machine.handle(E.COMMIT)
        assert machine.handle(E.DIFFER) is S.OPEN
    machine.handle(E.COMMIT)
    assert machine.handle(E.DIFFER) is S.FAILED
    assert machine.rounds == MAX_REPAIR_ROUNDS


def test_a_commit_that_judged_nothing_costs_no_round() -> None:
    machine = after(*[E.COMMIT, E.ABORT] * 10)
    assert (machine.state, machine.rounds) == (S.OPEN, 0)


def test_a_new_run_has_its_own_repair_rounds() -> None:
    machine = after(E.COMMIT, E.DIFFER, E.COMMIT, E.DIFFER)
    machine.handle(E.TAKEOVER)
    assert machine.rounds == 0


@given(st.lists(st.sampled_from(E), max_size=60))
def test_whatever_happens_an_ended_upload_takes_no_bytes(events: list[UploadEvent]) -> None:
    machine = UploadMachine()
    ended = False
    for event in events:
        try:
            machine.handle(event)
        except errors.TdxError:
            continue
        assert not (ended and event in {E.BODY, E.COMMIT, E.TAKEOVER, E.PUBLISH})
        ended = machine.state in ENDED
        assert machine.rounds <= MAX_REPAIR_ROUNDS


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        UPLOAD_TABLE[S.FAILED, E.PUBLISH] = S.PUBLISHED  # type: ignore[index]


def test_the_diagram_has_every_transition() -> None:
    drawn = diagram(UPLOAD_TABLE, S.OPEN)
    for (state, event), following in UPLOAD_TABLE.items():
        arrow = next(line for line in drawn.splitlines() if f"{state} --> {following}: " in line)
        assert event.value in arrow.partition(": ")[2].split(", ")
    assert "[*] --> open" in drawn
    assert all(f"{state} --> [*]" in drawn for state in ENDED)
    assert "committing --> [*]" not in drawn


def test_the_page_on_states_is_what_the_tables_draw() -> None:
    page = Path(__file__).parents[2] / "docs" / "states.md"
    assert page.read_text(encoding="utf-8") == document()


def test_a_lease_keeps_other_writers_out_and_names_the_first_conflict() -> None:
    leases = Leases()
    leases.take(1, range(4, 8))
    with pytest.raises(errors.UploadBusy, match="extent 4 ") as refused:
        leases.take(2, range(2, 6))
    assert refused.value.details == {"extent": 4}
    assert leases.held_by_others(2, range(4)) == []
    leases.take(2, range(2, 4))
    leases.take(3, range(8, 9))


def test_a_released_lease_may_be_taken_by_another() -> None:
    leases = Leases()
    leases.take(1, range(4))
    leases.release(1)
    leases.release(1)
    leases.take(2, range(4))
    assert leases.held_by_others(1, range(100)) == [range(4)]


def test_a_writer_may_take_its_own_extents_again_and_more() -> None:
    leases = Leases()
    leases.take(1, range(4))
    leases.take(1, range(3, 6))
    leases.take(1, range(10, 11))
    leases.take(1, range(0))
    assert leases.held_by_others(2, range(100)) == [range(6), range(10, 11)]
    assert leases.held_by_others(1, range(100)) == []


def test_taking_nothing_holds_nothing() -> None:
    leases = Leases()
    leases.take(1, range(3, 3))
    assert leases.held_by_others(2, range(100)) == []


def test_a_lease_on_a_huge_file_is_no_work() -> None:
    leases = Leases()
    leases.take(1, range(1 << 60))
    assert leases.held_by_others(2, range(1 << 59, 1 << 61)) == [range(1 << 59, 1 << 60)]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 6), st.booleans()), max_size=40)
)
def test_no_extent_ever_has_two_writers(steps: list[tuple[int, int, int, bool]]) -> None:
    leases = Leases()
    model: dict[int, set[int]] = {writer: set() for writer in range(4)}
    for writer, start, count, release in steps:
        wanted = range(start, start + count)
        others = set[int]().union(*(held for other, held in model.items() if other != writer))
        if release:
            leases.release(writer)
            model[writer] = set()
        elif others & set(wanted):
            with pytest.raises(errors.UploadBusy) as refused:
                leases.take(writer, wanted)
            assert refused.value.details["extent"] == min(others & set(wanted))
        else:
            leases.take(writer, wanted)
            model[writer] |= set(wanted)
        for watcher in range(4):
            found = [extent for part in leases.held_by_others(watcher, range(30)) for extent in part]
            expected = [extent for other in model if other != watcher for extent in model[other]]
            assert sorted(set(found)) == sorted(expected)
