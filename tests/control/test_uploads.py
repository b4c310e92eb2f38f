"""POST /files/NAME and /uploads/ID: create, ask, send ranges, cancel."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, running
from support.uploading import Opened, open_upload
from support.wire import chunked, head
from tdx.integrity import digest_of
from tdx.policy.admission import Limits

EXTENT = 4 << 20
UNKNOWN_EXTENT = 16 << 20
SIZE = 2 * EXTENT + 1000
CONTENT = pattern(SIZE)


def test_creating_says_all_that_a_sender_needs(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "disk.img", SIZE)
    assert upload.created.status == 201
    assert re.fullmatch(r"/uploads/[0-9a-f]{32}", upload.created.headers["location"])
    assert upload.created.headers["upload-offset"] == "0"
    assert upload.created.headers["upload-complete"] == "?0"
    assert upload.created.document == {
        "id": upload.id,
        "epoch": 1,
        "extent_size": EXTENT,
        "held": [],
        "part": 256 << 10,
        "streams": 64,
        "existing": False,
        "resumed": False,
        "unchanged": False,
    }
    assert receiver.visible() == {}


def test_the_extent_size_is_pinned_to_the_length(receiver: RunningReceiver) -> None:
    def extent_size(length: int) -> int:
        hole = {"Tdx-Holes": f"0-{length - 1}"} if length else {}
        return open_upload(receiver, f"f{length}", length, hole).extent_size

    sizes = [extent_size(length) for length in (0, 1, 4 << 30, (4 << 30) + 1)]
    assert sizes == [EXTENT, EXTENT, EXTENT, 2 * EXTENT]
    assert open_upload(receiver, "unknown", None).extent_size == UNKNOWN_EXTENT


def test_a_file_of_this_name_and_size_is_told(receiver: RunningReceiver) -> None:
    receiver.request("PUT", "/files/f", b"1234")
    assert open_upload(receiver, "f", 4).created.document["existing"] is True
    assert open_upload(receiver, "f", 5).created.document["existing"] is False


def test_holes_are_held_from_the_beginning(receiver: RunningReceiver) -> None:
    holes = {"Tdx-Holes": f"0-{EXTENT - 1}, {2 * EXTENT}-{3 * EXTENT - 1}"}
    upload = open_upload(receiver, "f", 3 * EXTENT, holes)
    assert upload.created.document["held"] == [[0, EXTENT], [2 * EXTENT, 3 * EXTENT]]
    middle = pattern(EXTENT)
    assert upload.put(receiver, EXTENT, middle, 3 * EXTENT).status == 200
    content = bytes(EXTENT) + middle + bytes(EXTENT)
    assert upload.commit(receiver, content).status == 200
    assert receiver.visible() == {"f": content}


@pytest.mark.parametrize(
    ("length", "holes"),
    [(EXTENT, f"0-{EXTENT}"), (EXTENT, "5-3"), (EXTENT, "x"), (None, "0-5"), (EXTENT, "0-5, 3-9")],
)
def test_holes_that_make_no_sense_are_refused(
    receiver: RunningReceiver, length: int | None, holes: str
) -> None:
    answer = open_upload(receiver, "f", length, {"Tdx-Holes": holes}).created
    assert answer.status == 400
    assert receiver.staged() == []


def test_head_and_get_tell_how_far_it_is(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    upload.put(receiver, EXTENT, CONTENT[EXTENT : 2 * EXTENT], SIZE)
    answer = receiver.request("HEAD", upload.target)
    assert (answer.status, answer.body) == (204, b"")
    told = {name: answer.headers[name] for name in ("upload-offset", "upload-complete", "upload-length")}
    assert told == {"upload-offset": "0", "upload-complete": "?0", "upload-length": str(SIZE)}
    assert answer.headers["cache-control"] == "no-store"
    upload.put(receiver, 0, CONTENT[:EXTENT], SIZE)
    assert receiver.request("HEAD", upload.target).headers["upload-offset"] == str(2 * EXTENT)
    answer = receiver.request("GET", upload.target)
    assert answer.status == 200
    assert answer.document == {
        "id": upload.id,
        "state": "open",
        "length": SIZE,
        "epoch": 1,
        "held": [[0, 2 * EXTENT]],
    }


def test_a_published_upload_stays_queryable(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    upload.put(receiver, 0, CONTENT, SIZE)
    upload.commit(receiver, CONTENT)
    for _ in range(2):
        answer = receiver.request("HEAD", upload.target)
        assert (answer.headers["upload-complete"], answer.headers["upload-offset"]) == ("?1", str(SIZE))
        assert receiver.request("GET", upload.target).document["state"] == "published"
        receiver.restart()


class TestRanges:
    def test_extents_come_in_any_order_over_several_connections(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        spans = ((2 * EXTENT, SIZE), (0, EXTENT), (EXTENT, 2 * EXTENT))
        with receiver.connect() as one, receiver.connect() as two, receiver.connect() as three:
            wires = (one, two, three)
            for wire, (start, end) in zip(wires, spans, strict=True):
                wire.send(upload.range_head(start, end, SIZE) + CONTENT[start : start + 10])
            receiver.has_bodies(3)
            for wire, (start, end) in zip(wires, spans, strict=True):
                wire.send(CONTENT[start + 10 : end])
            for wire in wires:
                answer = wire.answer()
                assert answer.status == 200
        assert upload.commit(receiver, CONTENT).status == 200
        assert receiver.visible() == {"f": CONTENT}

    def test_one_range_may_carry_many_extents(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        answer = upload.put(receiver, 0, CONTENT, SIZE)
        assert receiver.request("GET", upload.target).document["held"] == [[0, SIZE]]
        stages = answer.document["stages"]
        assert isinstance(stages, dict)
        assert stages["receive"] > 0
        assert stages["write"] > 0

    @pytest.mark.parametrize(
        ("start", "end"),
        [(1, EXTENT), (0, EXTENT - 1), (EXTENT, 2 * EXTENT + 1), (EXTENT // 2, 2 * EXTENT)],
    )
    def test_a_range_off_the_extents_boundaries_is_refused(
        self, receiver: RunningReceiver, start: int, end: int
    ) -> None:
        upload = open_upload(receiver, "f", SIZE)
        answer = upload.put(receiver, start, CONTENT[start:end], SIZE)
        assert (answer.status, answer.problem) == (416, "range-not-satisfiable")

    @pytest.mark.parametrize(
        ("field", "length", "status"),
        [
            (f"bytes 0-{EXTENT - 1}/{SIZE + 1}", EXTENT, 416),
            (f"bytes 0-{EXTENT - 1}/*", EXTENT, 416),
            (f"bytes 0-{EXTENT - 1}/{SIZE}", EXTENT - 1, 400),
            (f"bytes 0-{EXTENT - 1}/{SIZE}", EXTENT + 1, 400),
            (f"bytes {2 * EXTENT}-{SIZE}/{SIZE}", 1001, 416),
            (None, EXTENT, 400),
            ("everything", EXTENT, 400),
        ],
    )
    def test_lengths_that_do_not_fit_are_refused_before_the_body(
        self, receiver: RunningReceiver, field: str | None, length: int, status: int
    ) -> None:
        upload = open_upload(receiver, "f", SIZE)
        fields: dict[str, object] = {"Content-Length": length, "Expect": "100-continue"}
        if field is not None:
            fields["Content-Range"] = field
        with receiver.connect() as wire:
            answer = wire.send(head("PUT", upload.target, {**upload.fields, **fields})).message()
            assert answer.status == status
            assert answer.headers["connection"] == "close"

    def test_a_chunked_range_is_refused(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        fields = {"Content-Range": f"bytes 0-{EXTENT - 1}/{SIZE}", "Transfer-Encoding": "chunked"}
        answer = receiver.request("PUT", upload.target, chunked([CONTENT[:EXTENT]]), fields)
        assert answer.status == 400

    def test_extents_that_are_held_are_read_and_dropped(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        upload.put(receiver, EXTENT, CONTENT[EXTENT : 2 * EXTENT], SIZE)
        other = bytes(SIZE)
        with receiver.connect() as wire:
            answer = wire.send(upload.range_head(0, SIZE, SIZE) + CONTENT[:EXTENT] + other[EXTENT:]).answer()
            assert answer.status == 200
            assert wire.request("GET", "/v1/hello").status == 200
        assert receiver.metrics.discarded_bytes.value(("held",)) == EXTENT
        expected = CONTENT[: 2 * EXTENT] + other[2 * EXTENT :]
        assert upload.commit(receiver, expected).status == 200
        assert receiver.visible() == {"f": expected}

    def test_a_range_that_breaks_off_leaves_its_whole_extents_held(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        with receiver.connect() as wire:
            wire.send(upload.range_head(0, SIZE, SIZE) + CONTENT[: EXTENT + EXTENT // 2])
        receiver.is_quiet()
        assert receiver.request("GET", upload.target).document["held"] == [[0, EXTENT]]

    def test_a_digest_that_does_not_fit_leaves_the_extent_unheld(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)

        def put(content: bytes) -> int:
            value = base64.b64encode(digest_of(content)).decode()
            fields = {"Content-Digest": f"xxh3-128=:{value}:"}
            return upload.put(receiver, 0, CONTENT[:EXTENT], SIZE, fields).status

        assert put(b"other") == 400
        assert receiver.metrics.digest_failures.value() == 1
        assert receiver.request("GET", upload.target).document["held"] == []
        assert put(CONTENT[:EXTENT]) == 200
        assert receiver.request("GET", upload.target).document["held"] == [[0, EXTENT]]

    def test_a_digest_is_taken_for_one_extent_only(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        value = base64.b64encode(digest_of(CONTENT)).decode()
        fields = {"Content-Digest": f"xxh3-128=:{value}:"}
        assert upload.put(receiver, 0, CONTENT, SIZE, fields).status == 400

    def test_more_streams_than_an_upload_may_have_are_told_to_wait(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(streams_per_upload=1)) as receiver:
            upload = open_upload(receiver, "f", SIZE)
            assert upload.created.document["streams"] == 1
            with receiver.connect() as wire:
                wire.send(upload.range_head(0, EXTENT, SIZE))
                receiver.has_bodies(1)
                answer = upload.put(receiver, EXTENT, CONTENT[EXTENT : 2 * EXTENT], SIZE)
                assert (answer.status, answer.problem) == (503, "busy")
                assert wire.send(CONTENT[:EXTENT]).answer().status == 200


class TestLeases:
    def test_an_extent_is_written_by_one_connection_at_a_time(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        with receiver.connect() as one:
            one.send(upload.range_head(0, 2 * EXTENT, SIZE) + CONTENT[:EXTENT])
            receiver.has_bodies(1)
            answer = upload.put(receiver, EXTENT, bytes(EXTENT), SIZE)
            assert (answer.status, answer.problem) == (409, "upload-busy")
            assert answer.document["extent"] == 1
            assert answer.headers["connection"] == "close"
            assert one.send(CONTENT[EXTENT : 2 * EXTENT]).answer().status == 200
        assert upload.put(receiver, 2 * EXTENT, CONTENT[2 * EXTENT :], SIZE).status == 200
        assert upload.commit(receiver, CONTENT).status == 200
        assert receiver.visible() == {"f": CONTENT}

    def test_a_silent_connection_gives_its_extents_up_to_another(
        self, receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tdx.control.writers.SILENT_SECONDS", 0.4)
        upload = open_upload(receiver, "f", SIZE)
        with receiver.connect() as dead, receiver.connect() as elsewhere:
            dead.send(upload.range_head(0, EXTENT, SIZE) + bytes(100))
            elsewhere.send(upload.range_head(EXTENT, 2 * EXTENT, SIZE))
            receiver.has_bodies(2)
            first = upload.put(receiver, 0, CONTENT[:EXTENT], SIZE)
            assert (first.status, first.problem) == (409, "upload-busy")
            wait_until(
                lambda: upload.put(receiver, 0, CONTENT[:EXTENT], SIZE).status == 200,
                "the dead one gives way",
            )
            assert dead.is_closed()
            receiver.has_bodies(1)
            assert elsewhere.send(CONTENT[EXTENT : 2 * EXTENT]).answer().status == 200
        assert receiver.request("GET", upload.target).document["held"] == [[0, 2 * EXTENT]]

    def test_a_lease_ends_with_its_connection(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        with receiver.connect() as one:
            one.send(upload.range_head(0, EXTENT, SIZE))
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        assert upload.put(receiver, 0, CONTENT[:EXTENT], SIZE).status == 200


class TestUnknownLength:
    def test_the_length_is_told_at_the_commit(self, receiver: RunningReceiver) -> None:
        content = pattern(UNKNOWN_EXTENT + 77)
        upload = open_upload(receiver, "f", None)
        assert upload.put(receiver, 0, content[:UNKNOWN_EXTENT], None).status == 200
        assert upload.put(receiver, UNKNOWN_EXTENT, content[UNKNOWN_EXTENT:], None).status == 200
        assert "upload-length" not in receiver.request("HEAD", upload.target).headers
        assert upload.commit(receiver, content).status == 200
        assert receiver.visible() == {"f": content}

    def test_a_range_that_names_a_length_is_refused(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", None)
        assert upload.put(receiver, 0, CONTENT, SIZE).status == 416

    def test_a_wrong_commit_does_not_fix_the_length(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", None)
        upload.put(receiver, 0, CONTENT, None)
        assert upload.commit(receiver, CONTENT[:5], digests=[]).status == 400
        assert upload.commit(receiver, CONTENT[:5]).status == 400
        assert upload.commit(receiver, CONTENT).status == 200

    def test_a_last_extent_sent_again_longer_is_the_one_that_counts(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", None)
        upload.put(receiver, 0, bytes(500), None)
        upload.put(receiver, 0, CONTENT[:1000], None)
        assert upload.commit(receiver, CONTENT[:1000]).status == 200
        assert receiver.visible() == {"f": CONTENT[:1000]}


class TestCancel:
    def test_cancelling_removes_every_byte(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        upload.put(receiver, 0, CONTENT[:EXTENT], SIZE)
        answer = receiver.request("DELETE", upload.target, headers=upload.fields)
        assert answer.status == 204
        assert receiver.staged() == []
        for method in ("GET", "HEAD", "DELETE"):
            assert receiver.request(method, upload.target, headers=upload.fields).status == 404
        assert upload.commit(receiver, CONTENT).status == 404
        assert receiver.uploads_ended("tdx", "cancelled") == 1

    def test_cancelling_ends_the_bodies_that_are_on_their_way(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "f", SIZE)
        with receiver.connect() as wire:
            wire.send(upload.range_head(0, SIZE, SIZE) + CONTENT[:EXTENT])
            receiver.has_bodies(1)
            assert receiver.request("DELETE", upload.target, headers=upload.fields).status == 204
            receiver.has_bodies(0)
        assert receiver.staged() == []


@pytest.mark.parametrize("epoch", [None, "2", "-1", "one"])
def test_an_upload_of_a_tdx_sender_is_only_for_who_names_its_epoch(
    receiver: RunningReceiver, epoch: str | None
) -> None:
    upload = open_upload(receiver, "f", SIZE)
    fields = {} if epoch is None else {"Tdx-Epoch": epoch}
    strange = Opened(upload.created, fields)
    assert strange.put(receiver, 0, CONTENT[:EXTENT], SIZE).status == 400
    assert strange.commit(receiver, CONTENT).status == 400
    assert receiver.request("DELETE", upload.target, headers=fields).status == 400
    assert len(receiver.staged()) == 1
