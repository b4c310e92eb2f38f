"""Entries of a tree, and where their links lead."""

from __future__ import annotations

import json
import posixpath

from fuzz.target import Draws, Target, is_for_people
from tdx.errors import BadName, ProtocolError
from tdx.integrity import Root
from tdx.proto.names import check_name
from tdx.proto.tree import MAX_ENTRIES, FileEntry, FolderEntry, check_target, parse_entries


def tree_entries(data: bytes) -> None:
    """Entries that are taken are within the bounds, and said again they are the same."""
    try:
        entries = parse_entries(data)
    except ProtocolError as error:
        is_for_people(error)
        return
    assert len(entries) <= MAX_ENTRIES
    again: list[list[object]] = []
    for entry in entries:
        if isinstance(entry, BadName):
            is_for_people(entry)
            continue
        assert check_name(entry.name) == entry.name
        assert -(1 << 63) <= entry.mtime_ns < 1 << 63
        if isinstance(entry, FileEntry):
            assert 0 <= entry.size < 1 << 63
            assert 0 <= entry.mode <= 0o777
            assert entry.root is None or str(Root.parse(entry.root)) == entry.root
            again.append(["file", entry.name, entry.size, entry.mtime_ns, entry.mode, entry.root])
        elif isinstance(entry, FolderEntry):
            assert 0 <= entry.mode <= 0o777
            again.append(["folder", entry.name, entry.mtime_ns, entry.mode])
        else:
            _stays(entry.name, entry.target)
            again.append(["link", entry.name, entry.mtime_ns, entry.target])
    good = [entry for entry in entries if not isinstance(entry, BadName)]
    assert parse_entries(json.dumps({"entries": again}).encode()) == good


def link_target(data: bytes) -> None:
    """A link that is taken stays in its tree."""
    draws = Draws(data)
    depth = draws.below(4)
    name = "/".join([*"abcd"[: depth + 1], "link"])
    target = draws.rest().decode("utf-8", "surrogateescape")
    try:
        check_target(name, target)
    except BadName as error:
        is_for_people(error)
        return
    _stays(name, target)


def _stays(name: str, target: str) -> None:
    top = "/" + name.partition("/")[0]
    reached = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), target))
    assert not target.startswith("/")
    assert reached == top or reached.startswith(top + "/")


def _requests() -> list[bytes]:
    root = str(Root(4 << 20, bytes(16)))
    entries: list[list[object]] = [
        ["folder", "t", 1, 0o755],
        ["file", "t/\u00fc [1], {2}", 5, -1, 0o644, root],
        ["file", "t/b", 0, 2**62, 0, None],
        ["link", "t/d/l", 7, "../b"],
        ["link", "t/l", 7, "../../etc"],
    ]
    return [
        json.dumps({"entries": entries}).encode(),
        json.dumps({"x": [], "entries": entries[3:]}, ensure_ascii=False).encode(),
        b'{"entries":[]}',
    ]


def _targets() -> list[bytes]:
    return [b"\0a/b", b"\3../../x", b"\1..", b"\2/etc", b"\1\xc3\xbc"]


TOKENS = [*rb'["file"," ["folder"," ["link"," .. / ../ // .tdx \ud800 NaN 1e999 -1 null true 493'.split()]

TARGETS = {
    "tree_entries": Target(tree_entries, _requests, TOKENS),
    "link_target": Target(link_target, _targets, TOKENS, longest=600),
}
