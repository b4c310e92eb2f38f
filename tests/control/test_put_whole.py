"""PUT /files/NAME with a whole file."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from support.datakit import pattern
from support.receiving import RunningReceiver, running
from support.uploading import open_upload
from support.wire import chunked, head
from tdx.integrity import Root, digest_of
from tdx.policy.admission import Limits

EXTENT = 4 << 20


def digest_field(algorithm: str, content: bytes) -> str:
    if algorithm == "xxh3-128":
        digest = digest_of(content)
    else:
        digest = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(digest).decode()}:"


@pytest.mark.parametrize("size", [0, 1, 65536, EXTENT - 1, EXTENT, EXTENT + 1, 3 * EXTENT + 12345])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_file_is_published_with_every_byte(receiver: RunningReceiver, size: int, coding: str) -> None:
    content = pattern(size)
    if coding == "length":
        answer = receiver.request("PUT", "/files/disk.img", content)
    else:
        pieces = [content[at : at + 100_001] for at in range(0, size, 100_001)]
        answer = receiver.request("PUT", "/files/disk.img", chunked(pieces), {"Transfer-Encoding": "chunked"})
    assert answer.status == 201
    extent = EXTENT if coding == "length" else 4 * EXTENT
    digests = [digest_of(content[at : at + extent]) for at in range(0, size, extent)]
    assert answer.document == {
        "outcome": "published",
        "name": "disk.img",
        "path": "disk.img",
        "size": size,
        "root": str(Root.over(digests, size, extent)),
        "verified": False,
    }
    assert receiver.visible() == {"disk.img": content}
    assert receiver.staged() == []
    assert receiver.uploads_ended("http", "published") == 1


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512", "xxh3-128"])
@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
@pytest.mark.parametrize("size", [0, 10, EXTENT + 1])
def test_content_with_the_digest_that_came_with_it_is_verified(
    receiver: RunningReceiver, algorithm: str, name: str, size: int
) -> None:
    content = pattern(size)
    answer = receiver.request("PUT", "/files/f", content, {name: digest_field(algorithm, content)})
    assert answer.status == 201
    assert answer.document["verified"] is True
    assert receiver.visible() == {"f": content}


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512", "xxh3-128"])
@pytest.mark.parametrize("size", [10, EXTENT + 1])
def test_content_without_the_digest_that_came_with_it_is_refused_and_nothing_of_it_kept(
    receiver: RunningReceiver, algorithm: str, size: int
) -> None:
    content = pattern(size)
    claimed = digest_field(algorithm, b"something else")
    answer = receiver.request("PUT", "/files/f", content, {"Content-Digest": claimed})
    assert answer.status == 400
    assert (
        answer.document["type"] == "https://iana.org/assignments/http-problem-types#digest-mismatched-values"
    )
    assert answer.document["mismatched-digests"] == [
        {"algorithm": algorithm, "provided-digest": claimed.partition("=")[2]}
    ]
    computed = digest_field(algorithm, content).partition("=")[2].strip(":")
    assert computed.encode() not in answer.body
    assert (receiver.visible(), receiver.staged()) == ({}, [])
    assert receiver.metrics.digest_failures.value() == 1
    assert receiver.uploads_ended("http", "failed") == 1


def test_both_digests_must_fit_where_there_are_two(receiver: RunningReceiver) -> None:
    fields = {
        "Content-Digest": digest_field("sha-256", b"another"),
        "Repr-Digest": digest_field("sha-256", b"content"),
    }
    assert receiver.request("PUT", "/files/f", b"content", fields).status == 400
    assert receiver.visible() == {}


def test_a_digest_that_nobody_here_knows_verifies_nothing(receiver: RunningReceiver) -> None:
    answer = receiver.request(
        "PUT", "/files/f", b"content", {"Repr-Digest": "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"}
    )
    assert (answer.status, answer.document["verified"]) == (201, False)


@pytest.mark.parametrize("field", ["sha-256=abc", "sha-256=:AAAA:", "sha-256=:!!!!:", ""])
def test_a_malformed_digest_is_refused(receiver: RunningReceiver, field: str) -> None:
    answer = receiver.request("PUT", "/files/f", b"content", {"Content-Digest": field})
    assert (answer.status, answer.problem) == (400, "protocol")
    assert (receiver.visible(), receiver.staged()) == ({}, [])


def test_a_replayed_key_gets_the_first_receipt_and_makes_no_second_file(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        first = wire.request("PUT", "/files/f", b"content", {"Tdx-Upload-Key": "k1"})
        again = wire.request("PUT", "/files/f", b"content", {"Tdx-Upload-Key": "k1"})
        assert (first.status, again.status) == (201, 200)
        assert again.document == first.document
        other = wire.request("PUT", "/files/f", b"another", {"Tdx-Upload-Key": "k2"})
        assert other.document["path"] == "f (1)"
    assert receiver.visible() == {"f": b"content", "f (1)": b"another"}
    receiver.restart()
    assert (
        receiver.request("PUT", "/files/f", b"content", {"Tdx-Upload-Key": "k1"}).document == first.document
    )
    assert len(receiver.visible()) == 2


def test_a_replay_ends_the_first_request_whose_body_has_not(receiver: RunningReceiver) -> None:
    fields = {"Tdx-Upload-Key": "k1", "Content-Length": 7}
    with receiver.connect() as stuck, receiver.connect() as again:
        stuck.send(head("PUT", "/files/f", fields) + b"con")
        receiver.has_bodies(1)
        answer = again.request("PUT", "/files/f", b"content", fields)
        assert (answer.status, answer.document["path"]) == (201, "f")
    assert receiver.visible() == {"f": b"content"}
    assert receiver.staged() == []


@pytest.mark.parametrize("body", [b"new", b"old"])
def test_if_none_match_refuses_a_taken_name_before_the_body(receiver: RunningReceiver, body: bytes) -> None:
    assert receiver.request("PUT", "/files/f", b"old", {"If-None-Match": "*"}).status == 201
    answer = receiver.request("PUT", "/files/f", body, {"If-None-Match": "*"})
    assert (answer.status, answer.problem) == (412, "precondition-failed")
    assert answer.headers["connection"] == "close"
    assert receiver.visible() == {"f": b"old"}


def test_if_none_match_holds_also_for_a_name_taken_while_the_body_came(receiver: RunningReceiver) -> None:
    with receiver.connect() as slow:
        slow.send(head("PUT", "/files/f", {"If-None-Match": "*", "Content-Length": 7}) + b"con")
        receiver.has_bodies(1)
        assert receiver.request("PUT", "/files/f", b"old").status == 201
        answer = slow.send(b"tent").answer()
        assert (answer.status, answer.problem) == (412, "precondition-failed")
    assert receiver.visible() == {"f": b"old"}
    assert receiver.staged() == []


class TestConflict:
    def test_rename_is_the_default_and_numbers_what_comes_later(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/a.tar.gz", b"one")
        assert receiver.request("PUT", "/files/a.tar.gz", b"two").document["path"] == "a (1).tar.gz"
        third = receiver.request("PUT", "/files/a.tar.gz", b"three", {"Tdx-Conflict": "rename"})
        assert third.document["path"] == "a (2).tar.gz"
        assert receiver.visible() == {"a.tar.gz": b"one", "a (1).tar.gz": b"two", "a (2).tar.gz": b"three"}

    def test_overwrite_replaces(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/a", b"one")
        answer = receiver.request("PUT", "/files/a", b"two", {"Tdx-Conflict": "overwrite"})
        assert (answer.status, answer.document["path"]) == (201, "a")
        assert receiver.visible() == {"a": b"two"}

    def test_skip_leaves_what_is_there_and_the_connection_alive(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/a", b"one")
        with receiver.connect() as wire:
            answer = wire.request("PUT", "/files/a", b"two", {"Tdx-Conflict": "skip"})
            assert (answer.status, answer.document["outcome"]) == (200, "skipped")
            assert wire.request("GET", "/v1/hello").status == 200
        assert receiver.visible() == {"a": b"one"}
        assert receiver.uploads_ended("http", "skipped") == 1

    def test_error_refuses(self, receiver: RunningReceiver) -> None:
        receiver.request("PUT", "/files/a", b"one")
        answer = receiver.request("PUT", "/files/a", b"two", {"Tdx-Conflict": "error"})
        assert (answer.status, answer.problem) == (409, "exists")
        assert (receiver.visible(), receiver.staged()) == ({"a": b"one"}, [])

    @pytest.mark.parametrize("conflict", ["rename", "overwrite", "error"])
    def test_the_same_content_is_identical_before_a_byte_is_read(
        self, receiver: RunningReceiver, conflict: str
    ) -> None:
        content = pattern(EXTENT)
        receiver.request("PUT", "/files/a", content)
        fields = {
            "Tdx-Conflict": conflict,
            "Content-Digest": digest_field("xxh3-128", content),
            "Content-Length": EXTENT,
            "Expect": "100-continue",
        }
        with receiver.connect() as wire:
            answer = wire.send(head("PUT", "/files/a", fields)).message()
        assert (answer.status, answer.document["outcome"]) == (200, "identical")
        assert receiver.visible() == {"a": content}
        assert receiver.uploads_ended("http", "identical") == 1

    def test_identical_without_a_digest_is_found_after_the_body_and_not_called_verified(
        self, receiver: RunningReceiver
    ) -> None:
        receiver.request("PUT", "/files/a", b"one")
        answer = receiver.request("PUT", "/files/a", b"one")
        assert (answer.status, answer.document["outcome"]) == (200, "identical")
        assert answer.document["verified"] is False
        assert receiver.visible() == {"a": b"one"}

    def test_other_words_are_refused(self, receiver: RunningReceiver) -> None:
        assert receiver.request("PUT", "/files/a", b"one", {"Tdx-Conflict": "merge"}).status == 400


def test_time_and_mode_travel_but_setuid_does_not(receiver: RunningReceiver) -> None:
    fields = {"Tdx-Mtime": 1_600_000_000_123_456_789, "Tdx-Mode": "4750"}
    assert receiver.request("PUT", "/files/f", b"x", fields).status == 201
    status = (receiver.folder / "f").stat()
    assert status.st_mtime_ns == 1_600_000_000_123_456_789
    assert status.st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("whole", [True, False])
def test_zeros_of_a_sparse_source_take_no_room(receiver: RunningReceiver, whole: bool) -> None:
    content = b"x" * 4096 + bytes(60 * 4096) + b"y"
    if whole:
        assert receiver.request("PUT", "/files/f", content, {"Tdx-Sparse": "?1"}).status == 201
    else:
        upload = open_upload(receiver, "f", len(content), {"Tdx-Sparse": "?1"})
        upload.put(receiver, 0, content, len(content))
        assert upload.commit(receiver, content).status == 200
    assert receiver.visible() == {"f": content}
    assert (receiver.folder / "f").stat().st_blocks * 512 <= 4 * 4096


def test_whether_a_source_is_sparse_is_a_boolean(receiver: RunningReceiver) -> None:
    assert receiver.request("PUT", "/files/f", b"x", {"Tdx-Sparse": "yes"}).status == 400
    assert receiver.request("PUT", "/files/f", b"x", {"Tdx-Sparse": "?0"}).status == 201


def test_a_file_older_than_1970_keeps_its_date(receiver: RunningReceiver) -> None:
    assert receiver.request("PUT", "/files/f", b"x", {"Tdx-Mtime": -86_400_000_000_000}).status == 201
    assert (receiver.folder / "f").stat().st_mtime_ns == -86_400_000_000_000


def test_a_file_of_which_no_length_is_told_is_not_published_as_an_empty_one(
    receiver: RunningReceiver,
) -> None:
    with receiver.connect() as wire:
        answer = wire.send(head("PUT", "/files/f")).answer()
    assert (answer.status, answer.problem) == (411, "length-required")
    assert receiver.visible() == {}


@pytest.mark.parametrize("coding", ["gzip", "identity, br"])
def test_a_compressed_body_is_refused_and_not_stored_as_it_is(receiver: RunningReceiver, coding: str) -> None:
    answer = receiver.request("PUT", "/files/f", b"x", {"Content-Encoding": coding})
    assert (answer.status, answer.problem) == (415, "unsupported-coding")
    assert receiver.request("PUT", "/files/g", b"x", {"Content-Encoding": "identity"}).status == 201
    assert receiver.visible() == {"g": b"x"}


def test_two_files_under_one_name_at_once_do_not_disturb_each_other(receiver: RunningReceiver) -> None:
    with receiver.connect() as one, receiver.connect() as two:
        for wire, content in ((one, b"1111"), (two, b"2222")):
            wire.send(head("PUT", "/files/f", {"Content-Length": 4}) + content[:2])
        receiver.has_bodies(2)
        paths = {
            str(wire.send(rest).answer().document["path"]) for wire, rest in ((one, b"11"), (two, b"22"))
        }
    assert paths == {"f", "f (1)"}
    assert sorted(receiver.visible().values()) == [b"1111", b"2222"]


def test_a_file_larger_than_the_limit_is_refused_before_or_in_its_body(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(max_file=100)) as receiver:
        assert receiver.request("PUT", "/files/a", bytes(100)).status == 201
        answer = receiver.request("PUT", "/files/b", bytes(101))
        assert (answer.status, answer.problem) == (413, "too-large")
        answer = receiver.request("PUT", "/files/c", chunked([bytes(101)]), {"Transfer-Encoding": "chunked"})
        assert (answer.status, answer.problem) == (413, "too-large")
        assert (list(receiver.visible()), receiver.staged()) == (["a"], [])


def test_a_stated_length_must_be_that_of_the_body(receiver: RunningReceiver) -> None:
    answer = receiver.request("PUT", "/files/f", b"four", {"Upload-Length": 5, "Upload-Complete": "?1"})
    assert (answer.status, answer.problem) == (400, "inconsistent-upload-length")
    assert receiver.request("PUT", "/files/f", b"four", {"Upload-Length": 4}).status == 201


def test_a_body_of_wrong_chunks_is_refused_and_nothing_kept(receiver: RunningReceiver) -> None:
    body = b"5\r\nhello\r\nzz\r\n"
    with receiver.connect() as wire:
        answer = wire.send(head("PUT", "/files/f", {"Transfer-Encoding": "chunked"}) + body).answer()
        assert (answer.status, answer.problem) == (400, "protocol")
        assert answer.headers["connection"] == "close"
    assert (receiver.visible(), receiver.staged()) == ({}, [])
