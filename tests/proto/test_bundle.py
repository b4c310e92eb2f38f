from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import ProtocolError, TooLarge
from tdx.proto.bundle import (
    END,
    LENGTH_SIZE,
    MAX_ENTRY,
    MAX_HEAD,
    MAX_KEY,
    Entry,
    encode_head,
    parse_head,
    parse_length,
)

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY)
entries = st.builds(
    Entry,
    name=text,
    size=st.integers(0, MAX_ENTRY),
    digest=st.binary(min_size=16, max_size=16),
    key=keys,
    mtime_ns=st.none() | st.integers(-(2**63), 2**63 - 1),
    mode=st.none() | st.integers(0, 0o777),
)

MEMBERS: dict[str, object] = {"name": "a", "size": 3, "digest": "0" * 32, "key": "k"}


def head(**members: object) -> bytes:
    return json.dumps({**MEMBERS, **members}).encode()


@given(entries)
def test_a_head_is_read_as_it_was_written(entry: Entry) -> None:
    encoded = encode_head(entry)
    assert parse_length(encoded) == len(encoded) - LENGTH_SIZE
    assert parse_head(encoded[LENGTH_SIZE:]) == entry
    assert parse_head(memoryview(encoded)[LENGTH_SIZE:]) == entry


def test_the_bytes_of_a_head_are_these() -> None:
    entry = Entry("é/b.txt", 5, bytes(range(16)), "k1", 1_700_000_000_000_000_001, 0o640)
    body = (
        '{"name":"é/b.txt","size":5,"digest":"000102030405060708090a0b0c0d0e0f","key":"k1",'
        '"mtime":1700000000000000001,"mode":"640"}'
    ).encode()
    assert encode_head(entry) == len(body).to_bytes(4, "big") + body


@given(st.binary(max_size=400))
def test_rubbish_is_refused_in_one_word_of_the_protocol(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["name", "size", "digest", "key", "mtime", "mode"]), json_values)
def test_a_member_of_any_kind_is_read_rightly_or_refused(member: str, value: object) -> None:
    try:
        entry = parse_head(head(**{member: value}))
    except ProtocolError:
        return
    assert type(entry.name) is str
    assert entry.name.encode("utf-8")
    assert type(entry.size) is int
    assert 0 <= entry.size <= MAX_ENTRY
    assert len(entry.digest) == 16
    assert 0 < len(entry.key) <= MAX_KEY
    assert entry.mtime_ns is None or type(entry.mtime_ns) is int
    assert entry.mode is None or 0 <= entry.mode <= 0o777


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"name"',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf" + head(),
        b"[" * 60_000,
        b'{"size":' + b"9" * 10_000 + b"}",
        head(name=None),
        head(name=""),
        head(name=7),
        head(name="\ud800"),
        head(size=None),
        head(size=-1),
        head(size=True),
        head(size=1.0),
        head(size="1"),
        head(digest=None),
        head(digest="0" * 31),
        head(digest="0" * 33),
        head(digest="A" * 32),
        head(digest="0" * 32 + "\n"),
        head(digest=" " * 32),
        head(key=None),
        head(key=""),
        head(key="k" * (MAX_KEY + 1)),
        head(key="a b"),
        head(key="k\n"),
        head(key="\u00e9"),
        head(mtime=2**63),
        head(mtime=-(2**63) - 1),
        head(mtime=1.5),
        head(mtime="0"),
        head(mode=0o644),
        head(mode="0o644"),
        head(mode="888"),
        head(mode=""),
    ],
)
def test_a_head_that_is_not_one_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(raw)


def test_members_that_nobody_knows_are_ignored() -> None:
    assert parse_head(head(colour="red", more={"a": [1]})) == Entry("a", 3, bytes(16), "k")


def test_special_bits_of_a_mode_do_not_travel() -> None:
    assert parse_head(head(mode="104755")).mode == 0o755


def test_an_entry_of_more_than_an_extent_is_too_large() -> None:
    assert parse_head(head(size=MAX_ENTRY)).size == MAX_ENTRY
    with pytest.raises(TooLarge, match="'a' has 4194305 bytes"):
        parse_head(head(size=MAX_ENTRY + 1))


def test_a_length_beyond_the_largest_head_is_refused() -> None:
    assert parse_length(MAX_HEAD.to_bytes(4, "big")) == MAX_HEAD
    assert parse_length(b"xx" + END, 2) == 0
    for length in (MAX_HEAD + 1, 2**32 - 1):
        with pytest.raises(ProtocolError, match="more than 65535"):
            parse_length(length.to_bytes(4, "big"))


def test_what_cannot_be_said_in_a_head_is_not_encoded() -> None:
    with pytest.raises(ProtocolError, match="not valid Unicode"):
        encode_head(Entry("\udcff", 0, bytes(16), "k"))
    with pytest.raises(ProtocolError, match="more than 65535"):
        encode_head(Entry("n" * 65536, 0, bytes(16), "k"))
