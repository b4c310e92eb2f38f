"""What is known of published files without reading them, and how long that holds.

The root of a file's content is remembered with what stat told then, and holds as long as stat tells the
same. The ctime, which nobody can set, moves with every change, but only as often as the filesystem's clock
ticks. So what is remembered of a file that was changed a moment ago would also hold for a change in
the same tick, unless the mtime tells of that.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

SETTLED: Final = 2_000_000_000
"""Nanoseconds: no filesystem's clock has longer ticks."""

LONGEST_SPAN: Final = 1_000_000_000
"""Nanoseconds that giving files their names may take, for them to count as done at one moment."""

LINK: Final = "link"
"""Stands for the root of a symbolic link, whose target can be read as fast as it is looked up."""

_INODES: Final = (1 << 63) - 1
_TIMES: Final = range(-(1 << 63), 1 << 63)


class Stamp(NamedTuple):
    """One state of a file; of the inode number the lower 63 bits."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class KnownFile(NamedTuple):
    """The file at ``path``, as it was, has this root. ``durable``: it was made so, name included.

    ``span``: nanoseconds by which the ctime may be later than that of ``stamp``. Files that were given their
    names one right after the other are not all looked at; their ctimes lie between the first one's and
    the last one's.
    """

    path: str
    stamp: Stamp
    root: str
    durable: bool
    span: int = 0

    def holds(self, found: os.stat_result) -> bool:
        """Whether the file at the path, which is this, is what it was."""
        inode, size, mtime_ns, ctime_ns = self.stamp
        return (
            (found.st_ino & _INODES, found.st_size, found.st_mtime_ns) == (inode, size, mtime_ns)
        ) and 0 <= found.st_ctime_ns - ctime_ns <= self.span


class Moment(NamedTuple):
    """Ctimes from the first on, and up to so many nanoseconds later."""

    ctime_ns: int
    span: int


def stamp_of(found: os.stat_result) -> Stamp:
    return Stamp(found.st_ino & _INODES, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_old(stamp: Stamp, now: float) -> bool:
    """Whether whatever changes the file from ``now`` on (seconds since the Unix epoch) moves its ctime."""
    return stamp.ctime_ns <= now * 1e9 - SETTLED


def published(path: str, found: os.stat_result, root: str) -> KnownFile | None:
    """What can be remembered of a durable file that was given its name just now: its ctime is of this moment.
    Where its mtime is not, whoever writes to it moves that. None where it might be written to unnoticed."""
    mtime_ns, ctime_ns = found.st_mtime_ns, found.st_ctime_ns
    if -SETTLED < ctime_ns - mtime_ns < SETTLED or mtime_ns not in _TIMES:
        return None
    return KnownFile(path, Stamp(found.st_ino & _INODES, found.st_size, mtime_ns, ctime_ns), root, True)


def moment_of(first: os.stat_result, last: os.stat_result) -> Moment | None:
    """When files were given their names one after the other, of which these two were the first and the last;
    None where that took too long."""
    span = last.st_ctime_ns - first.st_ctime_ns
    return Moment(first.st_ctime_ns, span) if 0 <= span < LONGEST_SPAN else None


def published_at(
    moment: Moment, path: str, inode: int, size: int, mtime_ns: int | None, root: str
) -> KnownFile | None:
    """As :func:`published`, of a file that was given its name then, and this mtime."""
    ctime_ns, span = moment
    if (
        mtime_ns is None
        or ctime_ns - SETTLED < mtime_ns < ctime_ns + span + SETTLED
        or mtime_ns not in _TIMES
    ):
        return None
    return KnownFile(path, Stamp(inode & _INODES, size, mtime_ns, ctime_ns), root, True, span)


def linked(path: str, found: os.stat_result) -> KnownFile | None:
    """The same of a symbolic link. A link is never changed, only replaced by another."""
    stamp = stamp_of(found)
    if not stat.S_ISLNK(found.st_mode) or stamp.mtime_ns not in _TIMES:
        return None
    return KnownFile(path, stamp, LINK, True)
