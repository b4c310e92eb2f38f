"""One exit code for several files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PRECEDENCE: Final = (77, 65, 74, 73, 66, 76, 78, 64, 68, 69, 75, 0)
"""From worst to best.

A script looks at one number to decide between going on, running again and calling
somebody, so what needs a person outranks what the next run mends: 75 (run again) and
69 (the peer is away) come last, and stand only if nothing worse happened. Among the
others: 77 first, since a peer that is not who it should be casts doubt on everything
else; then 65 and 74, bytes that came out wrong and disks that fail; then 73 and 66, what
is amiss with one destination or one source; then 76, 78, 64 and 68, mistakes in versions,
configuration, usage and names, which lose nothing.
"""


def worst(codes: Iterable[int]) -> int:
    """The code that stands for all of ``codes``; 0 for none. A code that is not in
    :data:`PRECEDENCE` outranks those that are, as nothing is known about it."""
    return max(codes, key=_badness, default=0)


def _badness(code: int) -> int:
    return len(PRECEDENCE) - PRECEDENCE.index(code) if code in PRECEDENCE else len(PRECEDENCE) + 1
