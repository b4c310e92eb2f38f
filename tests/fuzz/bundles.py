"""Bundles: heads of entries, their framing, and what the sender makes of files."""

from __future__ import annotations

import socket

from fuzz.target import Draws, Target, folder, is_for_people
from tdx.data.entries import EntriesSend, SmallFile
from tdx.data.port import Cancel
from tdx.data.sockets import to_worker
from tdx.data.unpack import SMALLEST, Entries
from tdx.errors import ProtocolError
from tdx.integrity import digest_of
from tdx.model import Stages
from tdx.proto.bundle import (
    END,
    MAX_CONTENT,
    MAX_ENTRIES,
    MAX_ENTRY,
    MAX_HEAD,
    Entry,
    encode_head,
    parse_head,
)
from tdx.proto.chunked import ChunkedDecoder

PATIENCE = 30.0


def bundle_head(data: bytes) -> None:
    """A head that is taken is within the bounds, and another one says the same."""
    try:
        entry = parse_head(data)
    except ProtocolError as error:
        is_for_people(error)
        return
    assert 0 <= entry.size <= MAX_ENTRY
    assert len(entry.digest) == 16
    assert entry.name
    assert entry.mode is None or 0 <= entry.mode <= 0o777
    assert entry.mtime_ns is None or -(1 << 63) <= entry.mtime_ns < 1 << 63
    try:
        written = encode_head(entry)
    except ProtocolError:
        assert len(data) > MAX_HEAD - 64, "it was taken, and cannot be sent"
        return
    assert int.from_bytes(written[:4]) == len(written) - 4
    assert parse_head(written[4:]) == entry


class _Pieces:
    """What a body hands out, in pieces of these sizes over and over."""

    def __init__(self, data: bytes, sizes: bytes) -> None:
        self._data = data
        self._sizes = [size + 1 for size in sizes] or [len(data) + 1]
        self._at = 0
        self._turn = 0

    def readinto(self, view: memoryview) -> int:
        size = min(self._sizes[self._turn % len(self._sizes)], len(view))
        self._turn += 1
        part = self._data[self._at : self._at + size]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def _unpacked(data: bytes, sizes: bytes, skip: int) -> list[tuple[Entry, bytes]] | str:
    """Every entry and its content, but every ``skip``-th one's is left unread."""
    entries = Entries(_Pieces(data, sizes).readinto, memoryview(bytearray(SMALLEST)))
    found: list[tuple[Entry, bytes]] = []
    try:
        while (entry := entries.next()) is not None:
            unread = skip and len(found) % skip == 0
            content = b"" if unread else b"".join(bytes(part) for part in entries.content())
            assert unread or len(content) == entry.size
            found.append((entry, content))
    except ProtocolError:
        return "refused"
    assert len(found) <= MAX_ENTRIES
    assert sum(entry.size for entry, _ in found) <= MAX_CONTENT
    return found


def bundle(data: bytes) -> None:
    """A bundle has the same entries in whatever pieces it comes and whatever of it is read, and packed
    again it is the same."""
    draws = Draws(data)
    skip, sizes = draws.below(4), draws.take(3)
    body = draws.rest()
    whole = _unpacked(body, b"", 0)
    assert whole == _unpacked(body, sizes, 0)
    skipped = _unpacked(body, sizes, skip)
    if isinstance(whole, str) or isinstance(skipped, str):
        assert skipped == whole
        return
    assert [entry for entry, _ in skipped] == [entry for entry, _ in whole]
    again = b"".join(encode_head(entry) + content for entry, content in whole) + END
    assert _unpacked(again, sizes, 0) == whole


def sent_bundle(data: bytes) -> None:
    """What the sender packs, the receiver unpacks: each file whole, under its name, or left out."""
    draws = Draws(data)
    files: list[SmallFile] = []
    contents: dict[str, bytes] = {}
    while draws.left and len(files) < 4:
        content = draws.take(draws.below(600, 2))
        label = draws.take(draws.below(30)).decode("utf-8", "surrogateescape") or "unnamed"
        path = folder() / f"small-{len(files)}"
        path.write_bytes(content)
        files.append(SmallFile(str(path), label, f"key-{len(files)}"))
        contents[files[-1].key] = content
    for entry, content in _exchange(files, draws.below(700, 2)):
        (file,) = [file for file in files if file.key == entry.key]
        assert content == contents.pop(entry.key)
        assert (entry.name, entry.size, entry.digest) == (file.name, len(content), digest_of(content))
        assert not file.aside
    assert all(file.aside for file in files if file.key in contents)


def _exchange(files: list[SmallFile], most: int) -> list[tuple[Entry, bytes]]:
    near, far = socket.socketpair()
    with near, far:
        to_worker(near)
        EntriesSend(most, lambda _: None, lambda _: 0.0).send(near, files, Cancel(), PATIENCE, Stages())
        near.shutdown(socket.SHUT_WR)
        coded = b""
        while got := far.recv(1 << 16):
            coded += got
    decoder = ChunkedDecoder()
    body = b"".join(decoder.feed(coded))
    assert decoder.finished
    assert decoder.leftover == b""
    found = _unpacked(body, b"", 0)
    assert not isinstance(found, str)
    return found


def _entry(name: str, content: bytes, **more: int) -> bytes:
    entry = Entry(name, len(content), digest_of(content), "k" * 32, **more)
    return encode_head(entry) + content


def _heads() -> list[bytes]:
    return [
        _entry("a", b"")[4:],
        _entry("folder/ü 🐢", b"", mtime_ns=-1, mode=0o644)[4:],
        b'{"name":"\\u00fc","size":0,"digest":"' + b"0" * 32 + b'","key":"!","mode":"7","x":[]}',
    ]


def _bundles() -> list[bytes]:
    one, two = _entry("a", b"hello"), _entry("b/c", bytes(300), mtime_ns=1, mode=0o600)
    return [b"\0\1\7\2" + body for body in (END, one + END, one + two + END, two * 3 + END, one)]


def _shapes() -> list[bytes]:
    return [b"\0\5hello\1a\0\0\0", b"\1\0" + bytes(256) + b"\3b/c" + b"\0\1x\2\xff\xfe" + b"\2\0"]


TOKENS = [
    *(END, b"\0\0\xff\xff", b"\0\1\0\0", b"9" * 30),
    *rb'"name":" "size": "digest":" "key":" "mtime": "mode":" \ud800 NaN 1e999 -1 4194305 true null'.split(),
]

TARGETS = {
    "bundle_head": Target(bundle_head, _heads, TOKENS),
    "bundle": Target(bundle, _bundles, TOKENS),
    "sent_bundle": Target(sent_bundle, _shapes, longest=2500),
}
