"""From an item of a batch to what is pushed, and under which names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from tdx.control.items import Found, Item, LeftOut
from tdx.errors import SourceError, UsageError
from tdx.model import shown
from tdx_cli.globs import Match, literal, matches
from tdx_cli.plan import name_of, plan

if TYPE_CHECKING:
    from tdx.config.batch import BatchItem
    from tdx.control.patterns import Patterns

EVERYTHING: Final = "/**/*"
NOT_RECURSIVE: Final = "say recursive = true, or name what it holds with a wildcard"


@dataclass(frozen=True, slots=True)
class Named:
    """A file or a folder that an item names, and its name at the peer, ``into`` in front of it."""

    path: str
    name: str


def find(item: BatchItem) -> list[Named | Item | LeftOut]:
    """What the sources of ``item`` are at this moment. A pattern that matches nothing is an Item with an
    error, unless nothing need be there.

    UsageError where two of them would go by one name, or several by that of one.
    """
    found: list[Named | Item | LeftOut] = []
    for pattern in item.sources:
        some = list(_found(pattern, item))
        found += some
        if not item.optional and all(isinstance(each, LeftOut) for each in some):
            found.append(_nothing(pattern))
    found = _distinct(found)
    named = [each for each in found if isinstance(each, Named)]
    if item.called is not None and len(named) > 1:
        raise UsageError(
            f"{item.called} would be the name of {len(named)} sources: leave as out, or name one source"
        )
    if item.called is None and item.into is None:
        return found
    return [_renamed(each, item) if isinstance(each, Named) else each for each in found]


def items_of(item: BatchItem, found: Sequence[Named | Item | LeftOut]) -> Iterator[Found]:
    """What to push of what :func:`find` found, in its order."""
    patterns = patterns_of(item)
    for each in found:
        if isinstance(each, Named):
            yield from plan(
                [each.path],
                name=each.name,
                recursive=item.recursive,
                links=item.links,
                patterns=patterns,
                advice=NOT_RECURSIVE,
            )
        else:
            yield each


def patterns_of(item: BatchItem) -> Patterns | None:
    """What the item leaves out of folders; UsageError for what is no pattern."""
    if not item.exclude and not item.include:
        return None
    from tdx.control.patterns import Patterns, excluding, including

    return Patterns([*map(excluding, item.exclude), *map(including, item.include)])


def _nothing(pattern: str) -> Item:
    parts = [(part, literal(part)) for part in pattern.split("/")]
    path = "/".join(part if text is None else text for part, text in parts)
    what = "is not there" if all(text is not None for _, text in parts) else "matches nothing to push"
    return Item(path, name_of(path), error=SourceError(f"{shown(path)}: {what}"))


def _found(pattern: str, item: BatchItem) -> Iterator[Named | Item | LeftOut]:
    folders: set[str] = set()
    if not item.recursive and pattern.endswith(EVERYTHING):
        pattern = pattern.removesuffix("/*")  # the same, but for the folders, which are looked into anyway
    for match in matches(pattern):
        if match.error is not None:
            yield Item(match.path, match.name or match.path, error=match.error)
            continue
        if folders and not folders.isdisjoint(map(str, PurePosixPath(match.path).parents)):
            continue  # it comes with the folder that it is in
        if item.recursive and os.path.isdir(match.path):  # noqa: PTH112  any bytes may be a path
            folders.add(match.path)
        yield _judged(match, item)


def _judged(match: Match, item: BatchItem) -> Named | LeftOut:
    """What a wildcard happens to match need not be something to push; what is named outright has to be."""
    if match.name is None:
        return Named(match.path, name_of(match.path))
    try:
        mode = os.stat(match.path).st_mode  # noqa: PTH116  any bytes may be a path
    except OSError:
        return Named(match.path, match.name)  # pushing it tells why not
    if stat.S_ISDIR(mode) and not item.recursive:
        return LeftOut(match.path, "is a folder, and the item is not recursive")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return LeftOut(match.path, "is not a regular file")
    return Named(match.path, match.name)


def _distinct(found: Sequence[Named | Item | LeftOut]) -> list[Named | Item | LeftOut]:
    """Each path once. UsageError where one would replace another at the peer, or be mixed with it."""
    named: dict[str, str] = {}
    kept: list[Named | Item | LeftOut] = []
    for each in found:
        if not isinstance(each, Named):
            kept.append(each)
            continue
        path = os.path.abspath(each.path)  # noqa: PTH100
        if each.name not in named:
            named[each.name] = path
            kept.append(each)
        elif named[each.name] != path:
            raise _mixed(named[each.name], path, each.name)
    for name, path in named.items():
        for above in map(str, PurePosixPath(name).parents):
            if above in named and not path.startswith(named[above] + "/"):
                raise _mixed(named[above], path, above)
    return kept


def _mixed(one: str, other: str, name: str) -> UsageError:
    return UsageError(
        f"{shown(one)} and {shown(other)} would both be {shown(name)} at the peer; "
        "make them two items with an into of their own"
    )


def _renamed(found: Named, item: BatchItem) -> Named:
    name = found.name if item.called is None else item.called
    parts = [part for part in (item.into, name) if part]
    return Named(found.path, "/".join(parts))
