"""PUT /files/NAME with Content-Range: in order, what ``curl -C`` sends."""

from __future__ import annotations

import base64
import errno
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.datakit import pattern
from support.receiving import RunningReceiver, in_background, local_store, running
from support.wire import Answer, chunked, head

EXTENT = 4 << 20
SIZE = 2 * EXTENT + 1000
CONTENT = pattern(SIZE)


def put_part(
    receiver: RunningReceiver,
    start: int,
    end: int,
    content: bytes = CONTENT,
    fields: Mapping[str, object] | None = None,
) -> Answer:
    given = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}", **(fields or {})}
    return receiver.request("PUT", "/files/disk.img", content[start:end], given)


def stands_at(receiver: RunningReceiver) -> int:
    answer = receiver.request("HEAD", "/files/disk.img")
    assert answer.status == 204
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["upload-complete"] == "?0"
    return int(answer.headers["upload-offset"])


def test_parts_in_order_make_the_file(receiver: RunningReceiver) -> None:
    for start, end in ((0, 1000), (1000, EXTENT), (EXTENT, EXTENT + 5), (EXTENT + 5, SIZE - 1)):
        answer = put_part(receiver, start, end)
        assert (answer.status, answer.headers["upload-offset"]) == (202, str(end))
        assert stands_at(receiver) == end
        assert receiver.visible() == {}
    answer = put_part(receiver, SIZE - 1, SIZE)
    assert (answer.status, answer.document["size"]) == (201, SIZE)
    assert receiver.visible() == {"disk.img": CONTENT}
    assert receiver.staged() == []
    assert receiver.request("HEAD", "/files/disk.img").status == 404


def test_parts_go_on_after_the_receiver_was_restarted(receiver: RunningReceiver) -> None:
    put_part(receiver, 0, EXTENT + 77)
    receiver.restart()
    assert stands_at(receiver) == EXTENT + 77
    assert put_part(receiver, EXTENT + 77, SIZE).status == 201
    assert receiver.visible() == {"disk.img": CONTENT}


@pytest.mark.parametrize("asks", [True, False])
def test_a_partial_that_is_whole_and_could_not_be_published_asks_for_its_last_extent_again(
    tmp_path: Path, asks: bool
) -> None:
    # For curl an offset at the end of its file is the end of its work: it would send nothing and exit 0.
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        put_part(receiver, 0, EXTENT)
        system.fail("rename_noreplace", errno.ENOSPC)
        assert put_part(receiver, EXTENT, SIZE).status == 507
        system.heal()
        if asks:
            assert stands_at(receiver) == 2 * EXTENT
        else:
            answer = put_part(receiver, SIZE - 1, SIZE)
            assert (answer.status, answer.headers["upload-offset"]) == (409, str(2 * EXTENT))
        receiver.restart()
        assert put_part(receiver, 2 * EXTENT, SIZE).status == 201
        assert receiver.visible() == {"disk.img": CONTENT}
        assert receiver.staged() == []


def test_who_asks_for_a_partial_that_is_being_published_is_answered_once_it_is(tmp_path: Path) -> None:
    system, renaming, go_on = FaultySystem(), threading.Event(), threading.Event()

    def before(name: str, arguments: tuple[object, ...]) -> None:
        if name == "rename_noreplace":
            renaming.set()
            assert go_on.wait(30)

    with running(tmp_path, make_store=local_store(system)) as receiver:
        put_part(receiver, 0, EXTENT)
        system.before = before
        with in_background(lambda: put_part(receiver, EXTENT, SIZE)) as putting:
            assert renaming.wait(30)
            with receiver.connect() as asking:
                asking.send(head("HEAD", "/files/disk.img"))
                assert receiver.request("GET", "/v1/hello").status == 200
                assert asking.is_silent()
                go_on.set()
                assert asking.answer(to_head=True).status == 404
        assert putting.result().status == 201
        assert receiver.visible() == {"disk.img": CONTENT}


@pytest.mark.parametrize("start", [1, 999, 1001, EXTENT, SIZE - 1])
def test_a_part_from_elsewhere_is_told_where_to_go_on(receiver: RunningReceiver, start: int) -> None:
    put_part(receiver, 0, 1000)
    answer = put_part(receiver, start, SIZE)
    assert answer.status == 409
    assert answer.problem == "mismatching-upload-offset"
    assert answer.headers["upload-offset"] == "1000"
    assert answer.document["expected-offset"] == 1000
    assert stands_at(receiver) == 1000
    assert put_part(receiver, 1000, SIZE).status == 201
    assert receiver.visible() == {"disk.img": CONTENT}


def test_a_part_of_nothing_is_told_to_begin_at_the_beginning(receiver: RunningReceiver) -> None:
    answer = put_part(receiver, 1000, SIZE)
    assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    assert receiver.request("HEAD", "/files/disk.img").status == 404
    assert receiver.staged() == []


def test_a_part_from_the_beginning_starts_anew(receiver: RunningReceiver) -> None:
    put_part(receiver, 0, EXTENT + 1000)
    other = bytes(SIZE)
    assert put_part(receiver, 0, 10, other).headers["upload-offset"] == "10"
    assert stands_at(receiver) == 10
    assert len(receiver.staged()) == 1
    assert put_part(receiver, 10, SIZE, other).status == 201
    assert receiver.visible() == {"disk.img": other}
    assert receiver.uploads_ended("http", "superseded") == 1


@pytest.mark.parametrize("broken_at", [0, 1000, EXTENT, EXTENT + 1000])
@pytest.mark.parametrize("how", ["end", "close", "reset"])
def test_a_whole_put_that_broke_off_is_continued_in_parts(
    receiver: RunningReceiver, broken_at: int, how: str
) -> None:
    with receiver.connect() as wire:
        wire.send(head("PUT", "/files/disk.img", {"Content-Length": SIZE}) + CONTENT[:broken_at])
        receiver.has_bodies(1)
        receiver.has_received(broken_at // (1 << 20) * (1 << 20))
        getattr(wire, how)()
        receiver.has_bodies(0)
    assert receiver.visible() == {}
    offset = stands_at(receiver)
    # A reset may take with it what the receiver had not read yet.
    assert offset <= broken_at if how == "reset" else offset == broken_at
    if offset:
        assert put_part(receiver, offset, SIZE).status == 201
    else:
        assert receiver.request("PUT", "/files/disk.img", CONTENT).status == 201
    assert receiver.visible() == {"disk.img": CONTENT}
    assert receiver.staged() == []


def test_partials_of_other_lengths_stand_side_by_side(receiver: RunningReceiver) -> None:
    put_part(receiver, 0, 1000)
    put_part(receiver, 0, 500, CONTENT[:2000])
    assert put_part(receiver, 1000, SIZE).status == 201
    assert put_part(receiver, 500, 2000, CONTENT[:2000]).document["path"] == "disk (1).img"
    assert receiver.visible() == {"disk.img": CONTENT, "disk (1).img": CONTENT[:2000]}


def test_repr_digest_of_the_whole_is_held_against_the_last_part(receiver: RunningReceiver) -> None:
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    put_part(receiver, 0, EXTENT + 1)
    answer = put_part(receiver, EXTENT + 1, SIZE, fields={"Repr-Digest": f"sha-256=:{digest}:"})
    assert (answer.status, answer.document["verified"]) == (201, True)


def test_a_part_that_makes_a_wrong_whole_is_refused_and_all_is_dropped(receiver: RunningReceiver) -> None:
    digest = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    put_part(receiver, 0, 1000)
    answer = put_part(receiver, 1000, SIZE, fields={"Repr-Digest": f"sha-256=:{digest}:"})
    assert (answer.status, answer.problem) == (400, "digest-mismatched-values")
    assert (receiver.visible(), receiver.staged()) == ({}, [])


@pytest.mark.parametrize(
    ("field", "status", "problem"),
    [
        ("bytes 0-9/*", 400, "protocol"),
        ("bytes 0-9", 400, "protocol"),
        ("bytes 9-0/10", 400, "protocol"),
        ("bytes 0-9/5", 416, "range-not-satisfiable"),
        ("items 0-9/10", 400, "protocol"),
        ("bytes 0-8/10", 400, "protocol"),
        ("bytes */10", 400, "protocol"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(
    receiver: RunningReceiver, field: str, status: int, problem: str
) -> None:
    answer = receiver.request("PUT", "/files/f", bytes(10), {"Content-Range": field})
    assert (answer.status, answer.problem) == (status, problem)
    assert receiver.staged() == []


def test_a_chunked_part_is_refused(receiver: RunningReceiver) -> None:
    fields = {"Content-Range": "bytes 0-9/10", "Transfer-Encoding": "chunked"}
    assert receiver.request("PUT", "/files/f", chunked([bytes(10)]), fields).status == 400
    assert receiver.staged() == []


def test_two_continuations_at_once_do_not_mix(receiver: RunningReceiver) -> None:
    put_part(receiver, 0, 1000)
    with receiver.connect() as one:
        fields = {"Content-Range": f"bytes 1000-{SIZE - 1}/{SIZE}", "Content-Length": SIZE - 1000}
        one.send(head("PUT", "/files/disk.img", fields) + CONTENT[1000:2000])
        receiver.has_bodies(1)
        answer = put_part(receiver, 1000, SIZE, bytes(SIZE))
        assert (answer.status, answer.problem) == (409, "upload-busy")
        assert one.send(CONTENT[2000:]).answer().status == 201
    assert receiver.visible() == {"disk.img": CONTENT}


def test_stored_bytes_that_no_longer_verify_are_not_built_upon(receiver: RunningReceiver) -> None:
    put_part(receiver, 0, EXTENT + 1000)
    (upload,) = receiver.staged()
    with (upload / "data").open("r+b") as data:
        data.seek(EXTENT + 5)
        data.write(b"\xff\xfe")
    answer = put_part(receiver, EXTENT + 1000, SIZE)
    assert (answer.status, answer.headers["upload-offset"]) == (409, str(EXTENT))
    assert put_part(receiver, EXTENT, SIZE).status == 201
    assert receiver.visible() == {"disk.img": CONTENT}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_curl_uploads_and_continues(receiver: RunningReceiver, tmp_path: Path) -> None:
    source = tmp_path / "disk.img"
    source.write_bytes(CONTENT)
    url = f"http://127.0.0.1:{receiver.port}/files/"

    def curl(*arguments: str) -> str:
        command = ["curl", "-sS", "-o", "-", "-w", "%{http_code}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode()

    put_part(receiver, 0, EXTENT + 1000)
    assert curl("-C", str(EXTENT + 1000), "-T", str(source), url).endswith("201")
    assert receiver.visible() == {"disk.img": CONTENT}
    assert curl("-T", str(source), url + "again").endswith("201")
    assert curl("-T", "-", url + "piped", "-H", "Expect:").endswith("201")
    assert receiver.visible() == {"disk.img": CONTENT, "again": CONTENT, "piped": b""}
