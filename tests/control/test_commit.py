"""POST /uploads/ID/commit: compare, repair, publish, and answer again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, local_store, running
from support.uploading import Opened, open_upload
from support.wire import head
from tdx.integrity import Root

EXTENT = 4 << 20
SIZE = 3 * EXTENT + 1000
CONTENT = pattern(SIZE)


def sent(receiver: RunningReceiver, content: bytes = CONTENT, name: str = "f") -> Opened:
    upload = open_upload(receiver, name, len(content))
    assert upload.put(receiver, 0, content, len(content)).status == 200
    return upload


def changed(content: bytes, *extents: int) -> bytes:
    """``content`` with one byte of each of these extents inverted."""
    other = bytearray(content)
    for index in extents:
        other[index * EXTENT + 17] ^= 0xFF
    return bytes(other)


def test_equal_digests_publish_and_the_receipt_says_what(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    answer = upload.commit(receiver, CONTENT)
    assert answer.status == 200
    assert answer.document == {
        "outcome": "published",
        "name": "f",
        "path": "f",
        "size": SIZE,
        "root": str(Root.over(upload.digests(CONTENT), SIZE, EXTENT)),
        "verified": True,
    }
    assert receiver.visible() == {"f": CONTENT}
    assert receiver.staged() == []
    assert receiver.uploads_ended("tdx", "published") == 1


def test_a_lost_answer_is_given_again_and_no_second_file_made(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    first = upload.commit(receiver, CONTENT)
    assert upload.commit(receiver, CONTENT).document == first.document
    receiver.restart()
    assert upload.commit(receiver, CONTENT).document == first.document
    assert receiver.visible() == {"f": CONTENT}


def test_the_commit_is_finished_although_its_sender_has_gone(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    with receiver.connect() as wire:
        wire.request("GET", "/v1/hello")  # who half-closes before being identified is nobody
        body = b"".join(upload.digests(CONTENT))
        fields = {**upload.fields, "Upload-Length": SIZE, "Content-Length": len(body)}
        wire.send(head("POST", upload.target + "/commit", fields) + body)
    wait_until(lambda: receiver.visible() == {"f": CONTENT}, "the file is published")
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_extents_that_are_missing_are_listed_and_nothing_is_published(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    upload.put(receiver, EXTENT, CONTENT[EXTENT : 2 * EXTENT], SIZE)
    answer = upload.commit(receiver, CONTENT)
    assert (answer.status, answer.problem) == (409, "extents-differ")
    assert answer.document["extents"] == [0, 2, 3]
    assert receiver.visible() == {}
    assert receiver.metrics.digest_failures.value() == 0
    assert receiver.refusals() == {}


def test_extents_that_differ_are_listed_and_repaired_alone(receiver: RunningReceiver) -> None:
    upload = sent(receiver, changed(CONTENT, 1, 3))
    answer = upload.commit(receiver, CONTENT)
    assert (answer.status, answer.document["extents"]) == (409, [1, 3])
    assert receiver.request("GET", upload.target).document["held"] == [
        [0, EXTENT],
        [2 * EXTENT, 3 * EXTENT],
    ]
    assert receiver.metrics.digest_failures.value() == 2
    for index in (1, 3):
        part = CONTENT[index * EXTENT : (index + 1) * EXTENT]
        assert upload.put(receiver, index * EXTENT, part, SIZE).status == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}
    assert receiver.refusals() == {}


def test_after_three_repairs_in_vain_all_is_given_up(receiver: RunningReceiver) -> None:
    wrong = changed(CONTENT, 2)
    upload = sent(receiver, wrong)
    for _ in range(3):
        answer = upload.commit(receiver, CONTENT)
        assert (answer.status, answer.document["extents"]) == (409, [2])
        upload.put(receiver, 2 * EXTENT, wrong[2 * EXTENT : 3 * EXTENT], SIZE)
    answer = upload.commit(receiver, CONTENT)
    assert (answer.status, answer.problem) == (422, "verification-failed")
    assert (receiver.visible(), receiver.staged()) == ({}, [])
    assert upload.commit(receiver, CONTENT).status == 404
    assert receiver.uploads_ended("tdx", "failed") == 1


def test_a_repair_is_not_forgotten_over_a_restart(receiver: RunningReceiver) -> None:
    upload = sent(receiver, changed(CONTENT, 1))
    assert upload.commit(receiver, CONTENT).document["extents"] == [1]
    receiver.restart()
    assert upload.commit(receiver, CONTENT).document["extents"] == [1]
    upload.put(receiver, EXTENT, CONTENT[EXTENT : 2 * EXTENT], SIZE)
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_wrong_number_of_digests_is_refused(receiver: RunningReceiver, count: int) -> None:
    upload = sent(receiver)
    digests = (upload.digests(CONTENT) * 2)[:count]
    answer = upload.commit(receiver, CONTENT, digests=digests)
    assert (answer.status, answer.problem) == (400, "protocol")
    assert receiver.visible() == {}
    assert upload.commit(receiver, CONTENT).status == 200


def test_a_commit_of_more_digests_than_the_upload_can_have_is_refused_before_they_come(
    receiver: RunningReceiver,
) -> None:
    upload = sent(receiver)
    with receiver.connect() as wire:
        fields = {**upload.fields, "Upload-Length": SIZE, "Content-Length": 16 << 20}
        wire.send(head("POST", upload.target + "/commit", fields))
        answer = wire.answer()
        assert (answer.status, answer.problem) == (413, "too-large")
    assert upload.commit(receiver, CONTENT).status == 200


def test_a_commit_of_no_upload_is_refused_before_its_digests_come(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        fields = {"Tdx-Epoch": 1, "Upload-Length": SIZE, "Content-Length": 16 << 20}
        wire.send(head("POST", f"/uploads/{'0' * 32}/commit", fields))
        assert wire.answer().status == 404


def test_an_upload_of_unknown_length_takes_as_many_digests_as_its_length_needs(
    receiver: RunningReceiver,
) -> None:
    upload = open_upload(receiver, "f", None)
    content = pattern(2 * upload.extent_size + 5)
    assert upload.put(receiver, 0, content, None).status == 200
    assert upload.commit(receiver, content).status == 200
    assert receiver.visible() == {"f": content}


def test_a_digest_cut_short_is_refused(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    assert upload.commit(receiver, CONTENT, digests=[bytes(15)]).status == 400


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, "", "-1", "9" * 30])
def test_another_length_is_refused(receiver: RunningReceiver, length: object) -> None:
    upload = sent(receiver)
    answer = upload.commit(receiver, CONTENT, fields={"Upload-Length": length})
    assert answer.status == 400
    assert upload.commit(receiver, CONTENT).status == 200


def test_a_commit_without_a_length_is_refused(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    body = b"".join(upload.digests(CONTENT))
    assert receiver.request("POST", upload.target + "/commit", body, upload.fields).status == 400


def test_an_empty_upload_commits(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", 0)
    assert upload.commit(receiver, b"").status == 200
    assert receiver.visible() == {"f": b""}


def test_a_commit_ends_bodies_that_are_on_their_way(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    with receiver.connect() as late:
        late.send(upload.range_head(0, EXTENT, SIZE) + bytes(100))
        receiver.has_bodies(1)
        assert upload.commit(receiver, CONTENT).status == 200
        receiver.has_bodies(0)
    assert receiver.visible() == {"f": CONTENT}


def test_commits_at_the_same_time_publish_once(receiver: RunningReceiver) -> None:
    upload = sent(receiver)
    answers: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(upload.commit(receiver, CONTENT).document))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert receiver.visible() == {"f": CONTENT}


class TestIdentical:
    """``Tdx-Check: ?1`` asks whether the file of this name is already that."""

    @pytest.mark.parametrize("conflict", ["rename", "overwrite", "error"])
    def test_the_same_file_is_identical_whatever_the_conflict_mode(
        self, receiver: RunningReceiver, conflict: str
    ) -> None:
        receiver.request("PUT", "/files/f", CONTENT)
        upload = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": conflict})
        assert upload.created.document["existing"] is True
        answer = upload.commit(receiver, CONTENT, fields={"Tdx-Check": "?1"})
        assert (answer.status, answer.document["outcome"]) == (200, "identical")
        assert answer.document["verified"] is True
        assert upload.commit(receiver, CONTENT).document == answer.document
        assert (receiver.visible(), receiver.staged()) == ({"f": CONTENT}, [])
        assert receiver.uploads_ended("tdx", "identical") == 1

    @pytest.mark.parametrize(("conflict", "path"), [("rename", "f (1)"), ("overwrite", "f")])
    def test_another_file_is_asked_for_and_published_as_the_mode_says(
        self, receiver: RunningReceiver, conflict: str, path: str
    ) -> None:
        receiver.request("PUT", "/files/f", bytes(SIZE))
        upload = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": conflict})
        answer = upload.commit(receiver, CONTENT, fields={"Tdx-Check": "?1"})
        assert (answer.status, answer.document["extents"]) == (409, [0, 1, 2, 3])
        upload.put(receiver, 0, CONTENT, SIZE)
        assert upload.commit(receiver, CONTENT).document["path"] == path
        assert receiver.visible()[path] == CONTENT

    def test_another_file_is_an_error_where_the_mode_says_so(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/f", bytes(SIZE))
        upload = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": "error"})
        assert upload.created.status == 201
        answer = upload.commit(receiver, CONTENT, fields={"Tdx-Check": "?1"})
        assert (answer.status, answer.problem) == (409, "exists")
        assert (receiver.visible(), receiver.staged()) == ({"f": bytes(SIZE)}, [])

    def test_another_size_is_an_error_at_once(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/f", b"small")
        answer = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": "error"}).created
        assert (answer.status, answer.problem) == (409, "exists")
        assert receiver.staged() == []

    def test_skip_answers_at_once(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/f", b"small")
        answer = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": "skip"}).created
        assert (answer.status, answer.document["outcome"]) == (200, "skipped")
        assert receiver.staged() == []
        assert receiver.uploads_ended("tdx", "skipped") == 1

    @pytest.mark.parametrize(
        ("conflict", "status", "word"),
        [("skip", 200, "skipped"), ("error", 409, "exists"), ("rename", 200, "published")],
    )
    def test_a_name_taken_meanwhile_is_treated_as_the_mode_says(
        self, receiver: RunningReceiver, conflict: str, status: int, word: str
    ) -> None:
        upload = open_upload(receiver, "f", SIZE, {"Tdx-Conflict": conflict})
        upload.put(receiver, 0, CONTENT, SIZE)
        receiver.request("PUT", "/files/f", b"faster")
        answer = upload.commit(receiver, CONTENT)
        assert answer.status == status
        assert word in (answer.document.get("outcome"), str(answer.document.get("type")).rpartition(":")[2])
        assert receiver.visible()["f"] == b"faster"
        assert receiver.staged() == []


class TestFailingDisk:
    def test_a_failed_sync_loses_only_what_was_not_durable_and_is_repaired(self, tmp_path: Path) -> None:
        system = FaultySystem()
        with running(tmp_path, make_store=local_store(system)) as receiver:
            upload = sent(receiver)
            failures = iter([True])

            def fail_once(name: str, arguments: tuple[object, ...]) -> None:
                if name == "fsync" and next(failures, False):
                    raise OSError(5, "Input/output error")

            system.before = fail_once
            answer = upload.commit(receiver, CONTENT)
            assert (answer.status, answer.problem) == (500, "storage")
            assert receiver.visible() == {}
            answer = upload.commit(receiver, CONTENT)
            assert (answer.status, answer.problem) == (409, "extents-differ")
            assert upload.put(receiver, 0, CONTENT, SIZE).status == 200
            assert upload.commit(receiver, CONTENT).status == 200
            assert receiver.visible() == {"f": CONTENT}
