"""Resumable Uploads for HTTP (draft-ietf-httpbis-resumable-upload) as a client of any version sees it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.faulty import FaultySystem
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, in_background, local_store, running
from support.vouching import Vouching
from support.wire import Answer, Wire, chunked, head
from tdx.identity.port import Link
from tdx.model import Identity
from tdx.policy.admission import Limits

EXTENT = 4 << 20
SIZE = EXTENT + 1000
CONTENT = pattern(SIZE)
TYPE = "application/partial-upload"
VERSION = "Upload-Draft-Interop-Version"
LIMIT = re.compile(r"max-size=\d+, max-age=86400")


def sha256(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def create(wire: Wire, fields: dict[str, object], sent: bytes, method: str = "POST") -> Answer:
    """Begin an upload and send some of its body; the first message that comes."""
    wire.send(head(method, "/files/f", fields) + sent)
    return wire.message()


def append(receiver: RunningReceiver, target: str, offset: int, body: bytes, **fields: object) -> Answer:
    """An append that does not end the upload, unless ``Upload_Complete`` says so."""
    given: dict[str, object] = {"Content-Type": TYPE, "Upload-Offset": offset, "Upload-Complete": "?0"}
    given |= {name.replace("_", "-"): value for name, value in fields.items()}
    return receiver.request(
        "PATCH", target, body, {name: value for name, value in given.items() if value is not None}
    )


def where(receiver: RunningReceiver, target: str) -> int:
    return int(receiver.request("HEAD", target).headers["upload-offset"])


class TestAnnouncing:
    @pytest.mark.parametrize("version", [4, 5, 6, 7, 8, 9])
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_an_upload_is_announced_before_its_body_is_read(
        self, receiver: RunningReceiver, version: int, method: str
    ) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: version, "Upload-Complete": "?1", "Content-Length": SIZE}
            early = create(wire, fields, b"", method)
            assert early.status == 104
            assert early.headers[VERSION.lower()] == str(version)
            assert re.fullmatch(r"/uploads/[0-9a-f]{32}", early.headers["location"])
            assert LIMIT.fullmatch(early.headers["upload-limit"])
            answer = wire.send(CONTENT).answer()
        assert (answer.status, answer.headers["location"]) == (201, early.headers["location"])
        assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == (str(SIZE), "?1")
        assert VERSION.lower() not in answer.headers
        assert receiver.visible() == {"f": CONTENT}

    def test_100_continue_comes_after_it_all_the_same(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": 4, "Expect": "100-continue"}
            assert create(wire, fields, b"").status == 104
            assert wire.message().status == 100
            assert wire.send(b"data").message().status == 201

    @pytest.mark.parametrize("version", [None, 2, 10, "x"])
    def test_who_states_no_version_that_is_spoken_is_told_nothing_early(
        self, receiver: RunningReceiver, version: object
    ) -> None:
        stated = {} if version is None else {VERSION: version}
        with receiver.connect() as wire:
            first = create(wire, {**stated, "Upload-Complete": "?1", "Content-Length": 4}, b"data")
        assert (first.status, first.headers["upload-complete"]) == (201, "?1")

    def test_nor_is_who_speaks_http_1_0(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            asked = head("PUT", "/files/f", {VERSION: 8, "Upload-Complete": "?1", "Content-Length": 4})
            expecting = asked.replace(b"HTTP/1.1", b"HTTP/1.0").replace(
                b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"
            )
            wire.send(expecting)
            receiver.has_bodies(1)
            assert wire.is_silent()
            assert wire.send(b"data").message().status == 201

    def test_nor_is_a_put_that_says_nothing_of_completeness(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            first = create(wire, {VERSION: 8, "Content-Length": 4}, b"data", "PUT")
        assert first.status == 201

    def test_a_refusal_comes_instead(self, tmp_path: Path) -> None:
        with running(tmp_path, limits=Limits(max_file=100)) as receiver, receiver.connect() as wire:
            answer = create(wire, {VERSION: 8, "Upload-Complete": "?1", "Content-Length": 101}, b"")
            assert (answer.status, answer.headers["upload-limit"]) == (413, "max-size=100, max-age=86400")
            assert receiver.staged() == []

    def test_an_upload_in_parts_is_announced_too(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?0", "Upload-Length": 9, "Content-Length": 4}
            early = create(wire, fields, b"data")
            answer = wire.answer()
        assert (early.status, answer.status) == (104, 201)
        assert early.headers["location"] == answer.headers["location"]
        assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == ("4", "?0")
        assert LIMIT.fullmatch(answer.headers["upload-limit"])


class TestResuming:
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_a_whole_that_broke_off_goes_on_where_it_was_announced(
        self, receiver: RunningReceiver, method: str
    ) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": SIZE}
            target = create(wire, fields, CONTENT[: EXTENT + 10], method).headers["location"]
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        assert receiver.visible() == {}
        told = receiver.request("HEAD", target)
        assert (told.status, told.headers["upload-offset"]) == (204, str(EXTENT + 10))
        assert (told.headers["upload-complete"], told.headers["upload-length"]) == ("?0", str(SIZE))
        assert LIMIT.fullmatch(told.headers["upload-limit"])
        assert told.headers["cache-control"] == "no-store"
        answer = append(receiver, target, EXTENT + 10, CONTENT[EXTENT + 10 :], Upload_Complete="?1")
        assert (answer.status, answer.headers["upload-complete"]) == (201, "?1")
        assert receiver.visible() == {"f": CONTENT}

    def test_also_after_the_receiver_was_started_again(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": SIZE}
            target = create(wire, fields, CONTENT[:5000]).headers["location"]
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        receiver.restart()
        at = where(receiver, target)
        assert at == 5000
        assert append(receiver, target, at, CONTENT[at:], Upload_Complete="?1").status == 201
        assert receiver.visible() == {"f": CONTENT}

    def test_also_a_chunked_one_whose_length_was_told(self, receiver: RunningReceiver) -> None:
        coding = {"Transfer-Encoding": "chunked"}
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Upload-Length": SIZE, **coding}
            target = create(wire, fields, chunked([CONTENT[:5000]])[: -len(b"0\r\n\r\n")]).headers["location"]
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        assert receiver.request("HEAD", target).headers["upload-length"] == str(SIZE)
        answer = append(
            receiver,
            target,
            5000,
            chunked([CONTENT[5000:]]),
            Upload_Complete="?1",
            Transfer_Encoding="chunked",
        )
        assert answer.status == 201
        assert receiver.visible() == {"f": CONTENT}

    def test_asking_ends_a_hung_creation_and_keeps_what_it_brought(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as hung:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": SIZE}
            target = create(hung, fields, CONTENT[:EXTENT]).headers["location"]
            receiver.has_received(EXTENT)
            assert where(receiver, target) == EXTENT
            assert hung.is_closed()
        assert append(receiver, target, EXTENT, CONTENT[EXTENT:], Upload_Complete="?1").status == 201

    def test_deleting_ends_a_hung_creation_and_leaves_nothing(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as hung:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": SIZE}
            target = create(hung, fields, CONTENT[:EXTENT]).headers["location"]
            receiver.has_bodies(1)
            assert receiver.request("DELETE", target).status == 204
            receiver.has_bodies(0)
        assert receiver.request("HEAD", target).status == 404
        assert (receiver.visible(), receiver.staged()) == ({}, [])

    def test_without_an_announcement_a_whole_put_is_continued_by_its_name_as_ever(
        self, receiver: RunningReceiver
    ) -> None:
        with receiver.connect() as wire:
            wire.send(
                head("PUT", "/files/f", {"Upload-Complete": "?1", "Content-Length": SIZE}) + CONTENT[:99]
            )
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        assert receiver.request("HEAD", "/files/f").headers["upload-offset"] == "99"


def test_an_append_that_another_has_overtaken_is_told_the_offset_and_the_upload_lives_on(
    receiver: RunningReceiver,
) -> None:
    target = receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0"}).headers["location"]
    (session,) = receiver.running.sessions._open.values()
    noting, go_on, set_length = threading.Event(), threading.Event(), session.upload.set_length

    def slow(length: int) -> None:
        noting.set()
        assert go_on.wait(30)
        set_length(length)

    session.upload.set_length = slow  # type: ignore[method-assign]
    with in_background(lambda: append(receiver, target, 0, b"data", Upload_Length=8)) as overtaken:
        try:
            assert noting.wait(30)
            assert append(receiver, target, 0, b"data").status == 204
        finally:
            go_on.set()
        answer = overtaken.result()
    assert (answer.status, answer.headers["upload-offset"]) == (409, "4")
    assert where(receiver, target) == 4


def test_an_append_that_is_taken_up_after_the_offset_was_told_moves_it_and_the_next_one_is_told(
    tmp_path: Path,
) -> None:
    late, go_on = "127.0.0.2", threading.Event()

    class Slow(Vouching):
        def whois(self, link: Link) -> Identity | None:
            if link.remote.host == late:
                assert go_on.wait(30)
            return super().whois(link)

    with running(tmp_path, providers=[Slow(f"local:{os.getuid()}")]) as receiver:
        target = receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0"}).headers["location"]
        with receiver.connect(late) as wire:
            fields = {"Content-Type": TYPE, "Upload-Offset": 0, "Upload-Complete": "?0"}
            wire.send(head("PATCH", target, {**fields, "Content-Length": SIZE}) + CONTENT[:5000])
        try:
            assert where(receiver, target) == 0
        finally:
            go_on.set()
        receiver.is_quiet()
        answer = append(receiver, target, 0, CONTENT, Upload_Complete="?1")
        assert (answer.status, answer.headers["upload-offset"]) == (409, "5000")
        assert append(receiver, target, 5000, CONTENT[5000:], Upload_Complete="?1").status == 201
        assert receiver.visible() == {"f": CONTENT}


class TestWhilePublishing:
    @pytest.fixture
    def system(self) -> FaultySystem:
        return FaultySystem()

    @pytest.fixture
    def receiver(self, tmp_path: Path, system: FaultySystem) -> Iterator[RunningReceiver]:
        with running(tmp_path, make_store=local_store(system)) as started:
            yield started

    @pytest.mark.parametrize("method", ["HEAD", "PATCH"])
    def test_who_comes_back_is_answered_once_it_is_published(
        self, receiver: RunningReceiver, system: FaultySystem, method: str
    ) -> None:
        target = receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0"}).headers["location"]
        publishing, go_on = threading.Event(), threading.Event()

        def before(name: str, arguments: tuple[object, ...]) -> None:
            if name == "rename_noreplace":
                publishing.set()
                assert go_on.wait(30)

        system.before = before
        fields = {"Content-Type": TYPE, "Upload-Offset": 4, "Upload-Complete": "?1"}
        with in_background(lambda: append(receiver, target, 0, b"data", Upload_Complete="?1")) as published:
            assert publishing.wait(30)
            with in_background(lambda: receiver.request(method, target, b"", fields)) as asked:
                (session,) = receiver.running.sessions._open.values()
                try:
                    wait_until(lambda: session._users == 3, "both are at it, the first one twice")
                finally:
                    go_on.set()
                assert published.result().status == 201
                answer = asked.result()
        assert answer.status == (204 if method == "HEAD" else 400)
        assert answer.headers["upload-complete"] == "?1"

    def test_parts_that_a_slow_disk_makes_durable_keep_no_other_request_waiting(
        self, receiver: RunningReceiver, system: FaultySystem
    ) -> None:
        given = {"Upload-Complete": "?0"}
        targets = [receiver.request("POST", f"/files/{n}", b"", given).headers["location"] for n in range(12)]
        syncing, go_on = threading.Semaphore(0), threading.Event()

        def before(name: str, arguments: tuple[object, ...]) -> None:
            if name == "fdatasync":
                syncing.release()
                assert go_on.wait(30)

        system.before = before
        with ThreadPoolExecutor(len(targets)) as pool:
            appended = [pool.submit(append, receiver, target, 0, b"data") for target in targets]
            try:
                assert all(syncing.acquire(timeout=30) for _ in range(6))
                opened = list(receiver.running.sessions._open.values())
                wait_until(lambda: all(each.offset == 4 for each in opened), "every part has come")
                assert receiver.request("GET", "/v1/hello").status == 200
            finally:
                go_on.set()
            assert {each.result().status for each in appended} == {204}


class TestVersions:
    """What older texts spell or mean otherwise."""

    def test_the_oldest_says_what_is_missing(self, receiver: RunningReceiver) -> None:
        fields = {VERSION: 3, "Upload-Incomplete": "?1"}
        with receiver.connect() as wire:
            early = create(wire, {**fields, "Content-Length": 4}, b"data")
            created = wire.answer()
        assert (early.status, created.status, created.headers["upload-incomplete"]) == (104, 201, "?1")
        assert "upload-complete" not in created.headers
        target = created.headers["location"]
        asked = receiver.request("HEAD", target, headers={VERSION: 3})
        assert (asked.headers["upload-offset"], asked.headers["upload-incomplete"]) == ("4", "?1")
        more = receiver.request("PATCH", target, b"more", {**fields, "Upload-Offset": 4})
        assert (more.status, more.headers["upload-offset"], more.headers["upload-incomplete"]) == (
            201,
            "8",
            "?1",
        )
        last = receiver.request("PATCH", target, b"last", {VERSION: 3, "Upload-Offset": 8})
        assert (last.status, last.headers["upload-offset"]) == (201, "12")
        assert last.headers["upload-incomplete"] == "?0"
        assert receiver.visible() == {"f": b"datamorelast"}
        asked = receiver.request("HEAD", target, headers={VERSION: 3})
        assert (asked.headers["upload-offset"], asked.headers["upload-incomplete"]) == ("12", "?0")

    def test_the_oldest_means_the_whole_where_it_says_nothing(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            early = create(wire, {VERSION: 3, "Content-Length": SIZE}, CONTENT[:500])
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        target = early.headers["location"]
        assert receiver.visible() == {}
        assert (
            receiver.request("PATCH", target, CONTENT[500:], {VERSION: 3, "Upload-Offset": 500}).status == 201
        )
        assert receiver.visible() == {"f": CONTENT}

    @pytest.mark.parametrize(
        ("version", "status"), [(4, 201), (5, 201), (6, 400), (7, 400), (8, 400), (9, 400)]
    )
    def test_an_append_needs_no_media_type_before_version_6(
        self, receiver: RunningReceiver, version: int, status: int
    ) -> None:
        target = receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0"}).headers["location"]
        stated = {VERSION: version, "Content_Type": None}
        assert append(receiver, target, 0, b"data", **stated).status == status
        assert where(receiver, target) == (4 if status == 201 else 0)

    @pytest.mark.parametrize("version", [4, 5, 6])
    def test_up_to_version_6_the_length_ends_an_upload(self, receiver: RunningReceiver, version: int) -> None:
        fields = {VERSION: version, "Upload-Complete": "?0", "Upload-Length": 4}
        target = receiver.request("POST", "/files/f", b"da", fields).headers["location"]
        assert receiver.visible() == {}
        answer = append(receiver, target, 2, b"ta", **{VERSION: version})
        assert (answer.status, answer.headers["upload-complete"]) == (201, "?1")
        assert receiver.visible() == {"f": b"data"}
        said = append(receiver, target, 4, b"", Upload_Complete="?1", **{VERSION: version})
        assert (said.status, said.headers["upload-offset"], said.headers["upload-complete"]) == (
            201,
            "4",
            "?1",
        )

    def test_up_to_version_6_an_empty_file_is_there_once_it_is_created(
        self, receiver: RunningReceiver
    ) -> None:
        fields = {VERSION: 6, "Upload-Complete": "?0", "Upload-Length": 0}
        answer = receiver.request("POST", "/files/f", b"", fields)
        assert (answer.status, answer.headers["upload-offset"], answer.headers["upload-complete"]) == (
            201,
            "0",
            "?1",
        )
        assert receiver.visible() == {"f": b""}

    @pytest.mark.parametrize("version", [None, 7, 8, 9])
    def test_later_it_does_not(self, receiver: RunningReceiver, version: int | None) -> None:
        stated: dict[str, object] = {} if version is None else {VERSION: version}
        fields = {**stated, "Upload-Complete": "?0", "Upload-Length": 4}
        answer = receiver.request("POST", "/files/f", b"data", fields)
        assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == ("4", "?0")
        assert receiver.visible() == {}
        assert (
            append(receiver, answer.headers["location"], 4, b"", Upload_Complete="?1", **stated).status == 201
        )
        assert receiver.visible() == {"f": b"data"}


class TestAppending:
    @pytest.fixture
    def target(self, receiver: RunningReceiver) -> str:
        """An upload whose length nobody has told."""
        return receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0"}).headers["location"]

    @pytest.fixture
    def done(self, receiver: RunningReceiver, target: str) -> str:
        """One that is complete."""
        assert append(receiver, target, 0, b"data", Upload_Complete="?1").status == 201
        return target

    def test_a_wrong_offset_is_answered_with_both(self, receiver: RunningReceiver, target: str) -> None:
        append(receiver, target, 0, b"data")
        answer = append(receiver, target, 9, b"more")
        assert (answer.status, answer.problem) == (409, "mismatching-upload-offset")
        assert (answer.document["expected-offset"], answer.document["provided-offset"]) == (4, 9)
        assert (answer.headers["upload-offset"], answer.headers["upload-complete"]) == ("4", "?0")

    def test_its_length_may_be_told_later(self, receiver: RunningReceiver, target: str) -> None:
        assert "upload-length" not in receiver.request("HEAD", target).headers
        append(receiver, target, 0, b"da", Upload_Length=4)
        assert receiver.request("HEAD", target).headers["upload-length"] == "4"
        assert append(receiver, target, 2, b"t", Upload_Length=5).problem == "inconsistent-upload-length"
        assert append(receiver, target, 2, b"ta", Upload_Complete="?1", Upload_Length=4).status == 201
        assert receiver.visible() == {"f": b"data"}

    def test_a_last_append_tells_it_by_its_own_length(self, receiver: RunningReceiver, target: str) -> None:
        with receiver.connect() as wire:
            fields = {"Content-Type": TYPE, "Upload-Offset": 0, "Upload-Complete": "?1", "Content-Length": 9}
            wire.send(head("PATCH", target, fields) + b"abc")
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        told = receiver.request("HEAD", target)
        assert (told.headers["upload-offset"], told.headers["upload-length"]) == ("3", "9")
        assert append(receiver, target, 3, b"defghi", Upload_Complete="?1").status == 201

    @pytest.mark.parametrize("length", [3, 5])
    def test_two_lengths_in_one_append_are_refused(
        self, receiver: RunningReceiver, target: str, length: int
    ) -> None:
        answer = append(receiver, target, 0, b"data", Upload_Complete="?1", Upload_Length=length)
        assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
        assert where(receiver, target) == 0

    def test_a_length_that_is_behind_already_is_refused(self, receiver: RunningReceiver, target: str) -> None:
        append(receiver, target, 0, b"data")
        assert append(receiver, target, 4, b"", Upload_Length=3).problem == "inconsistent-upload-length"
        assert where(receiver, target) == 4

    @pytest.mark.parametrize("coding", ["identity", "chunked"])
    def test_more_than_the_length_ends_the_upload(
        self, receiver: RunningReceiver, target: str, coding: str
    ) -> None:
        append(receiver, target, 0, b"da", Upload_Length=4)
        body = b"tax" if coding == "identity" else chunked([b"ta", b"x"])
        framing = {} if coding == "identity" else {"Transfer_Encoding": "chunked"}
        answer = append(receiver, target, 2, body, **framing)
        assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
        assert receiver.request("HEAD", target).status == 404
        assert (receiver.visible(), receiver.staged()) == ({}, [])

    def test_a_complete_upload_is_still_asked_about(self, receiver: RunningReceiver, done: str) -> None:
        told = receiver.request("HEAD", done)
        assert (told.status, told.headers["upload-offset"]) == (204, "4")
        assert (told.headers["upload-complete"], told.headers["upload-length"]) == ("?1", "4")
        assert "max-age" not in told.headers["upload-limit"]

    @pytest.mark.parametrize(
        ("offset", "body", "status", "problem"),
        [
            (0, b"data", 409, "mismatching-upload-offset"),
            (4, b"more", 400, "inconsistent-upload-length"),
            (4, b"", 400, "completed-upload"),
        ],
    )
    @pytest.mark.parametrize("last", ["?0", "?1"])
    def test_a_complete_upload_takes_nothing_more(
        self,
        receiver: RunningReceiver,
        done: str,
        offset: int,
        body: bytes,
        status: int,
        problem: str,
        last: str,
    ) -> None:
        answer = append(receiver, done, offset, body, Upload_Complete=last)
        assert (answer.status, answer.problem, answer.headers["upload-complete"]) == (status, problem, "?1")
        assert receiver.visible() == {"f": b"data"}

    def test_a_completion_that_fails_says_that_the_upload_is_complete(
        self, receiver: RunningReceiver
    ) -> None:
        fields = {"Upload-Complete": "?0", "If-None-Match": "*"}
        target = receiver.request("POST", "/files/f", b"", fields).headers["location"]
        receiver.request("PUT", "/files/f", b"other")
        answer = append(receiver, target, 0, b"data", Upload_Complete="?1")
        assert (answer.status, answer.headers["upload-complete"]) == (409, "?1")
        assert receiver.visible() == {"f": b"other"}


class TestDigests:
    @pytest.fixture
    def target(self, receiver: RunningReceiver) -> str:
        return receiver.request("POST", "/files/f", CONTENT[:10], {"Upload-Complete": "?0"}).headers[
            "location"
        ]

    @pytest.mark.parametrize("end", [11, 5000, EXTENT, EXTENT + 10, SIZE])
    def test_a_part_that_lacks_its_digest_is_not_kept(
        self, receiver: RunningReceiver, target: str, end: int
    ) -> None:
        wrong = append(receiver, target, 10, CONTENT[10:end], Content_Digest=sha256(b"other"))
        assert (wrong.status, wrong.problem) == (400, "digest-mismatched-values")
        provided = {"algorithm": "sha-256", "provided-digest": sha256(b"other").partition("=")[2]}
        assert wrong.document["mismatched-digests"] == [provided]
        assert sha256(CONTENT[10:end]).partition("=")[2] not in wrong.body.decode()
        assert where(receiver, target) == 10
        right = append(receiver, target, 10, CONTENT[10:end], Content_Digest=sha256(CONTENT[10:end]))
        assert (right.status, right.headers["upload-offset"]) == (204, str(end))
        assert append(receiver, target, end, CONTENT[end:], Upload_Complete="?1").status == 201
        assert receiver.visible() == {"f": CONTENT}

    def test_a_part_that_breaks_off_is_kept_whatever_its_digest(
        self, receiver: RunningReceiver, target: str
    ) -> None:
        with receiver.connect() as wire:
            fields = {"Content-Type": TYPE, "Upload-Offset": 10, "Upload-Complete": "?0"}
            digest = {"Content-Digest": sha256(CONTENT[10:]), "Content-Length": SIZE - 10}
            wire.send(head("PATCH", target, {**fields, **digest}) + CONTENT[10:EXTENT])
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        assert where(receiver, target) == EXTENT

    def test_an_empty_part_has_a_digest_too(self, receiver: RunningReceiver, target: str) -> None:
        assert (
            append(receiver, target, 10, b"", Content_Digest=sha256(b"x")).problem
            == "digest-mismatched-values"
        )
        assert append(receiver, target, 10, b"", Content_Digest=sha256(b"")).status == 204

    def test_a_first_part_that_lacks_its_digest_leaves_no_upload(self, receiver: RunningReceiver) -> None:
        fields = {"Upload-Complete": "?0", "Content-Digest": sha256(b"other")}
        answer = receiver.request("POST", "/files/f", b"data", fields)
        assert (answer.status, answer.problem) == (400, "digest-mismatched-values")
        assert receiver.staged() == []

    def test_algorithms_that_nobody_knows_are_passed_over(
        self, receiver: RunningReceiver, target: str
    ) -> None:
        assert (
            append(receiver, target, 10, b"data", Content_Digest="md5=:AAAA:, unixsum=:AAAA:").status == 204
        )

    @pytest.mark.parametrize("good", [True, False])
    def test_a_digest_of_the_whole_is_remembered_from_the_creation(
        self, receiver: RunningReceiver, good: bool
    ) -> None:
        fields = {"Upload-Complete": "?0", "Repr-Digest": sha256(CONTENT if good else b"other")}
        target = receiver.request("POST", "/files/f", CONTENT[:99], fields).headers["location"]
        receiver.restart()
        answer = append(receiver, target, 99, CONTENT[99:], Upload_Complete="?1")
        if good:
            assert (answer.status, answer.document["verified"]) == (201, True)
        else:
            assert (answer.status, answer.problem) == (400, "digest-mismatched-values")
            assert answer.headers["upload-complete"] == "?1"
        assert receiver.visible() == ({"f": CONTENT} if good else {})
        assert receiver.staged() == []

    @pytest.mark.parametrize("field", ["Content-Digest", "Repr-Digest"])
    @pytest.mark.parametrize("good", [True, False])
    def test_so_is_that_of_a_whole_that_broke_off(
        self, receiver: RunningReceiver, field: str, good: bool
    ) -> None:
        with receiver.connect() as wire:
            fields = {VERSION: 8, "Upload-Complete": "?1", "Content-Length": SIZE}
            digest = {field: sha256(CONTENT if good else b"other")}
            target = create(wire, {**fields, **digest}, CONTENT[:99]).headers["location"]
            receiver.has_bodies(1)
        receiver.has_bodies(0)
        answer = append(receiver, target, 99, CONTENT[99:], Upload_Complete="?1")
        assert answer.status == (201 if good else 400)
        assert receiver.visible() == ({"f": CONTENT} if good else {})


class TestOptions:
    @pytest.mark.parametrize(
        ("target", "allow"),
        [
            ("*", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
            ("/files/", "HEAD, OPTIONS, POST, PUT"),
            ("/files/a/b", "HEAD, OPTIONS, POST, PUT"),
            ("/uploads/" + "0" * 32, "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ],
    )
    def test_what_may_be_uploaded_and_how_is_told(self, tmp_path: Path, target: str, allow: str) -> None:
        with running(tmp_path, limits=Limits(max_file=12345)) as receiver:
            answer = receiver.request("OPTIONS", target)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["allow"] == allow
        assert answer.headers["accept-patch"] == TYPE
        assert answer.headers["upload-limit"] == "max-size=12345, max-age=86400"
        assert not [name for name in answer.headers if name.startswith("access-control")]

    @pytest.mark.parametrize(
        ("target", "allow"), [("/v1/hello", "GET, OPTIONS"), ("/files", "OPTIONS, POST")]
    )
    def test_where_nothing_is_uploaded_in_parts_only_the_methods_are(
        self, receiver: RunningReceiver, target: str, allow: str
    ) -> None:
        answer = receiver.request("OPTIONS", target)
        assert (answer.status, answer.headers["allow"]) == (204, allow)
        assert "upload-limit" not in answer.headers

    def test_names_that_no_receiver_stores_have_no_options(self, receiver: RunningReceiver) -> None:
        assert receiver.request("OPTIONS", "/files/..").status == 400
        assert receiver.request("OPTIONS", "/elsewhere").status == 404


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    with running(tmp_path_factory.mktemp("shared")) as receiver:
        yield receiver


CUTS = st.lists(
    st.tuples(
        st.integers(0, SIZE),  # how far the next part is to go
        st.floats(0, 1),  # how much of it arrives before its connection breaks; all of it for 1
        st.booleans(),  # whether it comes with its digest
        st.booleans(),  # whether it is in chunked coding
    ),
    max_size=6,
)


class TestAnySplit:
    @settings(max_examples=25, deadline=None)
    @given(
        cuts=CUTS,
        version=st.sampled_from([None, 5, 6, 8]),
        told=st.booleans(),
        at_once=st.floats(0, 1),
    )
    def test_of_a_file_with_any_interruptions_gives_the_file(
        self,
        shared: RunningReceiver,
        cuts: list[tuple[int, float, bool, bool]],
        version: int | None,
        told: bool,
        at_once: float,
    ) -> None:
        stated: dict[str, object] = {} if version is None else {VERSION: version}
        fields = {**stated, "Upload-Complete": "?0", **({"Upload-Length": SIZE} if told else {})}
        if version is not None and at_once < 1:
            with shared.connect() as wire:
                whole = {**stated, "Upload-Complete": "?1", "Content-Length": SIZE}
                target = create(wire, whole, CONTENT[: int(at_once * SIZE)]).headers["location"]
        else:
            target = shared.request("POST", "/files/f", b"", fields).headers["location"]
        offset = where(shared, target)
        for end, arriving, digested, coded in cuts:
            if end < offset or end == SIZE:
                continue
            part = CONTENT[offset:end]
            body = chunked([part]) if coded else part
            begun = body[: int(arriving * len(body))]
            given: dict[str, object] = {
                **stated,
                "Content-Type": TYPE,
                "Upload-Offset": offset,
                "Upload-Complete": "?0",
                **({"Content-Digest": sha256(part)} if digested else {}),
                **({"Transfer-Encoding": "chunked"} if coded else {"Content-Length": len(body)}),
            }
            with shared.connect() as wire:
                wire.send(head("PATCH", target, given) + begun)
                if begun == body:
                    answer = wire.answer()
                    assert answer.status in {201, 204}
                    assert answer.headers["upload-offset"] == str(end)
                else:
                    shared.has_bodies(1)  # or it may be taken up after the offset was told
            now = where(shared, target)
            assert offset <= now <= end
            offset = now
        answer = append(shared, target, offset, CONTENT[offset:], Upload_Complete="?1", **stated)
        assert (answer.status, answer.headers["upload-offset"]) == (201, str(SIZE))
        path = shared.folder / str(answer.document["path"])
        assert path.read_bytes() == CONTENT
        path.unlink()
