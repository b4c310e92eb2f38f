"""Which published files are still what they were."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import TypeVar

from tdx.errors import TdxError
from tdx.store.known import KnownFile
from tdx.store.paths import Tree
from tdx.store.receipts import ArrivedFile, PublishedFile

File = TypeVar("File", PublishedFile, ArrivedFile)


def still_there(tree: Tree, published: Iterable[File]) -> tuple[list[File], list[File]]:
    """Those that still are a file of that size, and those that are not. What cannot be looked at
    counts as there."""
    there: list[File] = []
    gone: list[File] = []
    for each in published:
        try:
            found = tree.look(each.path)
        except TdxError:
            there.append(each)
            continue
        same = found is not None and stat.S_ISREG(found.st_mode) and found.st_size == each.size
        (there if same else gone).append(each)
    return there, gone


def no_longer(tree: Tree, known: Iterable[KnownFile]) -> list[KnownFile]:
    """Those that are not what was remembered any more. What cannot be looked at is not among them."""
    changed: list[KnownFile] = []
    for each in known:
        try:
            found = tree.look(each.path)
        except TdxError:
            continue
        if found is None or not each.holds(found):
            changed.append(each)
    return changed
