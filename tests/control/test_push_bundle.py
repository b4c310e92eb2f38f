"""Bundles as the sender sees them: what it repeats, what it takes from an answer, what it gives up."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path

import pytest

from support.runs import items_of, push_many
from support.stub_receiver import Request, receipt, refusal, stub_receiver
from tdx.control.items import Item
from tdx.control.push_many import ManyPushes
from tdx.control.sender import SenderOptions
from tdx.errors import Interrupted
from tdx.metrics import Metrics
from tdx.model import MAX_REPAIR_ROUNDS, Conflict

pytestmark = pytest.mark.usefixtures("short_waits")

COUNT = 5


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"f{number}").write_bytes(os.urandom(100 * number))
    return items_of(sorted(folder.iterdir()))


def receipts(_: int, request: Request) -> list[dict[str, object]]:
    return [receipt(entry) for entry, _ in request.entries]


def test_small_files_travel_in_one_request(items: list[Item], tmp_path: Path) -> None:
    metrics = Metrics("0")
    with stub_receiver(receipts) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own", metrics=metrics, conflict=Conflict.OVERWRITE)
    (request,) = stub.requests
    assert request.line == "POST /files HTTP/1.1"
    assert request.fields["content-type"] == "application/vnd.tdx.bundle"
    assert request.fields["tdx-conflict"] == "overwrite"
    assert "tdx-replay" not in request.fields
    assert [entry.name for entry, _ in request.entries] == [item.name for item in items]
    assert [content for _, content in request.entries] == [Path(item.path).read_bytes() for item in items]
    assert len(set(request.keys)) == COUNT
    assert all(len(key) == 32 for key in request.keys)
    assert seen.names == [item.name for item in items]
    assert seen.errors() == {}
    for number, item in enumerate(items):
        ended = seen.endings[item.name]
        assert ended.result is not None
        assert ended.together
        assert (ended.size, ended.sent, ended.result.path) == (100 * number, 100 * number, item.name)
        assert ended.result.root == receipt(request.entries[number][0])["root"]
    assert metrics.uploads.value(("tdx", "published")) == COUNT
    assert metrics.sent_bytes.value() == sum(100 * number for number in range(COUNT))


def test_an_answer_that_got_lost_is_asked_for_with_the_same_keys(items: list[Item], tmp_path: Path) -> None:
    with stub_receiver(lambda number, request: None if number < 2 else receipts(number, request)) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    first, second, third = stub.requests
    assert first.keys == second.keys == third.keys
    assert [request.fields.get("tdx-replay") for request in stub.requests] == [None, "?1", "?1"]
    assert seen.errors() == {}
    assert seen.endings["f4"].sent == 3 * 400


def test_a_replay_that_its_own_first_sending_has_cut_off_is_sent_again(
    items: list[Item], tmp_path: Path
) -> None:
    """The receiver may read what lay in some buffer only after the replay has begun to come."""
    problem = json.dumps(refusal("superseded", 409)["problem"]).encode()
    cut_off = (
        b"HTTP/1.1 409 Conflict\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(problem), problem)
    )
    answers = [None, cut_off]
    with stub_receiver(
        lambda number, request: answers[number] if number < len(answers) else receipts(number, request)
    ) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert [request.fields.get("tdx-replay") for request in stub.requests] == [None, "?1", "?1"]
    assert seen.errors() == {}


def test_connections_that_always_break_are_not_tried_for_ever(items: list[Item], tmp_path: Path) -> None:
    with stub_receiver(lambda *_: None) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own", sender=SenderOptions(retries=3))
    assert len(stub.requests) == 4
    assert seen.errors() == dict.fromkeys((item.name for item in items), "connection-lost")


def test_an_entry_that_is_refused_fails_alone(items: list[Item], tmp_path: Path) -> None:
    def answering(_: int, request: Request) -> list[dict[str, object]]:
        answers = receipts(_, request)
        answers[2] = refusal("exists", 409)
        return answers

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert seen.errors() == {"f2": "exists"}
    assert len(stub.requests) == 1


def test_what_came_corrupt_is_sent_again_and_nothing_else(items: list[Item], tmp_path: Path) -> None:
    def answering(number: int, request: Request) -> list[dict[str, object]]:
        answers = receipts(number, request)
        if number == 0:
            answers[1] = answers[3] = refusal("digest-mismatch", 400)
        return answers

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    first, second = stub.requests
    assert second.keys == [first.keys[1], first.keys[3]]
    assert seen.errors() == {}


def test_what_keeps_coming_corrupt_is_65(items: list[Item], tmp_path: Path) -> None:
    def answering(number: int, request: Request) -> list[dict[str, object]]:
        return [
            refusal("digest-mismatch", 400) if entry.name == "f3" else receipt(entry)
            for entry, _ in request.entries
        ]

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert len(stub.requests) == 1 + MAX_REPAIR_ROUNDS
    assert seen.errors() == {"f3": "verification-failed"}


@pytest.mark.parametrize("code", ["busy", "storage", "upload-busy"])
def test_what_the_receiver_cannot_take_just_now_is_tried_again(
    items: list[Item], tmp_path: Path, code: str
) -> None:
    def answering(number: int, request: Request) -> list[dict[str, object]]:
        return [
            refusal(code, 503) if entry.name == "f3" and number < 2 else receipt(entry)
            for entry, _ in request.entries
        ]

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert [len(request.entries) for request in stub.requests] == [COUNT, 1, 1]
    assert seen.errors() == {}


def test_and_its_own_error_counts_in_the_end(items: list[Item], tmp_path: Path) -> None:
    def answering(_: int, request: Request) -> list[dict[str, object]]:
        return [
            receipt(entry)
            if entry.name not in ("f1", "f3")
            else refusal("busy" if entry.name == "f1" else "storage", 503)
            for entry, _ in request.entries
        ]

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own", sender=SenderOptions(retries=1))
    assert seen.errors() == {"f1": "busy", "f3": "storage"}


@pytest.mark.parametrize(
    "files",
    [None, [], [receipt], [[]], "x"],
    ids=["none", "empty", "short", "not objects", "text"],
)
def test_an_answer_that_does_not_fit_is_76(items: list[Item], tmp_path: Path, files: object) -> None:
    def answering(_: int, request: Request) -> bytes:
        told = files
        if files == [receipt]:
            told = [receipt(request.entries[0][0])]
        elif files == [[]]:
            told = [[] for _ in request.entries]
        raw = json.dumps({"files": told}).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw)

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert len(stub.requests) == 1
    assert seen.errors() == dict.fromkeys((item.name for item in items), "protocol")


def test_a_receipt_of_something_else_is_76(items: list[Item], tmp_path: Path) -> None:
    def answering(_: int, request: Request) -> list[dict[str, object]]:
        answers = receipts(_, request)
        answers[1]["root"] = answers[2]["root"]
        return answers

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert seen.errors() == {"f1": "protocol"}


def test_a_file_that_changed_before_it_was_sent_again_is_66_and_the_others_arrive(
    items: list[Item], tmp_path: Path
) -> None:
    def answering(number: int, request: Request) -> list[dict[str, object]] | None:
        if number == 0:
            Path(items[2].path).write_bytes(b"another")
            Path(items[4].path).unlink()
            return None
        return receipts(number, request)

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert seen.errors() == {"f2": "source-changed", "f4": "source-changed"}
    assert [entry.name for entry, _ in stub.requests[1].entries] == ["f0", "f1", "f3"]


def test_a_refusal_of_the_whole_is_one_of_each(items: list[Item], tmp_path: Path) -> None:
    def answering(*_: object) -> bytes:
        body = b'{"type":"urn:tdx:problem:forbidden","detail":"rule `default`: no"}'
        return (
            b"HTTP/1.1 403 No\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    assert len(stub.requests) == 1
    assert seen.errors() == dict.fromkeys((item.name for item in items), "forbidden")


@pytest.mark.parametrize("status", [404, 405, 411, 415])
def test_a_receiver_that_knows_no_bundles_is_sent_one_file_at_a_time(
    items: list[Item], tmp_path: Path, status: int
) -> None:
    codes = {404: "not-found", 405: "method-not-allowed", 411: "length-required", 415: "unsupported-coding"}

    def answering(_: int, request: Request) -> bytes:
        if request.line.startswith("POST"):
            body = b'{"type":"urn:tdx:problem:%s","detail":"unknown"}' % codes[status].encode()
            return (
                b"HTTP/1.1 %d No\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(body), body)
            )
        return b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

    with stub_receiver(answering) as stub:
        seen = push_many(stub.peer, items, tmp_path / "own")
    lines = [request.line for request in stub.requests]
    assert lines[0] == "POST /files HTTP/1.1"
    assert sorted(lines[1:]) == [f"PUT /files/f{number} HTTP/1.1" for number in range(COUNT)]
    assert seen.errors() == dict.fromkeys((item.name for item in items), "no-space")


def test_a_digest_of_the_whole_file_is_not_for_bundles(items: list[Item], tmp_path: Path) -> None:
    full = b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with stub_receiver(lambda *_: full) as stub:
        push_many(stub.peer, items, tmp_path / "own", digest="sha-256")
    assert all(request.line.startswith("PUT /files/f") for request in stub.requests)
    assert len(stub.requests) == COUNT


def test_a_run_that_is_stopped_ends_each_file_that_was_taken_up(items: list[Item], tmp_path: Path) -> None:
    stopped = threading.Event()

    def answering(_: int, __: Request) -> None:
        assert stopped.wait(30)

    with stub_receiver(answering) as stub:

        def during(run: ManyPushes) -> None:
            loop = asyncio.get_running_loop()

            def look() -> None:
                if stub.requests:
                    run.stop(Interrupted("enough"))
                    stopped.set()
                else:
                    loop.call_later(0.01, look)

            look()

        seen = push_many(stub.peer, items, tmp_path / "own", during=during)
    assert seen.errors() == dict.fromkeys((item.name for item in items), "interrupted")
