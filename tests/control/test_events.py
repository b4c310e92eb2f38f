"""What a receiver logs: each upload from its beginning to its end, and what was refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, push, running
from support.runs import items_of, push_many
from support.schemas import conform
from support.uploading import open_upload
from support.vouching import Vouching
from tdx.errors import Exists
from tdx.integrity import MIN_EXTENT
from tdx.model import Conflict
from tdx.policy.admission import Limits
from tdx_cli.logs import JsonFormatter

LARGE = pattern(2 * MIN_EXTENT + 5)
OWNER = f"local:{os.getuid()}"
HOSTILE = "a\n2026-01-01 00:00:00,000 WARNING tdx.audit: forged\x1b[2J"


class Log:
    """What has been logged so far about uploads and requests, as objects that the schema knows."""

    def __init__(self, captured: pytest.LogCaptureFixture) -> None:
        self._captured = captured

    @property
    def events(self) -> list[dict[str, Any]]:
        of_ours = [record for record in list(self._captured.records) if hasattr(record, "fields")]
        found = [json.loads(JsonFormatter().format(record)) for record in of_ours]
        conform("log", found)
        return found

    def await_event(self, event: str) -> dict[str, Any]:
        return wait_until(lambda: next(iter(self.told(event)), None), f"there is {event} in the log") or {}

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    @property
    def names(self) -> list[str]:
        return [each["event"] for each in self.events]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    caplog.set_level(logging.INFO, "tdx")
    return Log(caplog)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    with running(tmp_path) as started:
        yield started


def file_of(tmp_path: Path, content: bytes, name: str = "f") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


# --- an upload -----------------------------------------------------------------------


def test_an_upload_that_is_published_has_a_line_at_its_beginning_and_at_its_end(
    receiver: RunningReceiver, log: Log, tmp_path: Path
) -> None:
    result = push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender")
    created, published = log.events
    assert (created["event"], created["name"], created["size"]) == ("created", "f", len(LARGE))
    assert published["event"] == published["outcome"] == "published"
    assert published["upload"] == created["upload"]
    assert published["owner"] == created["owner"] == OWNER
    assert published["peer"] == created["peer"] == os.uname().nodename
    assert (published["path"], published["root"]) == ("f", result.root)
    assert (published["received_bytes"], published["resumed_bytes"]) == (len(LARGE), 0)
    assert published["seconds"] > 0
    assert {"receive", "write", "sync"} <= set(published["stages"])
    assert f"{created['upload']} published: f, {len(LARGE)} bytes" in published["message"]


def test_a_small_file_has_the_same_lines(receiver: RunningReceiver, log: Log, tmp_path: Path) -> None:
    push(receiver.peer, file_of(tmp_path, b"hello"), tmp_path / "sender")
    assert log.names == ["created", "published"]


def test_a_file_that_is_there_is_identical(receiver: RunningReceiver, log: Log, tmp_path: Path) -> None:
    for _ in range(2):
        push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender")
    assert log.names == ["created", "published", "created", "identical"]
    assert log.events[-1]["received_bytes"] == 0


def test_what_is_left_alone_has_one_line_and_no_upload(
    receiver: RunningReceiver, log: Log, tmp_path: Path
) -> None:
    (receiver.folder / "f").write_bytes(b"another")
    push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender", conflict=Conflict.SKIP)
    (skipped,) = log.events
    assert (skipped["event"], skipped["path"], skipped["size"]) == ("skipped", "f", 7)
    assert "upload" not in skipped


def test_another_name_than_the_one_that_was_asked_for_is_said(
    receiver: RunningReceiver, log: Log, tmp_path: Path
) -> None:
    (receiver.folder / "f").write_bytes(b"another")
    push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender")
    (published,) = log.told("published")
    assert (published["name"], published["path"]) == ("f", "f (1)")
    assert "published: f as f (1), " in published["message"]


def test_an_upload_that_is_set_aside_and_taken_up_again_says_what_is_held(tmp_path: Path, log: Log) -> None:
    with running(tmp_path) as receiver:
        first = open_upload(receiver, "f", len(LARGE))
        assert first.put(receiver, 0, LARGE[:MIN_EXTENT], len(LARGE)).status == 200
    (kept,) = log.told("kept")
    assert (kept["upload"], kept["received_bytes"], kept["held_bytes"]) == (first.id, MIN_EXTENT, MIN_EXTENT)
    with running(tmp_path) as receiver:
        again = open_upload(receiver, "f", len(LARGE), {"Tdx-Resume": "?1"})
        assert again.put(receiver, MIN_EXTENT, LARGE[MIN_EXTENT:], len(LARGE)).status == 200
        assert again.commit(receiver, LARGE).status == 200
    (resumed,), (published,) = log.told("resumed"), log.told("published")
    assert resumed["upload"] == published["upload"] == first.id
    assert resumed["resumed_bytes"] == published["resumed_bytes"] == MIN_EXTENT
    assert published["received_bytes"] == len(LARGE) - MIN_EXTENT


def test_an_upload_that_is_replaced_or_cancelled_says_so(receiver: RunningReceiver, log: Log) -> None:
    first = open_upload(receiver, "f", len(LARGE))
    second = open_upload(receiver, "f", len(LARGE))
    assert receiver.request("DELETE", second.target, headers=second.fields).status == 204
    (superseded,), (cancelled,) = log.told("superseded"), log.told("cancelled")
    assert (superseded["upload"], superseded["error"]) == (first.id, "superseded")
    assert (cancelled["upload"], "error" in cancelled) == (second.id, False)


def test_an_upload_that_fails_says_of_what(receiver: RunningReceiver, log: Log, tmp_path: Path) -> None:
    (receiver.folder / "f").write_bytes(bytes(len(LARGE)))
    with pytest.raises(Exists):
        push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender", conflict=Conflict.ERROR)
    (failed,) = log.told("failed")
    assert (failed["outcome"], failed["error"], failed["name"]) == ("failed", "exists", "f")
    assert failed["reason"] in failed["message"]


def test_an_upload_that_nobody_goes_on_with_expires_with_a_line(
    receiver: RunningReceiver, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"Content-Range": f"bytes 0-99/{len(LARGE)}", "Content-Length": 100}
    assert receiver.request("PUT", "/files/f", LARGE[:100], given).status == 202
    (upload,) = receiver.staged()
    receiver.stop()
    monkeypatch.setattr("tdx.control.receiver.time.time", lambda: 4e9)
    receiver.start()
    expired = log.await_event("expired")
    assert (expired["upload"], expired["owner"], expired["name"]) == (upload.name, OWNER, "f")
    assert "peer" not in expired  # nobody asked for it


# --- many at once ----------------------------------------------------------------------


def test_files_that_travel_together_have_one_line(
    receiver: RunningReceiver, log: Log, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = [file_of(folder, pattern(100), f"{number}") for number in range(50)]
    (receiver.folder / "7").write_bytes(b"another")
    push_many(receiver.peer, items_of(paths), tmp_path / "sender", conflict=Conflict.ERROR)
    (bundle,) = log.events
    assert (bundle["event"], bundle["owner"], bundle["files"]) == ("bundle", OWNER, 50)
    assert (bundle["published"], bundle["failed"], bundle["errors"]) == (49, 1, {"exists": 1})
    assert bundle["received_bytes"] == 50 * 100
    assert bundle["message"].startswith("bundle: ")
    assert "49 published" in bundle["message"]
    assert "1 exists" in bundle["message"]


def test_each_of_them_has_one_where_that_is_asked_for(
    receiver: RunningReceiver, log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tdx.uploads")
    (receiver.folder / "b").write_bytes(b"another")
    paths = [file_of(tmp_path, pattern(100), name) for name in "ab"]
    push_many(receiver.peer, items_of(paths), tmp_path / "sender", conflict=Conflict.ERROR)
    bundle, published, failed = log.events
    assert (bundle["level"], published["level"], failed["level"]) == ("info", "debug", "debug")
    assert (published["event"], published["name"]) == ("published", "a")
    assert (failed["event"], failed["error"]) == ("failed", "exists")


# --- refusals ----------------------------------------------------------------------------


def test_who_is_not_let_in_is_a_warning(tmp_path: Path, log: Log) -> None:
    with running(tmp_path, providers=[Vouching("tailscale:n1", own=False)]) as receiver:
        assert receiver.request("GET", "/files/x").status == 403
    (refused,) = log.events
    assert (refused["level"], refused["logger"]) == ("warning", "tdx.audit")
    assert (refused["error"], refused["address"]) == ("forbidden", "127.0.0.1")
    assert (refused["request"], refused["owner"]) == ("GET /files/x", "tailscale:n1")
    assert "rule `default`" in refused["reason"]


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (("PUT", "/files/.tdx"), "bad-name"),
        (("PUT", "/files/f"), "too-large"),
        (("DELETE", "/files/f"), "method-not-allowed"),
    ],
    ids=["a name", "too large", "no such method"],
)
def test_what_is_refused_to_those_who_may_be_here_is_no_warning(
    request_line: tuple[str, str], code: str, tmp_path: Path, log: Log
) -> None:
    with running(tmp_path, limits=Limits(max_file=3)) as receiver:
        assert receiver.request(*request_line, b"1234").status >= 400
    (refused,) = log.events
    assert (refused["level"], refused["logger"], refused["error"]) == ("info", "tdx.requests", code)
    assert refused["request"] == " ".join(request_line)


def test_answers_that_senders_ask_for_are_no_refusals(receiver: RunningReceiver, log: Log) -> None:
    assert receiver.request("HEAD", "/files/f").status == 404
    given = {"Content-Range": f"bytes 10-14/{len(LARGE)}", "Content-Length": 5}
    assert receiver.request("PUT", "/files/f", b"12345", given).status == 409
    assert log.events == []


def test_a_flood_of_what_is_refused_leaves_few_lines_and_hides_no_stranger(tmp_path: Path, log: Log) -> None:
    provider = Vouching(OWNER)
    with running(tmp_path, providers=[provider]) as receiver:
        with receiver.connect() as wire:
            for _ in range(200):
                assert wire.request("PUT", "/files/.tdx", b"").status == 400
        provider.owner, provider.own = "tailscale:n1", False
        assert receiver.request("GET", "/v1/hello").status == 403
    refused = log.told("refused")
    assert 10 < len(refused) < 150
    assert refused[-1]["logger"] == "tdx.audit"


def test_a_hostile_name_is_one_line_and_as_it_came_in_its_field(
    receiver: RunningReceiver, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    raw = "".join(f"%{byte:02X}" for byte in HOSTILE.encode())
    assert receiver.request("PUT", f"/files/{raw}", b"x").status == 400
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert [each["request"] for each in log.events] == [f"PUT /files/{raw}"]


def test_a_node_with_a_hostile_name_is_one_line(
    tmp_path: Path, log: Log, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.uname", type("Uname", (), {"nodename": HOSTILE}))
    with running(tmp_path) as receiver:
        assert receiver.request("PUT", "/files/f", b"x").status == 201
    assert [each["peer"] for each in log.events] == [HOSTILE] * 2
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_nothing_is_logged_about_uploads_where_only_warnings_are_wanted(
    receiver: RunningReceiver, log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tdx")
    push(receiver.peer, file_of(tmp_path, LARGE), tmp_path / "sender")
    paths = [file_of(tmp_path, pattern(100), name) for name in "ab"]
    push_many(receiver.peer, items_of(paths), tmp_path / "sender")
    assert log.events == []


def test_a_sender_that_gives_up_leaves_no_failure_but_what_can_be_resumed(
    receiver: RunningReceiver, log: Log, tmp_path: Path
) -> None:
    opened = open_upload(receiver, "f", len(LARGE))
    with receiver.connect() as wire:
        wire.send(opened.range_head(0, 2 * MIN_EXTENT, len(LARGE)) + LARGE[:MIN_EXTENT])
        receiver.has_received(MIN_EXTENT)
    receiver.is_quiet()
    receiver.stop()
    assert log.names == ["created", "kept"]
    assert log.events[-1]["held_bytes"] == MIN_EXTENT
