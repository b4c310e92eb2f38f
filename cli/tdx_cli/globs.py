"""Paths by patterns, as a shell has them: ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth.

Unlike with the standard library's glob, a folder that cannot be read is told, since what it holds would be
left out unnoticed, and ``**`` does not follow symbolic links, which may lead in circles. ``[*]``, ``[?]``
and ``[[]`` stand for the characters themselves. A name that begins with a dot is matched only by a part that
does, too, and ``**`` passes no folder of such a name.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tdx.errors import SourceError
from tdx.model import shown

ANY_DEPTH: Final = "**"

_ESCAPED: Final = re.compile(r"\[([*?\[])\]")
_WILDCARD: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Match:
    """A path that is there. ``name`` is the path from where the pattern's first wildcard stands on, so that
    no two matches of one pattern have the same; None where it has no wildcard. ``error``: why it could not
    be seen whether something in this folder matches."""

    path: str
    name: str | None
    error: SourceError | None = None


def matches(pattern: str) -> Iterator[Match]:
    """What an absolute ``pattern`` matches, each thing once, each folder's entries in the order of their
    names. A pattern that ends in ``**`` matches what is no folder, at any depth."""
    parts = [part for part in pattern.split("/") if part]
    fixed: list[str] = []
    while parts and (text := literal(parts[0])) is not None:
        fixed.append(text)
        parts.pop(0)
    top = "/" + "/".join(fixed)
    if parts:
        yield from _Search(top).below("", parts)
    elif os.path.lexists(top):
        yield Match(top, None)


def literal(part: str) -> str | None:
    """The only text that a part of a pattern matches; None where there may be others."""
    if _WILDCARD.search(_ESCAPED.sub("", part)):
        return None
    return _ESCAPED.sub(r"\1", part)


class _Search:
    """What is found below the folder ``top``. Prefixes are relative to it, and empty or end in a slash."""

    def __init__(self, top: str) -> None:
        self._top = top.rstrip("/")
        self._seen: set[str] = set()

    def below(self, prefix: str, parts: list[str]) -> Iterator[Match]:
        part, *rest = parts
        if part == ANY_DEPTH:
            while rest and rest[0] == ANY_DEPTH:  # any depth below any depth is any depth
                rest = rest[1:]
            yield from self._at_any_depth(prefix, rest)
            return
        for entry in self._fitting(prefix, part):
            if isinstance(entry, Match):
                yield entry
            elif not rest:
                yield from self._match(prefix + entry)
            elif os.path.isdir(f"{self._top}/{prefix}{entry}"):  # noqa: PTH112  any bytes may be a path
                yield from self.below(f"{prefix}{entry}/", rest)

    def _at_any_depth(self, prefix: str, rest: list[str]) -> Iterator[Match]:
        pending = [prefix]
        while pending:
            here = pending.pop()
            if rest:
                yield from self.below(here, rest)
            folders: list[str] = []
            for name in self._fitting(here, "*"):
                if isinstance(name, Match):
                    yield name
                    continue
                path = f"{self._top}/{here}{name}"
                if not os.path.isdir(path):  # noqa: PTH112
                    yield from () if rest else self._match(here + name)
                elif not os.path.islink(path):  # noqa: PTH114
                    folders.append(f"{here}{name}/")
            pending.extend(reversed(folders))

    def _fitting(self, prefix: str, part: str) -> Sequence[str | Match]:
        """The names in a folder that one part of a pattern matches, or what says why they are not known."""
        path = f"{self._top}/{prefix}"
        text = literal(part)
        try:
            if text is not None:
                os.lstat(path + text)
                return [text]
            fits = _matcher(part)
            return sorted(name for name in os.listdir(path) if fits(name))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            refused = SourceError(f"{shown(path)}: cannot be read: {error.strerror}")
            folder = path.rstrip("/")
            return list(self._once(Match(folder, prefix.rstrip("/") or folder, refused)))

    def _match(self, name: str) -> Iterator[Match]:
        return self._once(Match(f"{self._top}/{name}", name))

    def _once(self, match: Match) -> Iterator[Match]:
        """Several ways lead to one thing where there is more than one ``**``."""
        if match.path not in self._seen:
            self._seen.add(match.path)
            yield match


def _matcher(part: str) -> Callable[[str], bool]:
    fits = re.compile(fnmatch.translate(part)).match
    hidden = part.startswith(".")
    return lambda name: fits(name) is not None and (hidden or not name.startswith("."))
