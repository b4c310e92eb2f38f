"""Ordinary HTTP: curl pushes, continues and is refused as the README says."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver, wait_until

SIZE = 12 * MIB + 12345

REFUSED = [
    "/files/..",
    "/files/../escaped",
    "/files/%2e%2e/escaped",
    "/files/%2e%2e%2fescaped",
    "/files//etc/escaped",
    "/files/a/../../escaped",
    "/files/.tdx/escaped",
    "/files/.TDX",
    "/files/nul%00byte",
    "/files/line%0Abreak",
    "/files/" + "x" * 300,
    "/files/" + "%C3%A9" * 128,
    "/files/%ff",
    "/escaped",
]


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source.bin", SIZE)


def test_a_file_put_by_curl_is_published(processes: Processes, receiver: Receiver, source: Path) -> None:
    curl = processes.curl("-T", source, f"{receiver.url}/files/name.bin")
    assert curl.status == 201
    assert curl.body["path"] == "name.bin"
    assert curl.body["verified"] is False
    assert receiver.published == ["name.bin"]
    assert receiver.partials == []
    assert sha256_of(receiver.folder / "name.bin") == sha256_of(source)


def test_a_digest_makes_curls_file_verified_and_a_wrong_one_refused(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    digest = "sha-256=:" + _base64_of_sha256(source) + ":"
    curl = processes.curl("-T", source, "-H", f"Repr-Digest: {digest}", f"{receiver.url}/files/good")
    assert (curl.status, curl.body["verified"]) == (201, True)
    source.write_bytes(b"x" + source.read_bytes()[1:])
    curl = processes.curl("-T", source, "-H", f"Repr-Digest: {digest}", f"{receiver.url}/files/bad")
    assert curl.status == 400
    assert receiver.published == ["good"]
    assert receiver.partials == []


def test_a_chunked_put_of_unknown_length_is_published(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    with source.open("rb") as content:
        curl = processes.curl("-T", "-", f"{receiver.url}/files/piped", stdin=content)
        assert curl.status == 201
    assert receiver.published == ["piped"]
    assert sha256_of(receiver.folder / "piped") == sha256_of(source)


def test_a_chunked_put_that_is_killed_leaves_nothing(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    with source.open("rb") as content:
        curl = processes.curl("--limit-rate", "8M", "-T", "-", f"{receiver.url}/files/piped", stdin=content)
        wait_until(lambda: receiver.staged > MIB, "a part has arrived")
        curl.kill()
    receiver.await_silence()
    assert receiver.published == []
    assert receiver.partials == []


def test_curl_continues_where_head_says_that_a_killed_put_stopped(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    url = f"{receiver.url}/files/half.bin"
    killed = processes.curl("--limit-rate", "16M", "-T", source, url)
    wait_until(lambda: receiver.staged > 5 * MIB, "a part has arrived")
    killed.kill()
    receiver.await_silence()
    assert receiver.published == []
    head = processes.curl("-I", url)
    offset = int(head.fields["upload-offset"])
    assert head.status == 204
    assert 4 * MIB <= offset < SIZE
    assert head.fields["upload-length"] == str(SIZE)
    assert head.fields["upload-complete"] == "?0"
    rest = processes.curl("-C", str(offset), "-T", source, url)
    assert rest.status == 201
    assert rest.body["path"] == "half.bin"
    assert receiver.published == ["half.bin"]
    assert receiver.partials == []
    assert sha256_of(receiver.folder / "half.bin") == sha256_of(source)


@pytest.mark.parametrize("half", [4 * MIB, 5 * MIB + 1, 1])
def test_curl_completes_what_a_first_half_put_left(
    processes: Processes, receiver: Receiver, source: Path, half: int
) -> None:
    url = f"{receiver.url}/files/halves.bin"
    first = source.with_name("first")
    first.write_bytes(source.read_bytes()[:half])
    put = processes.curl("-T", first, "-H", f"Content-Range: bytes 0-{half - 1}/{SIZE}", url)
    assert put.status == 202
    assert put.fields["upload-offset"] == str(half)
    assert receiver.published == []
    assert processes.curl("-C", str(half), "-T", source, url).status == 201
    assert receiver.published == ["halves.bin"]
    assert sha256_of(receiver.folder / "halves.bin") == sha256_of(source)


def test_a_half_survives_the_receiver_and_is_continued_inside_its_extent(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    url = f"{receiver.url}/files/half.bin"
    half = 6 * MIB + 7
    first = source.with_name("first")
    first.write_bytes(source.read_bytes()[:half])
    assert processes.curl("-T", first, "-H", f"Content-Range: bytes 0-{half - 1}/{SIZE}", url).status == 202
    receiver.kill()
    receiver.restart()
    assert processes.curl("-I", url).fields["upload-offset"] == str(half)
    assert processes.curl("-C", str(half), "-T", source, url).status == 201
    assert sha256_of(receiver.folder / "half.bin") == sha256_of(source)


def test_a_continuation_from_elsewhere_is_told_where_the_upload_stands(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    url = f"{receiver.url}/files/half.bin"
    first = source.with_name("first")
    first.write_bytes(source.read_bytes()[:MIB])
    processes.curl("-T", first, "-H", f"Content-Range: bytes 0-{MIB - 1}/{SIZE}", url).wait()
    wrong = processes.curl("-C", str(2 * MIB), "-T", source, url)
    assert wrong.status == 409
    assert wrong.fields["upload-offset"] == str(MIB)
    assert wrong.fields["content-type"] == "application/problem+json"
    assert processes.curl("-C", str(MIB), "-T", source, url).status == 201
    assert sha256_of(receiver.folder / "half.bin") == sha256_of(source)


def test_taildrop_defect_1_a_smaller_file_over_a_larger_partial_keeps_nothing_of_it(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    url = f"{receiver.url}/files/same.bin"
    first = source.with_name("first")
    first.write_bytes(source.read_bytes()[: 9 * MIB])
    assert (
        processes.curl("-T", first, "-H", f"Content-Range: bytes 0-{9 * MIB - 1}/{SIZE}", url).status == 202
    )
    smaller = random_file(source.with_name("smaller"), 5 * MIB + 99)
    assert processes.curl("-T", smaller, url).status == 201
    assert receiver.published == ["same.bin"]
    assert (receiver.folder / "same.bin").stat().st_size == 5 * MIB + 99
    assert sha256_of(receiver.folder / "same.bin") == sha256_of(smaller)


def test_taildrop_defect_2_two_files_at_once_under_one_name_both_arrive_whole(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    other = random_file(source.with_name("other"), SIZE)
    url = f"{receiver.url}/files/same.bin"
    with source.open("rb") as content, pipe() as (taken, given):
        slow = processes.curl("-T", "-", url, stdin=taken)
        given.write(content.read(3 * MIB))
        wait_until(lambda: receiver.staged > MIB, "the first is on its way")
        second = processes.curl("-T", other, url)
        assert second.status == 201
        assert slow.running
        given.write(content.read())
    assert slow.status == 201
    assert receiver.published == sorted([slow.body["path"], second.body["path"]])
    assert len(receiver.published) == 2
    assert sha256_of(receiver.folder / slow.body["path"]) == sha256_of(source)
    assert sha256_of(receiver.folder / second.body["path"]) == sha256_of(other)


class TestResumableUploads:
    """The draft, by hand: what docs/http.md shows."""

    ANNOUNCED = ("-H", "Upload-Complete: ?1", "-H", "Upload-Draft-Interop-Version: 8")
    PART = ("-X", "PATCH", "-H", "Content-Type: application/partial-upload")

    @pytest.mark.parametrize("method", ["PUT", "POST"])
    def test_curl_is_told_where_it_could_go_on_before_it_sends_a_byte(
        self, processes: Processes, receiver: Receiver, source: Path, method: str
    ) -> None:
        curl = processes.curl("-T", source, "-X", method, *self.ANNOUNCED, f"{receiver.url}/files/name.bin")
        assert curl.status == 201
        (first, announced), (second, _) = curl.interim
        assert (first, second) == (104, 100)
        assert announced["location"] == curl.fields["location"]
        assert announced["upload-draft-interop-version"] == "8"
        assert announced["upload-limit"].startswith("max-size=")
        assert (curl.fields["upload-offset"], curl.fields["upload-complete"]) == (str(SIZE), "?1")
        assert sha256_of(receiver.folder / "name.bin") == sha256_of(source)
        told = processes.curl("-I", f"{receiver.url}{announced['location']}")
        assert (told.status, told.fields["upload-complete"]) == (204, "?1")

    def test_curl_goes_on_where_a_killed_one_was_told(
        self, processes: Processes, receiver: Receiver, source: Path
    ) -> None:
        slow = ("-v", "--limit-rate", "16M", "-T", source)
        killed = processes.curl(*slow, *self.ANNOUNCED, f"{receiver.url}/files/half.bin")
        receiver.await_staged(5 * MIB)
        killed.kill()
        announced = re.search(
            r"^< HTTP/1.1 104 .*\n(?:< .*\n)*< Location: (/uploads/\w+)", killed.stderr, re.MULTILINE
        )
        assert announced, killed.log()
        target = receiver.url + announced[1]
        told = processes.curl("-I", target)
        offset = int(told.fields["upload-offset"])
        assert 4 * MIB <= offset < SIZE
        assert (told.fields["upload-complete"], told.fields["upload-length"]) == ("?0", str(SIZE))
        assert receiver.published == []
        rest = source.with_name("rest")
        rest.write_bytes(source.read_bytes()[offset:])
        part = (*self.PART, "-H", f"Upload-Offset: {offset}", "-H", "Upload-Complete: ?1")
        assert processes.curl("-T", rest, *part, target).status == 201
        assert (receiver.published, receiver.partials) == (["half.bin"], [])
        assert sha256_of(receiver.folder / "half.bin") == sha256_of(source)

    def test_curl_sends_a_stream_in_parts_over_a_receiver_that_is_killed(
        self, processes: Processes, receiver: Receiver, source: Path
    ) -> None:
        url, content = f"{receiver.url}/files/parts.bin", source.read_bytes()
        created = processes.curl("-X", "POST", "-H", "Upload-Complete: ?0", url)
        target = f"{receiver.url}{created.fields['location']}"
        half = 5 * MIB + 1
        for start, end, last in ((0, half, "?0"), (half, SIZE, "?1")):
            part = source.with_name("part")
            part.write_bytes(content[start:end])
            fields = (*self.PART, "-H", f"Upload-Offset: {start}", "-H", f"Upload-Complete: {last}")
            with part.open("rb") as given:
                answer = processes.curl("-T", "-", *fields, target, stdin=given)
                assert answer.status == (201 if last == "?1" else 204)
            receiver.kill()
            receiver.restart()
        assert sha256_of(receiver.folder / "parts.bin") == sha256_of(source)
        told = processes.curl("-I", target)
        assert (told.fields["upload-offset"], told.fields["upload-complete"]) == (str(SIZE), "?1")


@contextmanager
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """What is written to the second can be read from the first, until the block ends."""
    reading, writing = os.pipe()
    with open(reading, "rb") as taken, open(writing, "wb", buffering=0) as given:
        yield taken, given


@pytest.mark.parametrize("header", ["Origin: http://evil.example", "Referer: http://evil.example/page"])
def test_a_web_page_cannot_make_a_browser_push(
    processes: Processes, receiver: Receiver, source: Path, header: str
) -> None:
    refused = processes.curl("-T", source, "-H", header, f"{receiver.url}/files/evil.bin")
    assert refused.status == 403
    assert refused.fields["content-type"] == "application/problem+json"
    assert receiver.published == []
    assert receiver.partials == []


def test_a_page_whose_name_was_made_to_resolve_here_is_refused(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    refused = processes.curl("-T", source, "-H", "Host: rebound.example", f"{receiver.url}/files/evil.bin")
    assert refused.status == 403
    assert receiver.published == []
    assert receiver.partials == []


def test_names_that_no_receiver_stores_are_refused_and_it_lives_on(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    for target in REFUSED:
        refused = processes.curl("--path-as-is", "--globoff", "-T", source, f"{receiver.url}{target}")
        assert refused.status in {400, 404}, target
        assert refused.body["status"] == refused.status, target
        assert receiver.published == [], target
    assert list(receiver.folder.parent.rglob("*escaped*")) == []
    assert processes.curl(f"{receiver.url}/v1/hello").body["name"] == "tdx"


def _base64_of_sha256(path: Path) -> str:
    return base64.b64encode(bytes.fromhex(sha256_of(path))).decode()
