"""Requests that are small and mean much: the answer is the documented one, nothing is stored, and they cost
the receiver neither memory nor its life."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from support.receiving import RunningReceiver
from support.uploading import Opened, open_upload
from support.wire import chunked, head
from tdx.integrity import digest_of
from tdx.proto.bundle import END, MAX_ENTRIES, MEDIA_TYPE

MIB = 1 << 20
HUGE = 1 << 62
EXTENT = 4 * MIB
MEMORY = 24 * MIB


@contextmanager
def it_costs_little(receiver: RunningReceiver) -> Iterator[None]:
    """What Python holds at most, meanwhile, beyond what it held before; and the receiver goes on."""
    receiver.request("GET", "/v1/hello")
    receiver.is_quiet()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < MEMORY
    assert receiver.visible() == {}
    assert receiver.request("PUT", "/files/after", b"it").status == 201
    receiver.is_quiet()


CREATIONS: dict[str, tuple[dict[str, object], int]] = {
    "a length of 2**62": ({"Upload-Length": HUGE}, 413),
    "a length of 2**63": ({"Upload-Length": 1 << 63}, 400),
    "a length of a million digits": ({"Upload-Length": "9" * 60_000}, 400),
    "a negative length": ({"Upload-Length": -1}, 400),
    "a length and one hole": ({"Upload-Length": HUGE, "Tdx-Holes": f"0-{HUGE - 1}"}, 413),
    "more holes than a field may have": (
        {"Upload-Length": MIB, "Tdx-Holes": ",".join(f"{n}-{n}" for n in range(0, 8000, 2))},
        400,
    ),
    "holes that overlap": ({"Upload-Length": MIB, "Tdx-Holes": "0-9,5-14"}, 400),
    "a hole beyond the end": ({"Upload-Length": MIB, "Tdx-Holes": f"0-{MIB}"}, 400),
    "a hole at the end of numbers": ({"Upload-Length": MIB, "Tdx-Holes": f"0-{(1 << 63) - 1}"}, 400),
    "an epoch of its own": ({"Upload-Length": MIB, "Tdx-Epoch": "9" * 18}, 201),
    "a time of a million digits": ({"Upload-Length": MIB, "Tdx-Mtime": "9" * 60_000}, 400),
    "a mode beyond all bits": ({"Upload-Length": MIB, "Tdx-Mode": "7" * 60_000}, 400),
}


@pytest.mark.parametrize(("fields", "status"), CREATIONS.values(), ids=CREATIONS)
def test_an_upload_that_cannot_be_is_refused(
    receiver: RunningReceiver, fields: Mapping[str, object], status: int
) -> None:
    with it_costs_little(receiver):
        answer = receiver.request(
            "POST", "/files/f", b"", {"Upload-Complete": "?0", "Tdx-Source": "s", **fields}
        )
        assert answer.status == status
        assert len(receiver.staged()) == (status == 201)


RANGES: dict[str, tuple[str, int]] = {
    "at the end of numbers": (f"bytes {(1 << 63) - 2}-{(1 << 63) - 1}/*", 400),
    "of a length that it does not tell": (f"bytes {(1 << 62)}-{(1 << 62) + 9}/*", 400),
    "in a length of 2**62": (f"bytes 0-9/{HUGE}", 413),
    "beyond its length": ("bytes 0-9/5", 416),
    "backwards": ("bytes 9-0/10", 400),
    "of a million digits": ("bytes 0-9/" + "9" * 60_000, 400),
    "of other units": ("extents 0-9/10", 400),
}


@pytest.mark.parametrize(("content_range", "status"), RANGES.values(), ids=RANGES)
def test_a_range_that_cannot_be_is_refused(
    receiver: RunningReceiver, content_range: str, status: int
) -> None:
    with it_costs_little(receiver):
        answer = receiver.request("PUT", "/files/f", b"0123456789", {"Content-Range": content_range})
        assert answer.status == status
        assert receiver.staged() == []


def test_a_file_of_2_to_the_62_bytes_is_refused_before_its_body(receiver: RunningReceiver) -> None:
    with it_costs_little(receiver), receiver.connect() as wire:
        wire.send(head("PUT", "/files/f", {"Content-Length": HUGE, "Expect": "100-continue"}))
        assert wire.message().status == 413
        assert wire.is_closed()


def entry(name: str, size: int, **other: object) -> bytes:
    said = {"name": name, "size": size, "digest": digest_of(b"").hex(), "key": "k", **other}
    raw = json.dumps(said, ensure_ascii=False).encode()
    return struct.pack(">I", len(raw)) + raw


BUNDLES: dict[str, tuple[bytes, int]] = {
    "more entries than it may have": (
        b"".join(entry(f"{n}", 0, key=f"{n}") for n in range(MAX_ENTRIES + 1)) + END,
        413,
    ),
    "an entry of 2**70 bytes": (entry("a", 1 << 70) + END, 413),
    "an entry of fewer than no bytes": (entry("a", -1) + END, 400),
    "a size of a million digits": (b'{"size":' + b"9" * 60_000 + b"}", 400),
    "a head of 4 GiB": (b"\xff\xff\xff\xff", 400),
    "a head of deep JSON": (struct.pack(">I", 60_000) + b"[" * 60_000, 400),
    "a head that ends nowhere": (b"\0\0\xff\xff{", 400),
    "an entry whose content ends nowhere": (entry("a", 100) + b"x", 400),
    "no end": (entry("a", 0), 400),
    "something after its end": (END + END, 400),
    "an mtime of 2**63": (entry("a", 0, mtime=1 << 63) + END, 400),
    "not even an end": (b"", 400),
}


@pytest.mark.parametrize(("body", "status"), BUNDLES.values(), ids=BUNDLES)
def test_a_bundle_that_cannot_be_is_refused_as_a_whole(
    receiver: RunningReceiver, body: bytes, status: int
) -> None:
    fields = {"Content-Type": MEDIA_TYPE, "Transfer-Encoding": "chunked"}
    with it_costs_little(receiver), receiver.connect() as wire:
        wire.send(head("POST", "/files", fields) + (chunked([body] if body else [])))
        assert wire.answer().status == status


def test_a_bundle_of_names_that_cannot_be_refuses_each(receiver: RunningReceiver) -> None:
    names = ["..", "/a", "a//b", ".tdx/x", "x" * 256, "/".join("x" * 2200), "a\0b", "a/../../b"]
    body = b"".join(entry(name, 0, key=f"{n}") for n, name in enumerate(names)) + END
    fields = {"Content-Type": MEDIA_TYPE, "Transfer-Encoding": "chunked"}
    with it_costs_little(receiver), receiver.connect() as wire:
        wire.send(head("POST", "/files", fields) + chunked([body]))
        files = wire.answer().document["files"]
        assert isinstance(files, list)
        assert [each["problem"]["status"] for each in files] == [400] * len(names)


def test_names_of_255_bytes_are_numbered_without_end(receiver: RunningReceiver) -> None:
    names = ["x" * 255, "ü" * 127 + "x", "x" * 200 + "." + "y" * 54]
    for name in names:
        target = f"/files/{_escaped(name)}"
        paths = [receiver.request("PUT", target, b"%d" % n).document["path"] for n in range(12)]
        assert len(set(paths)) == 12
        assert all(len(str(path).encode()) <= 255 for path in paths)


def _escaped(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


def test_the_longest_name_is_stored_and_a_longer_one_is_not(receiver: RunningReceiver) -> None:
    longest = "/".join(["d" * 255] * 16)
    assert receiver.request("PUT", f"/files/{longest}/d", b"x").status == 400
    assert receiver.request("PUT", f"/files/{longest}", b"x").status == 201
    # Longer than a path may be for whoever looks at the folder from outside: the receiver is asked.
    assert receiver.request("PUT", f"/files/{longest}", b"x").document["outcome"] == "identical"


DIGESTS: dict[str, object] = {
    "without end": ", ".join(f"a{n}=:AAAA:" for n in range(3000)),
    "of nothing": "",
    "of the wrong size": "sha-256=:AAAA:",
    "twice": "sha-256=:" + "A" * 43 + "=:, sha-256=:" + "A" * 43 + "=:",
    "of no end": "sha-256=:" + "A" * 60_000,
}


@pytest.mark.parametrize("value", DIGESTS.values(), ids=DIGESTS)
@pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
def test_digests_that_cannot_be_are_refused(receiver: RunningReceiver, field: str, value: object) -> None:
    with it_costs_little(receiver):
        answer = receiver.request("PUT", "/files/f", b"it", {field: value})
        # What nobody here knows may be there, and proves nothing.
        known = value == DIGESTS["without end"]
        assert answer.status == (201 if known else 400)
        if known:
            assert answer.document["verified"] is False
            (receiver.folder / "f").unlink()


@pytest.mark.parametrize("size", [0, 15, 16, 17, 48, 16 * 1000])
def test_a_commit_with_more_or_fewer_digests_than_extents_is_refused(
    receiver: RunningReceiver, size: int
) -> None:
    upload = open_upload(receiver, "f", EXTENT + 1)
    with it_costs_little(receiver):
        fields = {**upload.fields, "Upload-Length": EXTENT + 1}
        answer = receiver.request("POST", upload.target + "/commit", bytes(size), fields)
        assert answer.status == 400


def test_a_commit_of_more_digests_than_any_file_has_is_refused_before_them(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", EXTENT + 1)
    fields = {**upload.fields, "Upload-Length": EXTENT + 1, "Content-Length": 16 * MIB + 1}
    with it_costs_little(receiver), receiver.connect() as wire:
        wire.send(head("POST", upload.target + "/commit", fields))
        assert wire.answer().status == 413


def test_a_body_for_a_file_of_a_million_holes_costs_no_more_than_another(receiver: RunningReceiver) -> None:
    length = 1 << 46
    fields = {"Upload-Complete": "?0", "Upload-Length": length, "Tdx-Holes": f"0-{length - 1}"}
    upload = Opened(receiver.request("POST", "/files/f", b"", fields))
    with it_costs_little(receiver), receiver.connect() as wire:
        wire.send(upload.range_head(0, upload.extent_size, length) + bytes(2 * MIB))
        receiver.has_received(MIB)


def test_a_commit_of_another_length_is_refused(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", EXTENT + 1)
    with it_costs_little(receiver):
        for length in (0, EXTENT, HUGE, (1 << 63) - 1, 1 << 63):
            fields = {**upload.fields, "Upload-Length": length}
            answer = receiver.request("POST", upload.target + "/commit", bytes(32), fields)
            assert answer.status in {400, 413}


TREES: dict[str, bytes] = {
    "lists in place of entries": b'{"entries":[' + b"[]," * (1 << 20) + b"[]]}",
    "objects beside them": b'{"entries":[],"x":[' + b"{}," * (1 << 20) + b"{}]}",
    "texts in one": b'{"entries":[[' + b'"ab",' * (1 << 19) + b"0]]}",
}


@pytest.mark.parametrize("raw", TREES.values(), ids=TREES)
def test_entries_of_a_tree_that_would_take_much_memory_are_refused(
    receiver: RunningReceiver, raw: bytes
) -> None:
    with it_costs_little(receiver):
        answer = receiver.request("POST", "/v1/tree", raw, {"Content-Type": "application/json"})
        assert answer.status == 413
