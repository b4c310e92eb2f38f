"""The journal: whatever happens to its bytes, its replay claims only what had been recorded."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tdx.integrity import digest_of, zero_digest
from tdx.model import Span, UploadId
from tdx.ranges import RangeSet
from tdx.store.journal import RECORD_SIZE, Record, Session, State, data_ranges, encode, replay, runs, seed_of
from tdx.store.port import Piece

EXTENT = 64
EXTENTS = 6
LENGTH = EXTENTS * EXTENT - 10
UPLOAD = UploadId("ab" * 16)
HERE = Session(b"h" * 16, 1, 1)
OTHER_BOOT = Session(b"o" * 16, 1, 1)
OTHER_MOUNT = Session(b"h" * 16, 1, 2)
UNKNOWN_MOUNT = Session(b"h" * 16, 1, 0)
UNKNOWN_BOOT = Session(bytes(16), 1, 1)


def fresh() -> State:
    return State(EXTENT, LENGTH)


def written(records: list[Record], upload: UploadId = UPLOAD) -> bytes:
    chain = seed_of(upload)
    parts: list[bytes] = []
    for record in records:
        data, chain = encode(record, chain)
        parts.append(data)
    return b"".join(parts)


def state_of(records: list[Record]) -> State:
    state = fresh()
    replay(written(records), state, UPLOAD)
    assert state.count == len(records)
    return state


def facts(state: State) -> tuple[object, ...]:
    return (
        state.held,
        state.digests(),
        state.tails(),
        state.suspects(),
        state.epoch,
        state.session,
        state.recent(),
    )


def piece(index: int, size: int = EXTENT, seed: int = 0) -> Piece:
    start = index * EXTENT
    return Piece(Span(start, min(start + size, LENGTH)), digest_of(bytes([index, size, seed])))


pieces = st.builds(piece, st.integers(0, EXTENTS - 1), st.integers(1, EXTENT), st.integers(0, 3))
records = st.one_of(
    pieces.map(Record.piece),
    pieces.map(Record.piece),
    st.tuples(st.integers(0, EXTENTS), st.integers(1, EXTENTS)).map(
        lambda each: Record.invalidate(each[0], sum(each))
    ),
    st.integers(0, 40).map(Record.mark),
    st.integers(2, 9).map(Record.epoch),
    st.sampled_from([HERE, OTHER_BOOT, OTHER_MOUNT, UNKNOWN_MOUNT]).map(Record.session),
)


def sensible(wished: list[Record]) -> list[Record]:
    """A journal as a store writes it: it begins with a session, and every record fits."""
    state = fresh()
    kept: list[Record] = []
    for record in [Record.session(HERE), *wished]:
        if state.fits(record):
            state.apply(record)
            kept.append(record)
    return kept


journals = st.lists(records, max_size=30).map(sensible)


@given(journals)
def test_a_replayed_journal_says_what_the_live_state_said(journal: list[Record]) -> None:
    live = fresh()
    for record in journal:
        live.apply(record)
    assert facts(state_of(journal)) == facts(live)


@given(journals, st.data())
def test_a_cut_journal_says_what_was_true_when_its_last_whole_record_was_written(
    journal: list[Record], data: st.DataObject
) -> None:
    whole = written(journal)
    size = data.draw(st.integers(0, len(whole)))
    state = fresh()
    end, _ = replay(whole[:size], state, UPLOAD)
    assert end == size // RECORD_SIZE * RECORD_SIZE
    assert facts(state) == facts(state_of(journal[: size // RECORD_SIZE]))


@given(journals, st.data())
def test_a_damaged_journal_says_what_was_true_before_the_damage(
    journal: list[Record], data: st.DataObject
) -> None:
    whole = bytearray(written(journal))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    state = fresh()
    end, _ = replay(bytes(whole), state, UPLOAD)
    assert end == at // RECORD_SIZE * RECORD_SIZE
    assert facts(state) == facts(state_of(journal[: at // RECORD_SIZE]))


@given(journals, st.data())
def test_a_lost_page_hides_everything_after_it(journal: list[Record], data: st.DataObject) -> None:
    whole = written(journal)
    start = data.draw(st.integers(0, len(whole) - 1))
    zeroed = whole[:start] + bytes(min(100, len(whole) - start)) + whole[start + 100 :]
    state = fresh()
    end, _ = replay(zeroed, state, UPLOAD)
    assert end <= -(-start // RECORD_SIZE) * RECORD_SIZE or zeroed == whole
    assert facts(state) == facts(state_of(journal[: end // RECORD_SIZE]))


@given(journals, journals, st.data())
def test_stale_records_beyond_the_end_never_count(
    journal: list[Record], stale: list[Record], data: st.DataObject
) -> None:
    # A shorter journal written over a longer one, as after a failed append.
    keep = data.draw(st.integers(0, len(journal)))
    over = written([*journal[:keep], Record.epoch(10)]) if keep else written(stale)
    old = written(journal)
    state = fresh()
    end, _ = replay(over + old[len(over) :], state, UPLOAD)
    assert end == len(over) or over == old[: len(over)]


@given(st.binary(max_size=400))
def test_garbage_is_an_empty_journal(garbage: bytes) -> None:
    state = fresh()
    assert replay(garbage, state, UPLOAD)[0] == 0
    assert facts(state) == facts(fresh())


@given(journals)
def test_a_journal_of_another_upload_is_an_empty_one(journal: list[Record]) -> None:
    state = fresh()
    assert replay(written(journal), state, UploadId("cd" * 16)) == (0, seed_of(UploadId("cd" * 16)))
    assert state.count == 0


@given(journals)
def test_after_another_boot_only_marked_pieces_are_held(journal: list[Record]) -> None:
    """Against a naive model: a piece survives if some later mark covers it, or it was recorded in an
    unbroken run of the last session, and no later record speaks of its extent."""
    state = state_of([*journal, Record.session(Session(b"n" * 16, 1, 1))])
    marks = [(number, record.a) for number, record in enumerate(journal) if record.kind.name == "MARK"]
    for index in range(EXTENTS):
        survivor = None
        for number, record in enumerate(journal):
            if record.kind.name == "INVALIDATE" and record.a <= index < record.b:
                survivor = None
            if record.kind.name == "PIECE" and record.a // EXTENT == index:
                last_loss = next(
                    (
                        later
                        for later in range(number, len(journal) + 1)
                        if later == len(journal) or changes_session(journal, later)
                    ),
                )
                if any(number < mark_at < last_loss and covered > number for mark_at, covered in marks):
                    survivor = record
        entry = state.entry(index)
        found = None if entry is None else Record.piece(entry.piece)
        assert found == survivor
    assert state.suspects() == {index for index in range(EXTENTS) if state.entry(index) is not None}


def changes_session(journal: list[Record], at: int) -> bool:
    if journal[at].kind.name != "SESSION":
        return False
    before = (
        next(journal[n] for n in range(at - 1, -1, -1) if journal[n].kind.name == "SESSION") if at else None
    )
    return before is not None and (before != journal[at] or before.b == 0)


@given(journals)
def test_held_is_exactly_the_pieces(journal: list[Record]) -> None:
    state = state_of(journal)
    entries = [entry for index in range(EXTENTS) if (entry := state.entry(index)) is not None]
    assert state.held == RangeSet(entry.piece.span for entry in entries)
    assert len(state.whole()) + len(state.tails()) == len(entries)


@pytest.mark.parametrize("session", [OTHER_BOOT, OTHER_MOUNT, Session(b"h" * 16, 2, 1)])
def test_another_boot_filesystem_or_mount_trusts_only_what_is_marked(session: Session) -> None:
    journal = [
        Record.session(HERE),
        Record.piece(piece(0)),
        Record.piece(piece(1, 10)),
        Record.mark(3),
        Record.piece(piece(1)),
        Record.piece(piece(2)),
    ]
    state = state_of([*journal, Record.session(session)])
    assert set(state.whole()) == {0}
    assert state.tails() == {1: piece(1, 10)}
    assert state.suspects() == {0, 1}
    assert set(state_of([*journal, Record.session(HERE)]).whole()) == {0, 1, 2}


@pytest.mark.parametrize("unknown", [UNKNOWN_MOUNT, UNKNOWN_BOOT])
def test_a_mount_or_a_boot_that_cannot_be_told_is_never_the_same(unknown: Session) -> None:
    state = state_of([Record.session(unknown), Record.piece(piece(0)), Record.session(unknown)])
    assert not state.held


def test_a_mark_covers_only_what_was_recorded_before_its_sync_began() -> None:
    journal = [
        Record.session(HERE),
        Record.piece(piece(0)),  # record 1
        Record.piece(piece(1)),  # record 2: while the sync ran
        Record.mark(2),
        Record.session(OTHER_BOOT),
    ]
    assert set(state_of(journal).whole()) == {0}


def test_a_rollback_leaves_what_the_last_mark_covers() -> None:
    state = state_of(
        [
            Record.session(HERE),
            Record.piece(piece(0)),
            Record.piece(piece(1, 10)),
            Record.mark(3),
            Record.piece(piece(1)),
            Record.piece(piece(2)),
        ]
    )
    for record in state.rollback():
        assert state.fits(record)
        state.apply(record)
    assert (set(state.whole()), state.tails(), state.recent()) == ({0}, {1: piece(1, 10)}, set())
    state.apply(Record.session(OTHER_BOOT))
    assert (set(state.whole()), state.tails()) == ({0}, {1: piece(1, 10)})


def test_what_was_dropped_by_one_boot_is_not_brought_back_by_the_marks_of_the_next() -> None:
    journal = [
        Record.session(HERE),
        Record.piece(piece(0)),
        Record.session(OTHER_BOOT),
        Record.piece(piece(1)),
        Record.mark(4),
        Record.session(HERE),
    ]
    assert set(state_of(journal).whole()) == {1}


def test_a_mark_during_which_an_extent_was_rewritten_does_not_cover_the_new_bytes() -> None:
    journal = [
        Record.session(HERE),
        Record.piece(piece(0)),
        Record.invalidate(0, 1),
        Record.piece(piece(0, seed=1)),
        Record.mark(2),
        Record.session(OTHER_BOOT),
    ]
    assert not state_of(journal).held


@pytest.mark.parametrize(
    "record",
    [
        Record.piece(Piece(Span(1, EXTENT), bytes(16))),
        Record.piece(Piece(Span(0, EXTENT + 1), bytes(16))),
        Record.piece(Piece(Span(5 * EXTENT, LENGTH + 1), bytes(16))),
        Record.invalidate(2, 2),
        Record.mark(3),
        Record.epoch(1),
    ],
)
def test_a_record_that_cannot_be_ends_the_journal(record: Record) -> None:
    state = fresh()
    end, _ = replay(
        written([Record.session(HERE), Record.piece(piece(0)), record, Record.piece(piece(1))]), state, UPLOAD
    )
    assert end == 2 * RECORD_SIZE
    assert set(state.whole()) == {0}


def test_a_journal_begins_with_a_session() -> None:
    state = fresh()
    assert replay(written([Record.piece(piece(0))]), state, UPLOAD)[0] == 0


@pytest.mark.parametrize("at", [0, 1], ids=["kind", "version"])
def test_a_record_of_another_version_ends_the_journal(at: int) -> None:
    body = bytearray(written([Record.session(HERE)])[:-8])
    body[at] = 99
    checksum = xxhash.xxh3_64_intdigest(bytes(body), seed_of(UPLOAD))
    state = fresh()
    assert replay(bytes(body) + struct.pack(">Q", checksum), state, UPLOAD)[0] == 0


@given(st.sets(st.integers(0, 30)))
def test_runs_are_the_shortest_way_to_name_the_indices(extents: set[int]) -> None:
    found = list(runs(extents))
    assert {index for first, end in found for index in range(first, end)} == extents
    assert all(end < first for (_, end), (first, _) in zip(found, found[1:], strict=False))


spans = st.lists(
    st.tuples(st.integers(0, LENGTH + 50), st.integers(1, LENGTH)).map(lambda each: Span(each[0], sum(each))),
    max_size=5,
)


@given(spans, st.one_of(st.none(), st.just(LENGTH)))
def test_a_hole_holds_the_extents_it_covers_and_nothing_else(holes: list[Span], length: int | None) -> None:
    state = State(EXTENT, length, holes)
    zero = {byte for hole in holes for byte in range(hole.start, hole.end)}
    for index in range(EXTENTS + 8):
        extent = set(
            range(
                index * EXTENT, (index + 1) * EXTENT if length is None else min((index + 1) * EXTENT, length)
            )
        )
        inside = bool(extent) and extent <= zero
        assert state.known(index) == inside
        assert (state.digests().get(index) == zero_digest(len(extent))) == inside
        assert not inside or state.held.covers(Span(min(extent), max(extent) + 1))
    if length is not None:
        assert data_ranges(length, EXTENT, holes) == state.held.missing(length)
