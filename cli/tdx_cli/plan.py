"""From the PATHs of a command line to what is pushed, and under which names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tdx.control.items import STDIN, Found, Item
from tdx.errors import SourceError, UsageError
from tdx.model import Links, shown

if TYPE_CHECKING:
    from tdx.control.patterns import Patterns


def check(paths: Sequence[str], *, name: str | None, resume: bool, digest: str | None = None) -> None:
    """UsageError where the flags and the PATHs contradict each other."""
    if len(paths) > 1 and name is not None:
        raise UsageError("--name names one file; leave it out to push several PATHs")
    if STDIN in paths:
        if resume:
            raise UsageError("standard input cannot be read again from the middle: leave out --resume or -")
        if name is None:
            raise UsageError("standard input has no name; give it one with --name")
        if digest is not None:
            raise UsageError("standard input cannot be read twice: leave out --digest or -")
    _check_distinct(paths)


def _check_distinct(paths: Sequence[str]) -> None:
    """UsageError where two PATHs go by one name, so that one would replace the other or
    two folders would be mixed."""
    named: dict[str, str] = {}
    for path in paths:
        top = name_of(path)
        if top in named:
            raise UsageError(
                f"{shown(named[top])} and {shown(path)} would both be {shown(top)} at the peer; "
                "push one of them in a run of its own, with --name"
            )
        named[top] = path
    if "" in named and len(paths) > 1:
        raise UsageError("/ has no name that keeps what it holds apart; push it in a run of its own")


def name_of(path: str) -> str:
    """The last part of the path, which may end in . or .., which name nothing."""
    return os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119  any bytes may be a path


def plan(
    paths: Sequence[str],
    *,
    name: str | None,
    recursive: bool,
    links: Links = Links.SKIP,
    patterns: Patterns | None = None,
    advice: str = "push it with -r",
) -> Iterator[Found]:
    """What to push, in order. A file goes by its own name, what a folder holds by its
    path from the folder's name on; ``name`` stands in for the first part. ``links`` and ``patterns``
    are as :func:`tdx.control.walk.walk` has them, and say nothing of the paths themselves. ``advice`` is what
    to do about a folder that is not looked into."""
    for path in paths:
        top = name_of(path) if name is None else name
        if path == STDIN and sys.stdin is None:
            yield Item(path, top, error=SourceError("standard input is closed"))
        elif path == STDIN:
            yield Item(path, top)
        elif not os.path.isdir(path):  # noqa: PTH112
            yield _file(path, top)
        elif recursive:
            from tdx.control.walk import walk

            yield from walk(path, top, links=links, patterns=patterns)
        else:
            yield Item(path, top, error=UsageError(f"{shown(path)}: is a directory; {advice}"))


def _file(path: str, name: str) -> Item:
    """Where it cannot be looked at, pushing it will tell why not."""
    try:
        status = os.stat(path)  # noqa: PTH116  any bytes may be a path
    except (OSError, ValueError):
        return Item(path, name)
    return Item(path, name, status.st_size, status=status)
