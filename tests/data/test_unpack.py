"""Entries of a bundle come out as they went in, however the body is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.data.unpack import SMALLEST, Entries
from tdx.errors import ConnectionLost, ProtocolError, TooLarge
from tdx.integrity import digest_of
from tdx.proto.bundle import END, MAX_CONTENT, MAX_ENTRIES, MAX_ENTRY, Entry, encode_head


class Pieces:
    """A body that was made up beforehand; ``broken``: it breaks off at its end."""

    def __init__(self, data: bytes, *, broken: bool = False) -> None:
        self._data = memoryview(data)
        self._broken = broken
        self.length = None

    def readinto(self, view: memoryview) -> int:
        n = min(len(view), len(self._data))
        view[:n] = self._data[:n]
        self._data = self._data[n:]
        if not n and self._broken:
            raise ConnectionLost("gone")
        return n

    def interrupt(self, reason: BaseException) -> None:
        raise AssertionError


def entry(name: str, content: bytes) -> Entry:
    return Entry(name, len(content), digest_of(content), digest_of(name.encode()).hex())


def packed(files: list[tuple[str, bytes]]) -> bytes:
    return b"".join(encode_head(entry(name, content)) + content for name, content in files) + END


def unpack(data: bytes, size: int = SMALLEST, *, broken: bool = False) -> list[tuple[str, bytes]]:
    entries = Entries(Pieces(data, broken=broken).readinto, memoryview(bytearray(size)))
    found: list[tuple[str, bytes]] = []
    while (each := entries.next()) is not None:
        found.append((each.name, b"".join(bytes(part) for part in entries.content())))
    return found


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=2000)
bundles = st.lists(st.tuples(names, st.binary(max_size=200_000) | st.binary(max_size=20)), max_size=8)


@given(bundles, st.integers(0, 200_000))
def test_entries_come_out_as_they_went_in(files: list[tuple[str, bytes]], more: int) -> None:
    assert unpack(packed(files), SMALLEST + more) == files


@given(bundles.filter(bool), st.data())
def test_a_bundle_that_is_cut_short_never_ends_well(
    files: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    whole = packed(files)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProtocolError, match="without its end mark"):
        unpack(whole[:cut])
    with pytest.raises(ConnectionLost):
        unpack(whole[:cut], broken=True)


@given(st.binary(max_size=3000))
def test_rubbish_is_refused(raw: bytes) -> None:
    if raw != END:
        with pytest.raises(ProtocolError):
            unpack(raw)


def test_content_that_nobody_wants_is_passed_over() -> None:
    files = [("a", b"1" * 100_000), ("b", b"2"), ("c", b"3" * 300_000)]
    entries = Entries(Pieces(packed(files)).readinto, memoryview(bytearray(SMALLEST)))
    found: list[str] = []
    while (each := entries.next()) is not None:
        found.append(each.name)
        next(iter(entries.content()))
    assert found == ["a", "b", "c"]


def test_what_follows_the_end_mark_is_refused() -> None:
    with pytest.raises(ProtocolError, match="goes on after"):
        unpack(packed([("a", b"1")]) + b"x")
    long = packed([("a", b"1" * (SMALLEST - 100))])
    for more in range(1, 200):
        with pytest.raises(ProtocolError, match="goes on after"):
            unpack(long + b"x" * more)


def test_as_many_entries_as_a_bundle_may_have_and_no_more() -> None:
    files = [(str(number), b"") for number in range(MAX_ENTRIES)]
    assert unpack(packed(files)) == files
    with pytest.raises(TooLarge, match="more than 4096 files"):
        unpack(packed([*files, ("one more", b"")]))


def test_as_much_content_as_a_bundle_may_have_and_no_more() -> None:
    block = bytes(MAX_ENTRY)
    files = [(str(number), block) for number in range(MAX_CONTENT // MAX_ENTRY)]
    assert unpack(packed(files), 1 << 20) == files
    with pytest.raises(TooLarge, match="more than 67108864 bytes"):
        unpack(packed([*files, ("one more", b"1")]), 1 << 20)
