"""``POST /v1/tree``: the entries of a tree, many at once, and what the receiver says of each.

The body is ``{"entries": [...]}``, an entry a list that begins with its kind; ``docs/http.md`` specifies
them. What is wrong with an entry's name, or with where its link leads, refuses that one; anything else
that is malformed refuses the whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, cast

from tdx.errors import BadName, ProtocolError, TooLarge
from tdx.integrity import MIB, Root
from tdx.model import FileName
from tdx.proto.names import check_name

TARGET: Final = "/v1/tree"

MAX_ENTRIES: Final = 16384
"""Most entries of one request."""

MAX_BODY: Final = 16 * MIB
"""Most bytes of its body."""

MAX_MODE: Final = 0o777

_MOST: Final = 2**63
_VALUES: Final = 6
"""Values of an entry that has the most."""

_BRACKETS: Final = MAX_ENTRIES + 2
_COMMAS: Final = MAX_ENTRIES * _VALUES
_TEXTS: Final = _COMMAS
"""More of these, outside of texts, than so many entries can have."""

_TOKENS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[{,]', re.DOTALL)
_COMMA: Final = ord(",")
_QUOTE: Final = ord('"')


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file. ``root`` is the written root of its content, None where the sender does not know it."""

    name: FileName
    size: int
    mtime_ns: int
    mode: int
    root: str | None


@dataclass(frozen=True, slots=True)
class FolderEntry:
    name: FileName
    mtime_ns: int
    mode: int


@dataclass(frozen=True, slots=True)
class LinkEntry:
    """A symbolic link that leads to ``target``, which has been checked (:func:`check_target`)."""

    name: FileName
    mtime_ns: int
    target: str


Entry = FileEntry | FolderEntry | LinkEntry


class Verdict(StrEnum):
    """What the receiver says of an entry that it does not refuse."""

    SAME = "same"
    """It is there, durably, with these attributes."""
    MADE = "made"
    """It has been made, or its attributes have been set; durably."""
    SEND = "send"
    """Its content is needed."""
    ASK = "ask"
    """A file of this size is there, and whether it is the same its root will tell."""
    SKIPPED = "skipped"
    """The name is taken, and what has it is to stay."""


def check_target(name: str, target: str) -> str:
    """The target of a link that is called ``name``, if it stays in the tree; BadName otherwise.

    It is relative, of components that names may have, with ``..`` only at the beginning and never so many
    that it leaves the folder that the first component of ``name`` is. Since no link in the
    tree has another, none leads out of it over others either.
    """
    components = target.split("/")
    ups = 0
    while ups < len(components) and components[ups] == "..":
        ups += 1
    if ups < len(components):
        try:
            check_name("/".join(components[ups:]))
        except BadName as error:
            raise BadName(f"the link {name!r:.80} to {target!r:.80}: {error.message}") from error
    if name.count("/") - ups < 1:
        raise BadName(f"the link {name!r:.80} to {target!r:.80} leads out of the tree")
    return target


def parse_entries(raw: bytes | bytearray | memoryview) -> list[Entry | BadName]:
    """The entries of a request, in order; of each that is refused alone, why. Members of the document
    that nobody here knows are ignored.

    ProtocolError for anything malformed; TooLarge, which is one, for more than :data:`MAX_ENTRIES`.
    """
    raw = bytes(raw)
    _check_bulk(raw)
    try:
        found: object = json.loads(str(raw, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the entries of a tree are not JSON in UTF-8") from error
    document = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise ProtocolError('the entries of a tree come as {"entries": [...]}')
    return [_entry(each) for each in _bounded(cast("list[object]", entries))]


def _bounded(entries: list[object]) -> list[object]:
    if len(entries) > MAX_ENTRIES:
        raise TooLarge(f"{len(entries)} entries of a tree at once, where {MAX_ENTRIES} are the most")
    return entries


def _check_bulk(raw: bytes) -> None:
    """Before anything is made of it: what has few bytes may take twenty times as many in memory. What stands
    between quotation marks is told apart only where without that it would be too much."""
    brackets, commas = raw.count(b"[") + raw.count(b"{"), raw.count(b",")
    if brackets <= _BRACKETS and commas <= _COMMAS and raw.count(b'"') <= 2 * _TEXTS:
        return
    brackets = commas = texts = 0
    for token in _TOKENS.finditer(raw):
        first = raw[token.start()]
        commas += first == _COMMA
        texts += first == _QUOTE
        brackets += first not in (_COMMA, _QUOTE)
        if brackets > _BRACKETS or commas > _COMMAS or texts > _TEXTS:
            raise TooLarge(f"more than {MAX_ENTRIES} entries of a tree at once")


def _entry(found: object) -> Entry | BadName:
    values = cast("list[object]", found) if isinstance(found, list) else []
    kind = values[0] if values else None
    try:
        if kind == "file" and len(values) == 6:
            _, name, size, mtime_ns, mode, root = values
            rest = _integer(size, 0), _integer(mtime_ns, -_MOST), _integer(mode, 0, MAX_MODE), _root(root)
            return FileEntry(check_name(_text(name)), *rest)
        if kind == "folder" and len(values) == 4:
            _, name, mtime_ns, mode = values
            attributes = _integer(mtime_ns, -_MOST), _integer(mode, 0, MAX_MODE)
            return FolderEntry(check_name(_text(name)), *attributes)
        if kind == "link" and len(values) == 4:
            _, name, mtime_ns, target = values
            time, target = _integer(mtime_ns, -_MOST), _text(target)
            checked = check_name(_text(name))
            return LinkEntry(checked, time, check_target(checked, target))
    except BadName as error:
        return error
    raise ProtocolError(f"not an entry of a tree: {found!r:.80}")


def _text(value: object) -> str:
    if type(value) is not str:
        raise ProtocolError(f"not a text in an entry of a tree: {value!r:.80}")
    return value


def _integer(value: object, least: int, most: int = _MOST - 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"not an integer from {least} to {most} in an entry of a tree: {value!r:.80}")
    return value


def _root(value: object) -> str | None:
    if value is None:
        return None
    try:
        return str(Root.parse(_text(value)))
    except ValueError as error:
        raise ProtocolError(f"not a root in an entry of a tree: {value!r:.80}") from error


def said(verdict: Verdict, name: str, path: str) -> str | list[str]:
    """A verdict as it travels: with where the entry is, unless that is where it was sent to."""
    if path == name or verdict not in (Verdict.SAME, Verdict.MADE):
        return verdict.value
    return [verdict.value, path]
