"""What a target of the fuzzers is, and what the targets share."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdx.errors import TdxError, leaves

KNOWN = frozenset(leaves())
LONGEST_MESSAGE = 1200


@dataclass(frozen=True)
class Target:
    """Something that hostile bytes reach.

    ``run`` takes one input and returns, or raises AssertionError where its property does not hold; anything
    else that it raises is a fault too. ``seeds`` are inputs that are read as something valid, made by the
    project's own encoders. ``tokens`` are worth inserting anywhere.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    tokens: Sequence[bytes] = ()
    longest: int = 4096


class Draws:
    """Small numbers out of the bytes of an input, zeros when they have run out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int = 1) -> int:
        """From ``size`` bytes, the high one first."""
        drawn = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(drawn.ljust(size, b"\0"))

    def below(self, end: int, size: int = 1) -> int:
        return self.number(size) % end

    def take(self, size: int) -> bytes:
        drawn = self._data[self._at : self._at + size]
        self._at += size
        return drawn

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def rest(self) -> bytes:
        return self.take(len(self._data))


def cut_up(data: bytes, way: int) -> Iterator[bytes]:
    """``data`` in pieces, as a network might hand it over; ``way``: which of many cuts, 0 is byte by byte."""
    dice = random.Random(way)
    at = 0
    while at < len(data):
        size = dice.choice((1, 1, 2, 3, 7, 30, 200)) if way else 1
        yield data[at : at + size]
        at += size


def in_common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def is_for_people(error: TdxError) -> None:
    """An error of the tree, with one line that can be shown."""
    assert type(error) in KNOWN
    assert error.message.isprintable()
    assert len(error.message) <= LONGEST_MESSAGE


@functools.cache
def folder() -> Path:
    """A folder of this process, which goes with it."""
    made = Path(tempfile.mkdtemp(prefix="tdx-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
