"""Extents, digests and the root: what it means that two files are the same.

The exact bytes are specified in ``docs/integrity.md`` with test vectors. XXH3-128
finds accidents (a flipped bit, a torn write, a stale page); it is not a defence
against somebody who may write to either file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import xxhash

from tdx.model import Span

MIB: Final = 1 << 20
MIN_EXTENT: Final = 4 * MIB
MAX_EXTENT: Final = 64 * MIB
MAX_EXTENTS: Final = 1 << 20
"""Most extents of one file, so that their digests fit in one commit."""
MAX_LENGTH: Final = MAX_EXTENTS * MAX_EXTENT
"""Bytes of the largest file: 64 TiB."""
UNKNOWN_LENGTH_EXTENT: Final = 16 * MIB
EXTENTS_AIMED_AT: Final = 1024
DIGEST_SIZE: Final = 16
PART: Final = 256 << 10
"""An extent may travel in parts, over several connections at once: each begins on a multiple of this."""
BLOCK: Final = 4096
"""Bytes that are compared on their own where two versions of an extent differ: a page of a database, or of
a machine's disk."""
BLOCK_DIGEST_SIZE: Final = 8
BUFFER_FOR_HASHING: Final = MIB
"""Reads that feed a hasher: well above the 64 KiB under which xxhash keeps the GIL."""
ALGORITHM: Final = "xxh3-128"

_ROOT: Final = re.compile(r"xxh3-128:([1-9][0-9]{0,9}):([0-9a-f]{32})")


class Hasher(Protocol):
    """An incremental XXH3-128 (``xxhash.xxh3_128``)."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


def new_hasher() -> Hasher:
    return xxhash.xxh3_128()


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """XXH3-128 of ``data``: 16 bytes, canonical (big-endian) form."""
    return xxhash.xxh3_128_digest(data)


def block_digests(data: memoryview) -> bytes:
    """XXH3-64 of each block of ``data``, 8 bytes each (big-endian), in order; the last may be short. They
    say where two extents differ, and never that they are the same."""
    digest = xxhash.xxh3_64_digest
    return b"".join([digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)])


def extent_size_for(length: int | None) -> int:
    """The pinned function of the length: the smallest power of two from 4 to 64 MiB that
    cuts the file into at most 1024 extents; 16 MiB where the length is unknown."""
    if length is None:
        return UNKNOWN_LENGTH_EXTENT
    size = MIN_EXTENT
    while size < MAX_EXTENT and length > size * EXTENTS_AIMED_AT:
        size *= 2
    return size


def extent_count(length: int, extent_size: int) -> int:
    return -(-length // extent_size)


def extent_span(index: int, length: int | None, extent_size: int) -> Span:
    """The bytes of extent ``index``, cut at ``length``."""
    start = index * extent_size
    end = start + extent_size
    return Span(start, end if length is None else min(end, length))


def extents_of(span: Span, extent_size: int) -> range:
    """The indices of the extents that ``span`` touches."""
    return range(span.start // extent_size, -(-span.end // extent_size))


def cut(span: Span, extent_size: int) -> Iterator[Span]:
    """``span`` cut at the extent boundaries inside it."""
    start = span.start
    while start < span.end:
        end = min((start // extent_size + 1) * extent_size, span.end)
        yield Span(start, end)
        start = end


@lru_cache(maxsize=8)
def zero_digest(size: int) -> bytes:
    """The digest of ``size`` zero bytes."""
    hasher = xxhash.xxh3_128()
    block = bytes(min(size, MIB))
    left = size
    while left:
        part = min(left, len(block))
        hasher.update(block if part == len(block) else block[:part])
        left -= part
    return hasher.digest()


@dataclass(frozen=True, slots=True)
class Root:
    """XXH3-128 over the ordered extent digests and the length.

    The hashed bytes are the 16-byte digests in order, then the length as an
    unsigned 64-bit big-endian integer. Written ``xxh3-128:<extent size>:<hex>``.
    """

    extent_size: int
    value: bytes

    @classmethod
    def over(cls, digests: Sequence[bytes], length: int, extent_size: int) -> Root:
        if len(digests) != extent_count(length, extent_size):
            raise ValueError(f"{len(digests)} digests do not fit {length} bytes in extents of {extent_size}")
        return cls(extent_size, digest_of(b"".join(digests) + length.to_bytes(8, "big")))

    @classmethod
    def parse(cls, text: str) -> Root:
        """The inverse of ``str``; ValueError for anything else, other spellings of a root included."""
        match = _ROOT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a root: {text!r} (a root looks like {ALGORITHM}:4194304:<32 hex digits>)")
        extent_size = int(match[1])
        if not MIN_EXTENT <= extent_size <= MAX_EXTENT or extent_size & (extent_size - 1):
            raise ValueError(f"not a power of two from {MIN_EXTENT} to {MAX_EXTENT}: {extent_size}")
        return cls(extent_size, bytes.fromhex(match[2]))

    def __str__(self) -> str:
        return f"{ALGORITHM}:{self.extent_size}:{self.value.hex()}"


def root_of_small(digest: bytes, length: int) -> str:
    """The written root of a file of at most :data:`MIN_EXTENT` bytes, of which this is the digest: what
    ``str(Root.over(...))`` gives, in a quarter of the time."""
    value = xxhash.xxh3_128_hexdigest((digest if length else b"") + length.to_bytes(8, "big"))
    return f"{ALGORITHM}:{MIN_EXTENT}:{value}"
