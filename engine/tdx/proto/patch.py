"""What travels where a file is made from an earlier version of it (docs/http.md): bodies of three requests.

Every integer is big-endian. A list of extents is for each its index (4 bytes) and its digest (16). A list of
blocks is for each extent its index and the digests of all its blocks (8 bytes each). A patch is the number of
its extents (4 bytes), their list, and runs of bytes: where one begins in the file (8 bytes), its length (4),
and its content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tdx.errors import ProtocolError
from tdx.integrity import BLOCK, BLOCK_DIGEST_SIZE, DIGEST_SIZE, extent_count, extent_span
from tdx.model import Span

MEDIA_TYPE: Final = "application/vnd.tdx.patch"

MAX_LISTED: Final = 256
"""Most extents of one list: what is asked of a disk in one go has a bound."""

MAX_BLOCKS: Final = 1 << 17
"""Most blocks of one list: 1 MiB of digests, for 512 MiB of a file."""

MAX_RUN: Final = 256 << 10
"""Most bytes of one run of a patch."""

COUNT: Final = struct.Struct(">I")
_LISTED: Final = struct.Struct(f">I{DIGEST_SIZE}s")
RUN: Final = struct.Struct(">QI")

LISTED_SIZE: Final = _LISTED.size
LIST_LIMIT: Final = MAX_LISTED * LISTED_SIZE
BLOCKS_LIMIT: Final = MAX_BLOCKS * BLOCK_DIGEST_SIZE + MAX_LISTED * COUNT.size

Listed = tuple[int, bytes]
"""An extent's index and its digest."""


def encode_list(extents: Iterable[Listed]) -> bytes:
    return b"".join(_LISTED.pack(index, digest) for index, digest in extents)


def parse_list(body: bytes | memoryview, length: int, extent_size: int) -> list[Listed]:
    """The extents of a list, ascending, of a file of ``length`` bytes. ProtocolError."""
    if not body or len(body) % LISTED_SIZE or len(body) > LIST_LIMIT:
        raise ProtocolError(f"not a list of 1 to {MAX_LISTED} extents with a digest each")
    found = list(_LISTED.iter_unpack(body))
    _check_ascending([index for index, _ in found], length, extent_size)
    return found


def _check_ascending(indices: Sequence[int], length: int, extent_size: int) -> None:
    before = -1
    for index in indices:
        if index <= before:
            raise ProtocolError(f"the extents do not ascend at {index}")
        before = index
    if before >= extent_count(length, extent_size):
        raise ProtocolError(f"extent {before} is beyond the file's end")


def encode_blocks(extents: Iterable[tuple[int, bytes]]) -> bytes:
    """Of extents with the digests of their blocks."""
    return b"".join(COUNT.pack(index) + digests for index, digests in extents)


def parse_blocks(body: bytes, length: int, extent_size: int) -> list[tuple[int, memoryview]]:
    """The extents of a list of blocks, ascending, with the digests of all their blocks. ProtocolError."""
    if not body or len(body) > BLOCKS_LIMIT:
        raise ProtocolError(f"not a list of 1 to {MAX_BLOCKS} blocks")
    view, at = memoryview(body), 0
    found: list[tuple[int, memoryview]] = []
    while at < len(body):
        if at + COUNT.size > len(body):
            raise ProtocolError("a list of blocks ends inside an index")
        (index,) = COUNT.unpack_from(body, at)
        at += COUNT.size
        if index >= extent_count(length, extent_size):
            raise ProtocolError(f"extent {index} is beyond the file's end")
        size = digests_size(extent_span(index, length, extent_size))
        if at + size > len(body):
            raise ProtocolError(f"the blocks of extent {index} are not all there")
        found.append((index, view[at : at + size]))
        at += size
    _check_ascending([index for index, _ in found], length, extent_size)
    return found


def digests_size(extent: Span) -> int:
    """Bytes of the digests of all blocks of an extent."""
    return -(-len(extent) // BLOCK) * BLOCK_DIGEST_SIZE


def differing_blocks(extent: Span, ours: bytes, theirs: bytes | memoryview) -> list[Span]:
    """The byte ranges of ``extent`` whose blocks have other digests, merged, ascending. ``ours`` may end
    early: what lies behind it differs."""
    size, step = len(ours), BLOCK_DIGEST_SIZE
    if ours == theirs:
        return []
    theirs = bytes(theirs)
    found: list[Span] = []
    start: int | None = None
    for at in range(0, len(theirs), step):
        if at >= size or ours[at : at + step] != theirs[at : at + step]:
            if start is None:
                start = at
        elif start is not None:
            found.append(_blocks_span(extent, start // step, at // step))
            start = None
    if start is not None:
        found.append(_blocks_span(extent, start // step, len(theirs) // step))
    return found


def _blocks_span(extent: Span, first: int, end: int) -> Span:
    return Span(extent.start + first * BLOCK, min(extent.start + end * BLOCK, extent.end))


def runs_of(spans: Iterable[Span]) -> Iterator[Span]:
    """``spans`` cut into what one run of a patch can hold."""
    for span in spans:
        for start in range(span.start, span.end, MAX_RUN):
            yield Span(start, min(start + MAX_RUN, span.end))


def encode_run(run: Span) -> bytes:
    """What goes before its content."""
    return RUN.pack(run.start, len(run))


def patch_size(extents: int, runs: Iterable[Span]) -> int:
    """Bytes of a patch of so many extents with these runs."""
    return COUNT.size + extents * LISTED_SIZE + sum(RUN.size + len(run) for run in runs)
