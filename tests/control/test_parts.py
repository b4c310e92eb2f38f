"""An extent that comes in parts, over several connections: when it is held, and what may not write there."""

from __future__ import annotations

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver
from support.uploading import Opened, open_upload
from support.wire import Wire
from tdx.control.parts import Parts
from tdx.errors import UploadBusy
from tdx.integrity import PART, digest_of
from tdx.model import Span

EXTENT = 4 << 20
SIZE = 2 * EXTENT + 1000
CONTENT = pattern(SIZE)
CUT = 5 * PART


def put(receiver: RunningReceiver, upload: Opened, start: int, end: int) -> int:
    return upload.put(receiver, start, CONTENT[start:end], SIZE).status


def held(receiver: RunningReceiver, upload: Opened) -> object:
    return receiver.request("GET", upload.target).document["held"]


def test_an_extent_is_held_once_all_its_parts_are_there_in_any_order(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, 2 * CUT, EXTENT) == 200
    assert put(receiver, upload, 0, CUT) == 200
    assert held(receiver, upload) == []
    assert put(receiver, upload, CUT, 2 * CUT) == 200
    assert held(receiver, upload) == [[0, EXTENT]]
    assert put(receiver, upload, EXTENT, SIZE) == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_parts_of_one_extent_come_at_the_same_time(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    spans = ((CUT, EXTENT), (0, CUT))
    with receiver.connect() as one, receiver.connect() as two:
        for wire, (start, end) in zip((one, two), spans, strict=True):
            wire.send(upload.range_head(start, end, SIZE) + CONTENT[start : start + 10])
        receiver.has_bodies(2)
        for wire, (start, end) in zip((one, two), spans, strict=True):
            wire.send(CONTENT[start + 10 : end])
            assert wire.answer().status == 200
    assert held(receiver, upload) == [[0, EXTENT]]


def begun(receiver: RunningReceiver, upload: Opened, wire: Wire, start: int, end: int) -> None:
    wire.send(upload.range_head(start, end, SIZE) + CONTENT[start : start + 10])
    receiver.has_bodies(1)


@pytest.mark.parametrize(("start", "end"), [(0, CUT), (PART, 2 * PART), (0, EXTENT), (0, 2 * EXTENT)])
def test_nobody_else_writes_where_a_part_is_coming(receiver: RunningReceiver, start: int, end: int) -> None:
    upload = open_upload(receiver, "f", SIZE)
    with receiver.connect() as wire:
        begun(receiver, upload, wire, 0, CUT)
        answer = upload.put(receiver, start, CONTENT[start:end], SIZE)
        assert (answer.status, answer.problem) == (409, "upload-busy")
        wire.send(CONTENT[10:CUT])
        assert wire.answer().status == 200
    assert put(receiver, upload, CUT, EXTENT) == 200
    assert held(receiver, upload) == [[0, EXTENT]]


def test_no_part_is_written_where_a_whole_extent_is_coming(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    with receiver.connect() as wire:
        begun(receiver, upload, wire, 0, EXTENT)
        answer = upload.put(receiver, PART, CONTENT[PART : 2 * PART], SIZE)
        assert (answer.status, answer.problem) == (409, "upload-busy")


def test_a_part_that_broke_off_comes_again(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, CUT, EXTENT) == 200
    with receiver.connect() as wire:
        begun(receiver, upload, wire, 0, CUT)
    receiver.has_bodies(0)
    assert held(receiver, upload) == []
    assert put(receiver, upload, 0, CUT) == 200
    assert held(receiver, upload) == [[0, EXTENT]]


def test_a_part_that_comes_again_does_not_count_until_it_has_ended(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, 0, CUT) == 200
    with receiver.connect() as wire:
        begun(receiver, upload, wire, 0, CUT)
        assert put(receiver, upload, CUT, EXTENT) == 200
        assert held(receiver, upload) == []
        wire.send(CONTENT[10:CUT])
        assert wire.answer().status == 200
    assert held(receiver, upload) == [[0, EXTENT]]


def test_the_parts_of_an_earlier_run_do_not_count(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, 0, CUT) == 200
    again = open_upload(receiver, "f", SIZE, {"Tdx-Resume": "?1"})
    assert again.id == upload.id
    assert put(receiver, again, CUT, EXTENT) == 200
    assert held(receiver, again) == []
    assert put(receiver, again, 0, EXTENT) == 200
    assert held(receiver, again) == [[0, EXTENT]]


def test_a_part_of_what_is_held_already_is_dropped(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, 0, SIZE) == 200
    assert upload.put(receiver, 0, bytes(CUT), SIZE).status == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_bytes_that_are_not_those_of_the_sender_are_found_at_the_commit(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert upload.put(receiver, 0, bytes(CUT), SIZE).status == 200
    assert put(receiver, upload, CUT, EXTENT) == 200
    assert put(receiver, upload, EXTENT, SIZE) == 200
    answer = upload.commit(receiver, CONTENT)
    assert (answer.status, answer.document["extents"]) == (409, [0])
    for start, end in ((0, CUT), (CUT, EXTENT)):
        assert put(receiver, upload, start, end) == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_a_part_has_a_digest_of_its_own(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    wrong = {"Content-Digest": f"xxh3-128=:{'A' * 22}==:"}
    assert upload.put(receiver, 0, CONTENT[:CUT], SIZE, wrong).status == 400
    assert digest_of(CONTENT[:CUT]) != digest_of(CONTENT[:EXTENT])
    assert put(receiver, upload, CUT, EXTENT) == 200
    assert held(receiver, upload) == []


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, PART - 1), (1, PART), (PART, EXTENT + PART), (EXTENT - PART, 2 * EXTENT), (PART, SIZE)],
)
def test_a_part_lies_inside_one_extent_and_on_multiples(
    receiver: RunningReceiver, start: int, end: int
) -> None:
    upload = open_upload(receiver, "f", SIZE)
    assert put(receiver, upload, start, end) == 416


def test_without_a_length_there_are_no_parts(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", None)
    assert upload.put(receiver, PART, CONTENT[PART : 2 * PART], None).status == 416


class TestParts:
    def test_an_extent_is_whole_with_its_last_part(self) -> None:
        parts, whole = Parts(), Span(0, 10)
        for part in (Span(0, 4), Span(4, 10)):
            parts.begin(0, part)
        assert not parts.wrote(0, Span(4, 10), whole)
        assert parts.wrote(0, Span(0, 4), whole)

    def test_what_is_whole_takes_no_part_until_everybody_has_left(self) -> None:
        parts, whole = Parts(), Span(0, 10)
        parts.begin(0, whole)
        assert parts.wrote(0, whole, whole)
        with pytest.raises(UploadBusy):
            parts.begin(0, Span(20, 30))
        assert parts.end(0, whole)
        parts.begin(0, Span(0, 4))

    def test_it_tells_who_is_the_last_to_leave(self) -> None:
        parts = Parts()
        parts.begin(0, Span(0, 4))
        parts.begin(0, Span(4, 8))
        assert not parts.end(0, Span(0, 4))
        assert parts.end(0, Span(4, 8))
