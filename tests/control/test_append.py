"""PATCH /uploads/ID: appends in order (draft-ietf-httpbis-resumable-upload)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.datakit import pattern
from support.receiving import RunningReceiver, local_store, running
from support.uploading import Opened, open_upload
from support.wire import Answer, chunked, head
from tdx.policy.admission import Limits

EXTENT = 4 << 20
SIZE = EXTENT + 1000
CONTENT = pattern(SIZE)
TYPE = "application/partial-upload"


def append_fields(offset: int, *, complete: bool, **fields: object) -> dict[str, object]:
    return {
        "Content-Type": TYPE,
        "Upload-Offset": offset,
        "Upload-Complete": "?1" if complete else "?0",
        **fields,
    }


def append(
    receiver: RunningReceiver,
    upload: Opened,
    offset: int,
    body: bytes,
    *,
    complete: bool = False,
    fields: Mapping[str, object] | None = None,
) -> Answer:
    given = {**append_fields(offset, complete=complete), **(fields or {})}
    return receiver.request("PATCH", upload.target, body, given)


def offset_of(receiver: RunningReceiver, upload: Opened) -> int:
    return int(receiver.request("HEAD", upload.target).headers["upload-offset"])


@pytest.mark.parametrize("length", [SIZE, None])
def test_appends_make_the_file(receiver: RunningReceiver, length: int | None) -> None:
    upload = open_upload(receiver, "f", length, source=None)
    at = 0
    for end in (1, 1000, EXTENT, EXTENT + 1):
        answer = append(receiver, upload, at, CONTENT[at:end])
        assert answer.status == 204
        assert answer.headers["upload-offset"] == str(end)
        assert answer.headers["upload-complete"] == "?0"
        assert offset_of(receiver, upload) == end
        at = end
    answer = append(receiver, upload, at, CONTENT[at:], complete=True)
    assert (answer.status, answer.document["size"]) == (201, SIZE)
    assert receiver.visible() == {"f": CONTENT}
    assert receiver.request("HEAD", upload.target).headers["upload-complete"] == "?1"
    assert receiver.uploads_ended("http", "published") == 1


def test_an_append_may_be_chunked(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", None, source=None)
    coding = {"Transfer-Encoding": "chunked"}
    append(receiver, upload, 0, chunked([CONTENT[:100], CONTENT[100:5000]]), fields=coding)
    answer = append(receiver, upload, 5000, chunked([CONTENT[5000:]]), complete=True, fields=coding)
    assert answer.status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_an_empty_append_may_complete(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", None, source=None)
    append(receiver, upload, 0, CONTENT)
    assert append(receiver, upload, SIZE, b"", complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_creation_may_carry_the_first_bytes(receiver: RunningReceiver) -> None:
    fields = {"Upload-Complete": "?0", "Upload-Length": SIZE}
    answer = receiver.request("POST", "/files/f", CONTENT[:700], fields)
    assert (answer.status, answer.headers["upload-offset"]) == (201, "700")
    assert append(receiver, Opened(answer), 700, CONTENT[700:], complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_creation_may_carry_all_of_it(receiver: RunningReceiver, method: str) -> None:
    answer = receiver.request(method, "/files/f", CONTENT, {"Upload-Complete": "?1"})
    assert answer.status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_a_put_that_is_not_complete_publishes_nothing(receiver: RunningReceiver) -> None:
    answer = receiver.request("PUT", "/files/f", CONTENT[:100], {"Upload-Complete": "?0"})
    assert (answer.status, answer.headers["upload-offset"]) == (201, "100")
    assert receiver.visible() == {}
    assert append(receiver, Opened(answer), 100, CONTENT[100:], complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


@pytest.mark.parametrize("offset", [0, 99, 101, SIZE])
def test_an_append_from_elsewhere_is_told_the_real_offset(receiver: RunningReceiver, offset: int) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    append(receiver, upload, 0, CONTENT[:100])
    answer = append(receiver, upload, offset, CONTENT[100:200])
    assert answer.status == 409
    assert (
        answer.document["type"] == "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
    )
    assert answer.headers["upload-offset"] == "100"
    assert offset_of(receiver, upload) == 100


def test_an_append_beyond_the_length_is_refused_and_ends_the_upload(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", 1000, source=None)
    append(receiver, upload, 0, CONTENT[:100])
    answer = append(receiver, upload, 100, CONTENT[100:1001])
    assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
    assert receiver.request("HEAD", upload.target).status == 404
    assert receiver.staged() == []


def test_a_chunked_append_beyond_the_length_is_refused(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", 1000, source=None)
    answer = append(
        receiver, upload, 0, chunked([CONTENT[:1001]]), complete=True, fields={"Transfer-Encoding": "chunked"}
    )
    assert answer.status == 400
    assert receiver.visible() == {}


def test_completing_too_early_is_refused_and_can_be_mended(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    answer = append(receiver, upload, 0, CONTENT[:-1], complete=True)
    assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
    assert receiver.visible() == {}
    assert append(receiver, upload, SIZE - 1, CONTENT[-1:], complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_another_length_than_the_first_is_refused(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    answer = append(receiver, upload, 0, CONTENT, fields={"Upload-Length": SIZE - 1})
    assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
    assert append(receiver, upload, 0, CONTENT, complete=True, fields={"Upload-Length": SIZE}).status == 201


@pytest.mark.parametrize("missing", ["Content-Type", "Upload-Offset", "Upload-Complete"])
def test_an_append_without_its_fields_is_refused(receiver: RunningReceiver, missing: str) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    fields = append_fields(0, complete=False)
    del fields[missing]
    assert receiver.request("PATCH", upload.target, CONTENT[:10], fields).status == 400
    assert offset_of(receiver, upload) == 0


@pytest.mark.parametrize("good", [True, False])
def test_repr_digest_is_held_against_the_whole(receiver: RunningReceiver, good: bool) -> None:
    upload = open_upload(receiver, "f", None, source=None)
    append(receiver, upload, 0, CONTENT[:100])
    digest = base64.b64encode(hashlib.sha512(CONTENT if good else b"").digest()).decode()
    fields = {"Repr-Digest": f"sha-512=:{digest}:"}
    answer = append(receiver, upload, 100, CONTENT[100:], complete=True, fields=fields)
    if good:
        assert (answer.status, answer.document["verified"]) == (201, True)
    else:
        assert (answer.status, answer.problem) == (400, "digest-mismatched-values")
        assert receiver.request("HEAD", upload.target).status == 404
    assert receiver.staged() == []


def test_asking_ends_a_hung_append_and_keeps_what_it_brought(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    with receiver.connect() as hung:
        fields = append_fields(0, complete=True, **{"Content-Length": SIZE})
        hung.send(head("PATCH", upload.target, fields) + CONTENT[: EXTENT + 100])
        receiver.has_received(EXTENT)
        assert offset_of(receiver, upload) >= EXTENT
        receiver.has_bodies(0)
        assert hung.is_closed()
    at = offset_of(receiver, upload)
    assert append(receiver, upload, at, CONTENT[at:], complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_a_new_append_ends_a_hung_one(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    append(receiver, upload, 0, CONTENT[:100])
    with receiver.connect() as hung:
        fields = append_fields(100, complete=True, **{"Content-Length": SIZE - 100})
        hung.send(head("PATCH", upload.target, fields))
        receiver.has_bodies(1)
        assert append(receiver, upload, 100, CONTENT[100:], complete=True).status == 201
    assert receiver.visible() == {"f": CONTENT}


def test_asking_does_not_end_a_range(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    with receiver.connect() as wire:
        wire.send(upload.range_head(0, EXTENT, SIZE) + CONTENT[:100])
        receiver.has_bodies(1)
        assert offset_of(receiver, upload) == 0
        assert wire.send(CONTENT[100:EXTENT]).answer().status == 200
    assert offset_of(receiver, upload) == EXTENT


def test_two_clients_under_one_name_have_two_uploads(receiver: RunningReceiver) -> None:
    one = open_upload(receiver, "f", 4, source=None)
    two = open_upload(receiver, "f", 4, source=None)
    append(receiver, one, 0, b"11")
    append(receiver, two, 0, b"22")
    assert receiver.request("HEAD", "/files/f").status == 404
    assert append(receiver, one, 2, b"11", complete=True).document["path"] == "f"
    assert append(receiver, two, 2, b"22", complete=True).document["path"] == "f (1)"
    assert receiver.visible() == {"f": b"1111", "f (1)": b"2222"}


def test_ranges_and_appends_may_be_mixed(receiver: RunningReceiver) -> None:
    content = pattern(3 * EXTENT)
    upload = open_upload(receiver, "f", 3 * EXTENT, source=None)
    upload.put(receiver, EXTENT, content[EXTENT : 2 * EXTENT], 3 * EXTENT)
    append(receiver, upload, 0, content[:100])
    answer = append(receiver, upload, 100, content[100 : EXTENT + 100])
    assert answer.headers["upload-offset"] == str(2 * EXTENT)
    assert receiver.metrics.discarded_bytes.value(("held",)) == 100
    upload.put(receiver, 2 * EXTENT, content[2 * EXTENT :], 3 * EXTENT)
    assert append(receiver, upload, 3 * EXTENT, b"", complete=True).status == 201
    assert receiver.visible() == {"f": content}


def test_a_range_over_the_beginning_that_an_append_left_forgets_it_first(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE, source=None)
    append(receiver, upload, 0, CONTENT[:1000])
    with receiver.connect() as wire:
        wire.send(upload.range_head(0, EXTENT, SIZE) + bytes(1 << 20))
        receiver.has_received(1000 + (1 << 20))
    receiver.has_bodies(0)
    assert offset_of(receiver, upload) == 0


def test_a_file_larger_than_the_limit_is_refused_in_the_append_that_makes_it_so(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(max_file=100)) as receiver:
        upload = open_upload(receiver, "f", None, source=None)
        append(receiver, upload, 0, CONTENT[:100])
        answer = append(receiver, upload, 100, CONTENT[100:101], complete=True)
        assert (answer.status, answer.problem) == (413, "too-large")
        assert (receiver.visible(), receiver.staged()) == ({}, [])
        assert open_upload(receiver, "g", 101).created.status == 413


class TestAfterAPowerCut:
    """The boot id changes, and what was not durable is gone."""

    def test_an_offset_that_was_told_holds(self, tmp_path: Path) -> None:
        system = FaultySystem()
        with running(tmp_path, make_store=local_store(system)) as receiver:
            upload = open_upload(receiver, "f", SIZE, source=None)
            append(receiver, upload, 0, CONTENT[:1000])
            receiver.stop()
            system.boot = bytes(16)
            receiver.start()
            assert offset_of(receiver, upload) == 1000
            assert append(receiver, upload, 1000, CONTENT[1000:], complete=True).status == 201
            assert receiver.visible() == {"f": CONTENT}

    def test_bytes_that_were_lost_end_the_upload(self, tmp_path: Path) -> None:
        system = FaultySystem()
        with running(tmp_path, make_store=local_store(system)) as receiver:
            upload = open_upload(receiver, "f", SIZE, source=None)
            append(receiver, upload, 0, CONTENT[:EXTENT])
            (staged,) = receiver.staged()
            receiver.stop()
            (staged / "data").write_bytes(bytes(EXTENT))
            system.boot = bytes(16)
            receiver.start()
            answer = append(receiver, upload, EXTENT, CONTENT[EXTENT:], complete=True)
            assert (answer.status, answer.problem) == (404, "not-found")
            assert (receiver.visible(), receiver.staged()) == ({}, [])
