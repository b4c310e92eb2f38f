"""What a run of several files is made of: what to push, and how each ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from tdx.model import Stages

if TYPE_CHECKING:
    import os

    from tdx.control.progress import PushResult
    from tdx.errors import TdxError

STDIN: Final = "-"

BUNDLED_MOST: Final = 256 << 10
"""Bytes of the largest file that is sent together with others (docs/decisions/007-small-files.md)."""


@dataclass(slots=True, eq=False)
class Item:
    """One file to push as ``name``. ``size`` is in bytes as the folder or stat tells it, None where
    nobody has looked or nothing can be known; ``error``: why it cannot be pushed, known before it is
    tried; ``status``: what stat told, of a file that need not be sent where the peer has it already.
    The path ``-`` is standard input."""

    path: str
    name: str
    size: int | None = None
    error: TdxError | None = None
    status: os.stat_result | None = None

    @property
    def is_stdin(self) -> bool:
        return self.path == STDIN


@dataclass(slots=True, eq=False)
class LeftOut:
    """Something in a folder that is not pushed, and why."""

    path: str
    reason: str


@dataclass(slots=True, eq=False)
class Folder:
    """A folder to be made as ``name``, with its permission bits."""

    path: str
    name: str
    mtime_ns: int
    mode: int


@dataclass(slots=True, eq=False)
class Link:
    """A symbolic link to be made as ``name``; its ``target`` stays in the folder that is pushed."""

    path: str
    name: str
    mtime_ns: int
    target: str


Part = Folder | Link
"""What a tree has besides files."""

Found = Item | Part | LeftOut


@dataclass(slots=True, eq=False)
class PartEnded:
    """What became of a folder or a link: ``outcome`` is ``same`` (it was there), ``made``, ``skipped`` or
    ``failed``, with an ``error``. ``path`` is where it is in the receiver's folder, None after a failure."""

    part: Part
    outcome: str
    path: str | None = None
    error: TdxError | None = None


@dataclass(slots=True, eq=False)
class Ended:
    """How one file ended: with a ``result``, or with an ``error`` (a TdxError, unless nobody
    expected it). ``together``: it travelled with others, and ``seconds``, ``ours`` and ``theirs`` (the stage
    seconds of both ends) are what they took, ``share`` of it for this one; their ``retries`` are told with
    the first of them."""

    item: Item
    size: int | None
    sent: int
    resumed: int
    seconds: float
    result: PushResult | None = None
    error: Exception | None = None
    together: bool = False
    reused: int = 0
    ours: Stages = field(default_factory=Stages)
    theirs: Stages = field(default_factory=Stages)
    retries: int = 0
    share: float = 1.0


class Watch(Protocol):
    """Who is told what happens, in the loop's thread. What these raise ends the run."""

    def left_out(self, what: LeftOut) -> None: ...

    def started(self, item: Item) -> None:
        """A file is taken up, in the order of the items."""
        ...

    def ended(self, endings: Sequence[Ended]) -> None:
        """Files have ended, in any order."""
        ...

    def parts_ended(self, endings: Sequence[PartEnded]) -> None:
        """Folders and links are at the peer, or are not to be; a folder that could not be given its time
        after all that it holds is told a second time, as failed."""
        ...

    def flush(self) -> None:
        """Nothing more happens for now."""
        ...
