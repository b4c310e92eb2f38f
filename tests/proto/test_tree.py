"""Entries of a tree: parsed strictly, whatever comes."""

from __future__ import annotations

import json
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import BadName, ProtocolError, TooLarge
from tdx.integrity import Root
from tdx.proto.names import check_name
from tdx.proto.tree import (
    MAX_ENTRIES,
    Entry,
    FileEntry,
    FolderEntry,
    LinkEntry,
    Verdict,
    check_target,
    parse_entries,
    said,
)

ROOT = "xxh3-128:4194304:" + "0" * 32


def document(*entries: object) -> bytes:
    return json.dumps({"entries": entries}).encode()


def one(*values: object) -> Entry | BadName:
    (entry,) = parse_entries(document(list(values)))
    return entry


def test_each_kind_of_entry_is_read() -> None:
    raw = document(
        ["file", "t/a", 5, -1, 0o644, ROOT],
        ["file", "ü", 0, 2**63 - 1, 0, None],
        ["folder", "t", -(2**63), 0o777],
        ["link", "t/l", 7, "../t/a"],
    )
    file, unknown, folder, bad = parse_entries(raw)
    assert file == FileEntry(check_name("t/a"), 5, -1, 0o644, ROOT)
    assert unknown == FileEntry(check_name("ü"), 0, 2**63 - 1, 0, None)
    assert folder == FolderEntry(check_name("t"), -(2**63), 0o777)
    assert isinstance(bad, BadName)  # it would leave t
    assert one("link", "t/d/l", 7, "../a") == LinkEntry(check_name("t/d/l"), 7, "../a")


def test_what_nobody_knows_in_the_document_is_ignored() -> None:
    assert parse_entries(b'{"more": [1, {"x": "y"}], "entries": []}') == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entries": {}}',
        b'{"entries": null}',
        b'{"entries": [',
        b'{"entries": []} x',
        b'\xff{"entries": []}',
        b'{"entries": [1]}',
        b'{"entries": ["file"]}',
        b'{"entries": [[]]}',
        b'{"entries": [{"kind": "file"}]}',
        b"[" * 10_000,
        b'{"a":' * 10_000,
        b'{"entries": [["file", "a", 1' + b"0" * 5000 + b", 1, 1, null]]}",
    ],
)
def test_what_is_no_such_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_entries(raw)


@pytest.mark.parametrize(
    "values",
    [
        ["file", "a", 1, 1, 0o644],
        ["file", "a", 1, 1, 0o644, None, None],
        ["folder", "a", 1],
        ["link", "a/b", 1],
        ["fifo", "a", 1, 1],
        ["File", "a", 1, 1, 0o644, None],
        [None, "a", 1, 1],
        [["file"], "a", 1, 1],
        ["file", 1, 1, 1, 0o644, None],
        ["file", None, 1, 1, 0o644, None],
        ["file", "a", -1, 1, 0o644, None],
        ["file", "a", 2**63, 1, 0o644, None],
        ["file", "a", 1.0, 1, 0o644, None],
        ["file", "a", True, 1, 0o644, None],
        ["file", "a", "1", 1, 0o644, None],
        ["file", "a", 1, 2**63, 0o644, None],
        ["file", "a", 1, -(2**63) - 1, 0o644, None],
        ["file", "a", 1, None, 0o644, None],
        ["file", "a", 1, 1, 0o1000, None],
        ["file", "a", 1, 1, -1, None],
        ["file", "a", 1, 1, "644", None],
        ["file", "a", 1, 1, 0o644, ""],
        ["file", "a", 1, 1, 0o644, "xxh3-128:4194305:" + "0" * 32],
        ["file", "a", 1, 1, 0o644, "xxh3-128:1:" + "0" * 32],
        ["file", "a", 1, 1, 0o644, 5],
        ["file", "../a", 1, 1, 0o644, 5],
        ["folder", "a", 1, 0o4755],
        ["link", "a/b", 1, None],
        ["link", "a/b", 1, ["c"]],
    ],
)
def test_an_entry_of_wrong_types_or_bounds_refuses_the_whole(values: list[object]) -> None:
    with pytest.raises(ProtocolError):
        parse_entries(document(["folder", "fine", 1, 0o755], values))


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", ".tdx", "a/.TDX/b", "a\0", "\n", "x" * 256],
)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_bad_name_refuses_its_own_entry(kind: str, name: str) -> None:
    values: dict[str, list[object]] = {"file": [1, 1, 0o644, None], "folder": [1, 0o755], "link": [1, "x"]}
    rest = values[kind]
    bad, good = parse_entries(document([kind, name, *rest], ["folder", "good", 1, 0o755]))
    assert isinstance(bad, BadName)
    assert good == FolderEntry(check_name("good"), 1, 0o755)


def test_a_name_that_is_not_unicode_refuses_its_own_entry() -> None:
    (bad,) = parse_entries(b'{"entries": [["folder", "\\ud800", 1, 493]]}')
    assert isinstance(bad, BadName)
    (bad,) = parse_entries(b'{"entries": [["link", "a/b", 1, "\\ud800"]]}')
    assert isinstance(bad, BadName)
    assert bad.message.isprintable()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("t/l", "a"),
        ("t/l", "a/b/c"),
        ("t/l", "l"),
        ("t/d/l", "../a"),
        ("t/d/l", ".."),
        ("t/d/e/l", "../.."),
        ("t/d/e/l", "../../x y/ü"),
        ("t/l", "..."),
        ("t/l", "a.."),
    ],
)
def test_a_link_that_stays_in_its_tree_is_taken(name: str, target: str) -> None:
    assert check_target(name, target) == target


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("l", "a"),
        ("l", ".."),
        ("t/l", ".."),
        ("t/l", "../t"),
        ("t/l", "../other"),
        ("t/d/l", "../.."),
        ("t/d/l", "../../t"),
        ("t/l", "/etc/passwd"),
        ("t/l", "/"),
        ("t/d/l", "../../../../etc/passwd"),
        ("t/l", ""),
        ("t/l", "."),
        ("t/d/l", "./a"),
        ("t/d/l", "a/../b"),
        ("t/d/l", "a/.."),
        ("t/d/l", "../a/../../../x"),
        ("t/d/l", "../"),
        ("t/d/l", "a/"),
        ("t/d/l", "a//b"),
        ("t/d/l", "..//etc"),
        ("t/d/l", ".tdx/uploads"),
        ("t/d/l", "../.TDX"),
        ("t/d/l", "a\nb"),
        ("t/d/l", "a\0b"),
        ("t/d/l", "x" * 256),
        ("t/d/l", "/".join(["x"] * 3000)),
    ],
)
def test_a_link_that_leads_elsewhere_is_refused(name: str, target: str) -> None:
    with pytest.raises(BadName) as refused:
        check_target(name, target)
    assert refused.value.message.isprintable()


PARTS = st.sampled_from(["..", ".", "", "a", "b", ".tdx", "/", "é"])


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=5), st.lists(PARTS, max_size=8))
def test_whatever_is_taken_stays_in_the_top_folder(folders: list[str], parts: list[str]) -> None:
    name, target = "/".join([*folders, "link"]), "/".join(parts)
    try:
        check_target(name, target)
    except BadName:
        return
    assert not target.startswith("/")
    reached = posixpath.normpath(posixpath.join("/", *folders, target))
    assert reached == f"/{folders[0]}" or reached.startswith(f"/{folders[0]}/")
    assert ".tdx" not in reached


NAMES = st.text(min_size=1, max_size=20)
ENTRIES = st.one_of(
    st.tuples(
        st.just("file"),
        NAMES,
        st.integers(0, 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(0, 0o777),
        st.none() | st.binary(min_size=16, max_size=16).map(lambda value: str(Root(4 << 20, value))),
    ),
    st.tuples(st.just("folder"), NAMES, st.integers(-(2**63), 2**63 - 1), st.integers(0, 0o777)),
    st.tuples(st.just("link"), NAMES, st.integers(-(2**63), 2**63 - 1), NAMES),
)


@given(st.lists(ENTRIES, max_size=20), st.booleans())
def test_what_was_sent_is_read_in_order(entries: list[tuple[object, ...]], escaped: bool) -> None:
    raw = json.dumps({"entries": entries}, ensure_ascii=escaped).encode()
    found = parse_entries(raw)
    assert len(found) == len(entries)
    for entry, (kind, name, *rest) in zip(found, entries, strict=True):
        if isinstance(entry, BadName):
            continue
        assert entry.name == name == check_name(entry.name)
        if isinstance(entry, FileEntry):
            assert [kind, entry.size, entry.mtime_ns, entry.mode, entry.root] == ["file", *rest]
        elif isinstance(entry, FolderEntry):
            assert [kind, entry.mtime_ns, entry.mode] == ["folder", *rest]
        else:
            assert [kind, entry.mtime_ns, entry.target] == ["link", *rest]


# --- many ---------------------------------------------------------------------------------


def test_as_many_entries_as_there_may_be_are_read_whatever_they_are_called() -> None:
    entries = [["file", f"t/[{{,,,,,]}}{number}", 1, 1, 0o644, ROOT] for number in range(MAX_ENTRIES)]
    assert len(parse_entries(document(*entries))) == MAX_ENTRIES
    with pytest.raises(TooLarge):
        parse_entries(document(*entries, entries[0]))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"entries": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"entries": [], "x": [' + b"{}," * 1_000_000 + b"{}]}",
        b'{"entries": [' + b'"ab",' * 1_000_000 + b'""]}',
        b'{"entries": [["file", ' + b"1," * 1_000_000 + b"1]]}",
    ],
    ids=["lists", "objects", "texts", "numbers"],
)
def test_what_would_take_much_more_memory_than_it_has_bytes_is_refused_unread(raw: bytes) -> None:
    with pytest.raises(TooLarge):
        parse_entries(raw)


def test_texts_without_an_end_are_refused_at_once() -> None:
    for raw in (b'"' * (1 << 20), b'\\"' * (1 << 20), b'"\\' * (1 << 20), b'[,"' * (1 << 20)):
        with pytest.raises(ProtocolError):
            parse_entries(raw)


# --- the answer ---------------------------------------------------------------------------


def test_a_verdict_names_the_path_where_that_is_another_one() -> None:
    assert said(Verdict.SAME, "a", "a") == "same"
    assert said(Verdict.SAME, "a", "in/a") == ["same", "in/a"]
    assert said(Verdict.MADE, "a", "a (1)") == ["made", "a (1)"]
    for verdict in (Verdict.SEND, Verdict.ASK, Verdict.SKIPPED):
        assert said(verdict, "a", "in/a") == verdict.value
