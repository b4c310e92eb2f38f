"""Sizes that no commit could ever name are refused before they cost anything."""

from __future__ import annotations

import pytest

from support.receiving import RunningReceiver
from support.uploading import open_upload
from support.wire import head
from tdx.integrity import MAX_EXTENT, MAX_EXTENTS, UNKNOWN_LENGTH_EXTENT

BEYOND = 1 << 62


def test_a_range_beyond_the_last_extent_that_a_commit_can_name_is_too_large(
    receiver: RunningReceiver,
) -> None:
    upload = open_upload(receiver, "f", None)
    with receiver.connect() as wire:
        wire.send(upload.range_head(0, BEYOND, None))
        answer = wire.answer()
    assert (answer.status, answer.problem) == (413, "too-large")
    end = MAX_EXTENTS * UNKNOWN_LENGTH_EXTENT
    with receiver.connect() as wire:
        wire.send(upload.range_head(end, end + UNKNOWN_LENGTH_EXTENT, None))
        assert wire.answer().status == 413


@pytest.mark.timeout(30)
def test_the_largest_range_costs_no_more_than_a_small_one(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", None)
    with receiver.connect() as wire:
        wire.send(upload.range_head(0, MAX_EXTENTS * UNKNOWN_LENGTH_EXTENT, None))
        receiver.has_bodies(1)
        assert receiver.request("GET", "/v1/hello").status == 200


@pytest.mark.parametrize("length", [MAX_EXTENTS * MAX_EXTENT + 1, BEYOND])
def test_a_file_of_too_many_extents_is_too_large_however_many_holes_it_has(
    receiver: RunningReceiver, length: int
) -> None:
    answer = open_upload(receiver, "f", length, {"Tdx-Holes": f"0-{length - 1}"}).created
    assert (answer.status, answer.problem) == (413, "too-large")
    assert receiver.staged() == []


def test_the_largest_file_may_be_one_hole(receiver: RunningReceiver) -> None:
    length = MAX_EXTENTS * MAX_EXTENT
    answer = open_upload(receiver, "f", length, {"Tdx-Holes": f"0-{length - 1}"}).created
    assert answer.document["held"] == [[0, length]]


@pytest.mark.parametrize("fields", [{}, {"Content-Range": f"bytes 0-{BEYOND - 1}/{BEYOND}"}])
def test_a_plain_body_of_too_many_extents_is_too_large(
    receiver: RunningReceiver, fields: dict[str, object]
) -> None:
    with receiver.connect() as wire:
        wire.send(head("PUT", "/files/f", {**fields, "Content-Length": BEYOND}))
        assert wire.answer().status == 413


def test_an_append_beyond_the_last_extent_is_too_large(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", None, source=None)
    fields = {
        "Content-Type": "application/partial-upload",
        "Upload-Offset": 0,
        "Upload-Complete": "?0",
        "Content-Length": BEYOND,
    }
    with receiver.connect() as wire:
        wire.send(head("PATCH", upload.target, fields))
        assert wire.answer().status == 413
