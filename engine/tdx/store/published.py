"""Which published files are still what they were."""

from __future__ import annotations

import stat
from collections.abc import Iterable

from tdx.errors import TdxError
from tdx.model import FileName
from tdx.store.paths import Tree

Sized = tuple[FileName, int]
"""A path and the size of the file that was published there."""


def still_there(tree: Tree, published: Iterable[Sized]) -> tuple[list[Sized], list[Sized]]:
    """Those that still are a file of that size, and those that are not. What cannot be looked at
    counts as there."""
    there: list[Sized] = []
    gone: list[Sized] = []
    for path, size in published:
        try:
            found = tree.look(path)
        except TdxError:
            there.append((path, size))
            continue
        same = found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size
        (there if same else gone).append((path, size))
    return there, gone
