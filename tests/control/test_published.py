"""Whoever wants to know of each file that was published is told once, however the file came."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.receiving import RunningReceiver, local_store, push, push_stream
from support.runs import items_of, push_many
from tdx.control.on_receive import Programs
from tdx.model import Conflict, FileName, Identity, Outcome, Owner, Receipt, UploadId
from tdx.store.port import Store


class Told(Programs):
    """Notes what it is told, and runs nothing."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int, str | None]] = []

    def tell(self, receipt: Receipt, identity: Identity | None) -> None:
        owner = None if identity is None else identity.owner
        self.files.append((receipt.path, receipt.size, owner))


ME = f"local:{os.getuid()}"


@pytest.fixture
def told(receiver: RunningReceiver) -> Iterator[Told]:
    receiver.running.programs = found = Told()
    yield found
    receiver.running.programs = None


def test_of_a_put_and_of_none_that_changed_nothing(receiver: RunningReceiver, told: Told) -> None:
    assert receiver.request("PUT", "/files/f", b"content").status == 201
    assert receiver.request("PUT", "/files/f", b"content").status == 200
    assert receiver.request("PUT", "/files/f", b"other", {"Tdx-Conflict": "skip"}).status == 200
    assert receiver.request("PUT", "/files/f", b"other", {"If-None-Match": "*"}).status == 412
    assert told.files == [("f", 7, ME)]
    assert receiver.request("PUT", "/files/f", b"other").status == 201
    assert told.files[1:] == [("f (1)", 5, ME)]


def test_of_a_request_that_came_twice_once(receiver: RunningReceiver, told: Told) -> None:
    for _ in range(2):
        receiver.request("PUT", "/files/f", b"content", {"Tdx-Upload-Key": "k" * 32})
    assert told.files == [("f", 7, ME)]


def test_of_parts_when_the_last_has_come(receiver: RunningReceiver, told: Told) -> None:
    receiver.request("PUT", "/files/f", b"123", {"Content-Range": "bytes 0-2/5"})
    assert told.files == []
    receiver.request("PUT", "/files/f", b"45", {"Content-Range": "bytes 3-4/5"})
    assert told.files == [("f", 5, ME)]


def test_of_an_upload_that_was_appended_to(receiver: RunningReceiver, told: Told) -> None:
    opened = receiver.request("POST", "/files/f", b"", {"Upload-Complete": "?0", "Upload-Length": 5})
    place = opened.headers["location"]
    fields = {"Content-Type": "application/partial-upload", "Upload-Offset": 0, "Upload-Complete": "?1"}
    assert receiver.request("PATCH", place, b"12345", fields).status < 300
    assert told.files == [("f", 5, ME)]


def test_of_a_large_file_and_of_standard_input(receiver: RunningReceiver, told: Told, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(9 << 20))
    for _ in range(2):
        push(receiver.peer, large, tmp_path / "sender")
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)
    push_stream(receiver.peer, reading, tmp_path / "sender", name="piped")
    os.close(reading)
    assert told.files == [("large", 9 << 20, ME), ("piped", 11, ME)]


def test_of_each_file_of_a_bundle_that_is_new(receiver: RunningReceiver, told: Told, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"f{number}").write_bytes(b"x" * (number + 1))
    items = items_of(sorted(source.iterdir()))
    assert push_many(receiver.peer, items[:3], tmp_path / "own").errors() == {}
    assert push_many(receiver.peer, items, tmp_path / "own", conflict=Conflict.SKIP).errors() == {}
    assert sorted(told.files) == [(f"f{number}", number + 1, ME) for number in range(5)]


def test_of_what_an_interrupted_receiver_had_nearly_published(tmp_path: Path) -> None:
    receipt = Receipt(
        UploadId("0" * 32),
        Owner("tls:aa"),
        None,
        FileName("f"),
        "f",
        7,
        "xxh3-128:4194304:00",
        True,
        Outcome.PUBLISHED,
        0.0,
    )
    make: Callable[[Path, Path], Store] = local_store()

    def interrupted(folder: Path, state: Path) -> Store:
        store = make(folder, state)
        store.recover = lambda: [receipt]  # type: ignore[method-assign]
        return store

    found = Told()

    class Receiving(RunningReceiver):
        def prepare(self) -> None:
            self.running.programs = found

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    receiver = Receiving(inbox, tmp_path / "state", make_store=interrupted)
    receiver.start()
    receiver.stop()
    assert found.files == [("f", 7, None)]
