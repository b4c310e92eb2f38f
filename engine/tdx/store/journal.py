"""The journal: an append-only record of what is held, and its replay.

Pure: bytes in, state out. ``docs/store.md`` specifies the bytes. Each record carries a
checksum that is seeded with the one before it, so a record counts only if everything
before it is intact and belongs to the same upload: a torn tail, a lost page or stale
records beyond the end are dropped, and what remains is what had been recorded at some
earlier moment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

import xxhash

from tdx.integrity import DIGEST_SIZE, zero_digest
from tdx.model import Span, UploadId
from tdx.ranges import RangeSet
from tdx.store.port import Piece

VERSION: Final = 1
_RECORD: Final = struct.Struct(">BB2xIQQ16s")
_CHECKSUM: Final = struct.Struct(">Q")
RECORD_SIZE: Final = _RECORD.size + _CHECKSUM.size
_NO_DIGEST: Final = bytes(DIGEST_SIZE)


class Kind(IntEnum):
    """What a record says."""

    SESSION = 1
    PIECE = 2
    INVALIDATE = 3
    MARK = 4
    EPOCH = 5


class Record(NamedTuple):
    """One record; ``a``, ``b``, ``digest`` and ``reused`` mean what the constructors below say."""

    kind: Kind
    a: int
    b: int = 0
    digest: bytes = _NO_DIGEST
    reused: int = 0

    @classmethod
    def session(cls, session: Session) -> Record:
        return cls(Kind.SESSION, session.device, session.mount, session.boot)

    @classmethod
    def piece(cls, piece: Piece) -> Record:
        return cls(Kind.PIECE, piece.span.start, piece.span.end, piece.digest, piece.reused)

    @classmethod
    def invalidate(cls, first: int, end: int) -> Record:
        """Extents ``first`` to ``end - 1``."""
        return cls(Kind.INVALIDATE, first, end)

    @classmethod
    def mark(cls, covered: int) -> Record:
        """The data of the first ``covered`` records of this journal is durable."""
        return cls(Kind.MARK, covered)

    @classmethod
    def epoch(cls, epoch: int) -> Record:
        return cls(Kind.EPOCH, epoch)


@dataclass(frozen=True, slots=True)
class Session:
    """Where the page cache that holds unsynced bytes lives: boot, filesystem and mount.

    ``mount`` is 0 where it cannot be told, ``boot`` all zeros (a sandbox may hide it); such a session is
    never the same as another.
    """

    boot: bytes
    device: int
    mount: int

    def same(self, other: Session) -> bool:
        return self == other and self.mount != 0 and any(self.boot)


class Entry(NamedTuple):
    """A recorded piece and the session that recorded it."""

    piece: Piece
    session: Session

    @property
    def received(self) -> int:
        """Bytes of it that have come over the network."""
        return len(self.piece.span) - self.piece.reused


def seed_of(upload: UploadId) -> int:
    """The chain's start: records of another upload's journal never fit."""
    return xxhash.xxh3_64_intdigest(upload.encode("ascii"))


def encode(record: Record, chain: int) -> tuple[bytes, int]:
    """The record's bytes after a journal whose last checksum is ``chain``, and its own checksum."""
    body = _RECORD.pack(record.kind, VERSION, record.reused, record.a, record.b, record.digest)
    chain = xxhash.xxh3_64_intdigest(body, chain)
    return body + _CHECKSUM.pack(chain), chain


def runs(extents: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending half-open runs of these indices."""
    first = end = -1
    for index in sorted(set(extents)):
        if index != end:
            if end > first:
                yield first, end
            first = index
        end = index + 1
    if end > first:
        yield first, end


class State:
    """What a journal says, kept up to date record by record.

    Two layers: pieces whose data is durable, and those recorded since the last mark,
    which are forgotten when a session of another boot, filesystem or mount begins.
    Not thread-safe.
    """

    def __init__(self, extent_size: int, length: int | None, holes: Iterable[Span] = ()) -> None:
        """``holes`` count as far as they cover whole extents; the rest of them must be sent."""
        self.extent_size = extent_size
        self.length = length
        self.count = 0
        self.epoch = 1
        self.session: Session | None = None
        self.held = RangeSet()
        self.received = 0
        """Bytes that are held and have come over the network."""
        self.zeros = RangeSet()
        """Indices of extents, as ranges: a sparse file has millions of them in a few holes."""
        self._doubted: set[int] = set()
        self._durable: dict[int, Entry] = {}
        self._recent: list[tuple[int, Entry]] = []
        self._entries: dict[int, Entry] = {}
        for span in RangeSet(holes):
            end = span.end if length is None else min(span.end, length)
            first, last = -(-span.start // extent_size), end // extent_size
            if end == length:
                last = -(-end // extent_size)
            if first < last:
                self.zeros.add(Span(first, last))
                self.held.add(Span(first * extent_size, min(last * extent_size, end)))

    # --- what it says -------------------------------------------------------------

    def entry(self, index: int) -> Entry | None:
        return self._entries.get(index)

    def end_of(self, index: int) -> int:
        """Where extent ``index`` ends."""
        end = (index + 1) * self.extent_size
        return end if self.length is None else min(end, self.length)

    def whole(self) -> dict[int, bytes]:
        """Digests of recorded whole extents (without zero extents)."""
        return {
            index: entry.piece.digest
            for index, entry in self._entries.items()
            if entry.piece.span.end == self.end_of(index)
        }

    def digests(self) -> dict[int, bytes]:
        """The same with the zero extents."""
        found = {
            index: zero_digest(self.end_of(index) - index * self.extent_size)
            for zeros in self.zeros
            for index in range(zeros.start, zeros.end)
        }
        found.update(self.whole())
        return found

    def tails(self) -> dict[int, Piece]:
        return {
            index: entry.piece
            for index, entry in self._entries.items()
            if entry.piece.span.end != self.end_of(index)
        }

    def suspects(self) -> frozenset[int]:
        """Extents to be read again: recorded under another boot, filesystem or mount, or before the
        present claim without a mark that covers them."""
        return frozenset(index for index, entry in self._entries.items() if self.is_suspect(entry))

    def is_suspect(self, entry: Entry) -> bool:
        if entry.session is self.session:
            return False
        return _index(entry, self.extent_size) in self._doubted or not entry.session.same(self._session())

    def recent(self) -> set[int]:
        """Extents with a piece that no mark covers."""
        return {_index(entry, self.extent_size) for _, entry in self._recent}

    def beyond(self, size: int) -> set[int]:
        """Extents whose recorded bytes end after a file of ``size`` bytes."""
        return {index for index, entry in self._entries.items() if entry.piece.span.end > size}

    def rollback(self) -> list[Record]:
        """The records that take back what no mark covers, and leave what was there before it: the beginning
        of an extent that has grown since."""
        lost = self.recent()
        records = [Record.invalidate(first, end) for first, end in runs(lost)]
        records += [Record.piece(self._durable[index].piece) for index in sorted(lost & self._durable.keys())]
        return [*records, Record.mark(self.count + len(records))]

    def known(self, index: int) -> bool:
        return index in self._entries or self.zeros.covers(Span(index, index + 1))

    # --- how it changes -------------------------------------------------------------

    def fits(self, record: Record) -> bool:
        """Whether ``record`` makes sense as the next one."""
        kind, a, b, digest, reused = record
        if kind is Kind.SESSION:
            return True
        if self.session is None:
            return False
        if kind is Kind.PIECE:
            whole = a + self.extent_size if self.length is None else min(a + self.extent_size, self.length)
            fits = a % self.extent_size == 0 and a < b <= whole and reused <= b - a
            return fits and len(digest) == DIGEST_SIZE
        if kind is Kind.INVALIDATE:
            return a < b
        if kind is Kind.MARK:
            return a <= self.count
        return a > self.epoch

    def apply(self, record: Record) -> None:
        """Take in the next record, which :meth:`fits`."""
        kind, a, b, digest, reused = record
        if kind is Kind.PIECE:
            self._add(Entry(Piece(Span(a, b), digest, reused), self._session()))
        elif kind is Kind.INVALIDATE:
            self._invalidate(a, b)
        elif kind is Kind.MARK:
            self._mark(a)
        elif kind is Kind.EPOCH:
            self.epoch = a
        else:
            self._begin(Session(digest, a, b))
        self.count += 1

    def _session(self) -> Session:
        assert self.session is not None
        return self.session

    def _add(self, entry: Entry) -> None:
        index = _index(entry, self.extent_size)
        self._recent.append((self.count, entry))
        self._show(index, entry)

    def _show(self, index: int, entry: Entry | None) -> None:
        """Make ``entry`` what counts for this extent."""
        self._doubted.discard(index)
        if self.known(index):
            self.zeros.remove(Span(index, index + 1))
            if (replaced := self._entries.pop(index, None)) is not None:
                self.received -= replaced.received
            self.held.remove(self._extent(index))
        if entry is not None:
            self.received += entry.received
            self._entries[index] = entry
            self.held.add(entry.piece.span)

    def _extent(self, index: int) -> Span:
        return Span(index * self.extent_size, (index + 1) * self.extent_size)

    def _invalidate(self, first: int, end: int) -> None:
        self.held.remove(Span(first * self.extent_size, end * self.extent_size))
        self._doubted = {index for index in self._doubted if not first <= index < end}
        self.received -= sum(entry.received for index, entry in self._entries.items() if first <= index < end)
        for table in (self._entries, self._durable):
            for index in [index for index in table if first <= index < end]:
                del table[index]
        self.zeros.remove(Span(first, end))
        self._recent = [each for each in self._recent if not first <= _index(each[1], self.extent_size) < end]

    def _mark(self, covered: int) -> None:
        at = next((at for at, (number, _) in enumerate(self._recent) if number >= covered), len(self._recent))
        for _, entry in self._recent[:at]:
            self._durable[_index(entry, self.extent_size)] = entry
        del self._recent[:at]

    def _begin(self, session: Session) -> None:
        if self.session is not None and not self.session.same(session):
            for index in self.recent():
                self._show(index, self._durable.get(index))
            self._recent.clear()
        # Whoever held the claim was killed before a mark: nobody has vouched for the file since. A
        # later mark does not either, only a recheck.
        self._doubted |= self.recent()
        self.session = session


def _index(entry: Entry, extent_size: int) -> int:
    return entry.piece.span.start // extent_size


def replay(data: bytes, state: State, upload: UploadId) -> tuple[int, int]:
    """Feed the valid beginning of ``data`` to a fresh ``state``: where that ends, and the checksum
    it ends with. Never raises for bad bytes."""
    chain = seed_of(upload)
    end = 0
    for at in range(0, len(data) - RECORD_SIZE + 1, RECORD_SIZE):
        body = data[at : at + _RECORD.size]
        (checksum,) = _CHECKSUM.unpack_from(data, at + _RECORD.size)
        if xxhash.xxh3_64_intdigest(body, chain) != checksum:
            break
        kind, version, reused, a, b, digest = _RECORD.unpack(body)
        if version != VERSION or kind not in _KINDS:
            break
        record = Record(_KINDS[kind], a, b, digest, reused)
        if not state.fits(record):
            break
        state.apply(record)
        chain = checksum
        end = at + RECORD_SIZE
    return end, chain


_KINDS: Final = {int(kind): kind for kind in Kind}


def data_ranges(length: int, extent_size: int, holes: Iterable[Span]) -> RangeSet:
    """What will be written of a file: all but the extents that holes cover."""
    return State(extent_size, length, holes).held.missing(length)
