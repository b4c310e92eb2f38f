"""From the PATHs of a command line to what is pushed, and under which names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

from tdx.control.items import STDIN, Item, LeftOut
from tdx.errors import SourceError, UsageError
from tdx.model import shown


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


def plan(paths: Sequence[str], *, name: str | None, recursive: bool) -> Iterator[Item | LeftOut]:
    """What to push, in order. A file goes by its own name, what a folder holds by its
    path from the folder's name on; ``name`` stands in for the first part."""
    for path in paths:
        top = name_of(path) if name is None else name
        if path == STDIN and sys.stdin is None:
            yield Item(path, top, error=SourceError("standard input is closed"))
        elif path == STDIN or not os.path.isdir(path):  # noqa: PTH112
            yield Item(path, top, None if path == STDIN else _size_of(path))
        elif recursive:
            yield from _walk(path, top)
        else:
            yield Item(path, top, error=UsageError(f"{shown(path)}: is a directory; push it with -r"))


def _size_of(path: str) -> int | None:
    """Bytes; None where pushing it will tell why not."""
    try:
        return os.stat(path).st_size  # noqa: PTH116  any bytes may be a path
    except (OSError, ValueError):
        return None


def _walk(folder: str, name: str) -> Iterator[Item | LeftOut]:
    """The regular files under ``folder``, each folder's entries in the order of their names."""
    pending: list[tuple[str, str]] = [(folder, name)]
    while pending:
        path, name = pending.pop()
        try:
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            refused = SourceError(f"{shown(path)}: cannot be read: {error.strerror}")
            yield Item(path, name, error=refused)
            continue
        folders: list[tuple[str, str]] = []
        prefix = f"{name}/" if name else ""
        for entry in entries:
            inside = prefix + entry.name
            # All of this but the size is known from the folder itself.
            if entry.is_symlink():
                yield LeftOut(entry.path, "is a symbolic link")
            elif entry.is_dir(follow_symlinks=False):
                folders.append((entry.path, inside))
            elif entry.is_file(follow_symlinks=False):
                yield Item(entry.path, inside, _size_in(entry))
            else:
                yield LeftOut(entry.path, "is not a regular file")
        pending.extend(reversed(folders))


def _size_in(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return None
