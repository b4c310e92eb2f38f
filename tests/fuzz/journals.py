"""What is read back from a disk: journals, digest logs, an upload's meta."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import xxhash

from fuzz.target import Draws, Target, folder, in_common
from tdx.integrity import MIN_EXTENT, digest_of
from tdx.model import Conflict, FileName, Owner, Span, UploadId, UploadSpec
from tdx.ranges import RangeSet
from tdx.store import meta
from tdx.store.digestlog import DigestLog
from tdx.store.journal import RECORD_SIZE, Kind, Record, Session, State, encode, replay, seed_of

UPLOAD = UploadId("0123456789abcdef" * 2)
OTHER = UploadId("f" * 32)
EXTENTS = 6
LENGTH = EXTENTS * MIN_EXTENT - 1000
HOLES = (Span(0, MIN_EXTENT + 5), Span(4 * MIN_EXTENT, LENGTH))


# --- the journal --------------------------------------------------------------------------


def _seen(state: State) -> tuple[object, ...]:
    return (
        state.count,
        state.epoch,
        state.session,
        list(state.held),
        list(state.zeros),
        state.whole(),
        state.tails(),
        state.suspects(),
        state.recent(),
    )


def _fresh(length: int | None) -> State:
    return State(MIN_EXTENT, length, () if length is None else HOLES)


@dataclass
class _Extent:
    """One extent as docs/store.md has it, told with no thought of speed: the last durable piece, and later
    ones; ``hole``: it is held as zeros."""

    hole: bool = False
    durable: tuple[int, int] | None = None
    recent: list[tuple[int, tuple[int, int]]] = field(default_factory=list)

    @property
    def held(self) -> tuple[int, int] | None:
        return self.recent[-1][1] if self.recent else self.durable


def _held_by_the_book(records: list[Record], length: int | None) -> RangeSet:
    extents = {} if length is None else {index: _Extent(hole=True) for index in (0, 4, 5)}
    session: Session | None = None
    for number, record in enumerate(records):
        if record.kind is Kind.SESSION:
            new = Session(record.digest, record.a, record.b)
            if session is not None and not (session == new and new.mount and any(new.boot)):
                for extent in extents.values():
                    extent.recent.clear()
            session = new
        else:
            _take_in(extents, number, record)
    held = RangeSet()
    for index, extent in extents.items():
        if extent.hole:
            held.add(Span(index * MIN_EXTENT, min((index + 1) * MIN_EXTENT, LENGTH)))
        elif extent.held is not None:
            held.add(Span(*extent.held))
    return held


def _take_in(extents: dict[int, _Extent], number: int, record: Record) -> None:
    kind, a, b, *_ = record
    if kind is Kind.PIECE:
        extent = extents.setdefault(a // MIN_EXTENT, _Extent())
        extent.hole = False
        extent.recent.append((number, (a, b)))
    elif kind is Kind.INVALIDATE:
        for index in [index for index in extents if a <= index < b]:
            del extents[index]
    elif kind is Kind.MARK:
        for extent in extents.values():
            while extent.recent and extent.recent[0][0] < a:
                extent.durable = extent.recent.pop(0)[1]


def journal_bytes(data: bytes) -> None:
    """Whatever a journal's file has: its valid beginning is whole records, says the same when it is replayed
    alone, and can be gone on from."""
    draws = Draws(data)
    length = None if draws.below(2) else LENGTH
    raw = draws.rest()
    state = _fresh(length)
    end, chain = replay(raw, state, UPLOAD)
    assert end % RECORD_SIZE == 0
    assert 0 <= end <= len(raw)
    assert state.count == end // RECORD_SIZE
    again = _fresh(length)
    assert replay(raw[:end], again, UPLOAD) == (end, chain)
    assert _seen(again) == _seen(state)
    record = Record.session(Session(bytes(16), 1, 1))
    assert state.fits(record)
    appended, _ = encode(record, chain)
    assert replay(raw[:end] + appended, _fresh(length), UPLOAD)[0] == end + RECORD_SIZE


def written_journal(data: bytes) -> None:
    """A journal that was changed, cut, or has other bytes behind it says what its unchanged beginning says:
    no span that was not written there with a right checksum. And that is what the rules of docs/store.md
    make of those records."""
    draws = Draws(data)
    length = None if draws.below(2) else LENGTH
    live, raw, chain = _fresh(length), b"", seed_of(UPLOAD)
    records: list[Record] = []
    for _ in range(draws.below(24)):
        record = _record(draws, live)
        if live.fits(record):
            live.apply(record)
            appended, chain = encode(record, chain)
            raw += appended
            records.append(record)
    state = _fresh(length)
    assert replay(raw, state, UPLOAD) == (len(raw), chain)
    assert _seen(state) == _seen(live)
    assert state.held == _held_by_the_book(records, length)
    assert replay(raw, _fresh(length), OTHER)[0] == 0

    changed = _changed(raw, draws)
    kept = in_common(raw, changed) // RECORD_SIZE
    damaged = _fresh(length)
    assert replay(changed, damaged, UPLOAD)[0] == kept * RECORD_SIZE
    assert damaged.held == _held_by_the_book(records[:kept], length)


def _record(draws: Draws, state: State) -> Record:
    kind = draws.below(8)
    a, b = draws.below(EXTENTS + 1), draws.below(EXTENTS + 2)
    if kind == 0:
        return Record.session(Session(bytes([a]) * 16, 1, b % 3))
    if kind == 1:
        return Record.invalidate(a, b)
    if kind == 2:
        return Record.mark(state.count - min(a, state.count))
    if kind == 3:
        return Record.epoch(state.epoch + b)
    start = a * MIN_EXTENT
    cut = 0 if b % 2 else b * 1000 + 1
    return Record(Kind.PIECE, start, min(start + MIN_EXTENT - cut, LENGTH), digest_of(bytes([a, b])))


def _changed(raw: bytes, draws: Draws) -> bytes:
    """``raw`` after an accident."""
    found = bytearray(raw)
    way = draws.below(5)
    at = draws.below(len(found) + 1, 2)
    if way == 0:
        del found[at:]
    elif way == 1 and at < len(found):
        found[at] ^= 1 << draws.below(8)
    elif way == 2:
        size = draws.below(3) * RECORD_SIZE
        found[at : at + size] = bytes(len(found[at : at + size]))
    elif way == 3:
        found[at:at] = found[: draws.below(3) * RECORD_SIZE]
    return bytes(found) + draws.rest()


def _journals() -> list[bytes]:
    found: list[bytes] = []
    for length in (b"\0", b"\1"):
        raw, chain = length, seed_of(UPLOAD)
        for record in (
            Record.session(Session(b"b" * 16, 1, 1)),
            Record(Kind.PIECE, MIN_EXTENT, 2 * MIN_EXTENT, digest_of(b"")),
            Record.mark(2),
            Record(Kind.PIECE, 2 * MIN_EXTENT, 2 * MIN_EXTENT + 5, digest_of(b"")),
            Record.invalidate(0, 2),
            Record.epoch(2),
            Record.session(Session(b"c" * 16, 1, 0)),
        ):
            appended, chain = encode(record, chain)
            raw += appended
        found.append(raw)
    return found


def _histories() -> list[bytes]:
    """Numbers that :func:`_record` and :func:`_changed` make something of."""
    session, other = b"\0\1\1", b"\0\2\1"
    pieces = b"\4\1\1" + b"\5\2\2" + b"\6\0\1" + b"\7\5\1"
    mark, epoch, invalidate = b"\2\0\0", b"\3\0\1", b"\1\0\2"
    history = session + pieces + mark + pieces + invalidate + epoch + other + pieces + session
    count = bytes([len(history) // 3])
    return [length + count + history + change for length in (b"\0", b"\1") for change in (b"", b"\1\0\60\1")]


# --- the sender's digest log ------------------------------------------------------------------

_SOURCE, _STATE = "source", "1 2 3"


def digest_log(data: bytes) -> None:
    """No log is too damaged to be opened; a digest counts only where a line proves it; and what is appended
    is there again."""
    draws = Draws(data)
    index, keep = draws.number(3), draws.below(2)
    with DigestLog.open(folder(), _SOURCE, _STATE, MIN_EXTENT, trustworthy=False) as log:
        path, header = log._path, log._header
    path.write_bytes((header.encode() + b"\n" if keep else b"") + draws.rest())
    raw = path.read_bytes()
    with DigestLog.open(folder(), _SOURCE, _STATE, MIN_EXTENT, trustworthy=True) as log:
        found = log.digests()
        for each, digest in found.items():
            assert each >= 0
            assert len(digest) == 16
            proof = xxhash.xxh3_128_hexdigest(f"{header} {each} {digest.hex()}".encode())[:16]
            assert re.search(rb"\n[^\n]*%s(\n|$)" % proof.encode(), raw), "nothing proves it"
        log.append(index, digest_of(raw), trusted=True)
    with DigestLog.open(folder(), _SOURCE, _STATE, MIN_EXTENT, trustworthy=True) as log:
        assert log.digests() == {**found, index: digest_of(raw)}
    with DigestLog.open(folder(), _SOURCE, "another", MIN_EXTENT, trustworthy=True) as log:
        assert log.digests() == {}


def _logs() -> list[bytes]:
    with DigestLog.open(folder(), "seed", _STATE, MIN_EXTENT, trustworthy=False) as log:
        log._path.unlink(missing_ok=True)
        for index in (0, 1, 70_000):
            log.append(index, digest_of(b"%d" % index), trusted=True)
        raw = log._path.read_bytes()
    return [b"\0\0\5\0" + raw, b"\0\0\1\1" + raw.partition(b"\n")[2]]


# --- an upload's meta -------------------------------------------------------------------------


def upload_meta(data: bytes) -> None:
    """A meta file is an upload's specification, which is written as it was read, or a ValueError."""
    try:
        spec = meta.decode(data)
    except ValueError:
        return
    assert meta.decode(meta.encode(spec)) == spec


def _metas() -> list[bytes]:
    spec = UploadSpec(
        Owner("local:1"), FileName("ü"), LENGTH, MIN_EXTENT, Conflict.SKIP, "s", "f", 1, 0o644, HOLES
    )
    return [meta.encode(spec), meta.encode(UploadSpec(Owner("tls:0"), FileName("a"), None, 1 << 24, key="k"))]


TARGETS = {
    "journal_bytes": Target(journal_bytes, _journals),
    "written_journal": Target(written_journal, _histories, longest=300),
    "digest_log": Target(
        digest_log, _logs, [b"\n", b" ", b"\xff", *b"+1 0x1 1_0 99999999999999999999".split()]
    ),
    "upload_meta": Target(upload_meta, _metas, b"null [[0,5]] [[5,0]] NaN 99999999999999999999 {}".split()),
}
