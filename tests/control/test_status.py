"""What a receiver says that it is doing: live figures, phases, and nulls where the disk does not answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import bundle_wire
from support.asking import answering, ask, status_at
from support.content import MIB
from support.processes import wait_until
from support.receiving import RunningReceiver, running
from support.uploading import open_upload
from support.wire import head
from tdx.control.status import Disk
from tdx.errors import StorageError
from tdx.store.memory import MemoryStore

LENGTH = 12 * MIB


@pytest.fixture
def path(receiver: RunningReceiver) -> Iterator[Path]:
    with answering(receiver) as found:
        yield found


def only_transfer(path: Path) -> dict[str, Any]:
    (transfer,) = status_at(path)["transfers"]
    assert isinstance(transfer, dict)
    return transfer


# --- the receiver ------------------------------------------------------------


def test_a_receiver_with_nothing_to_do_says_who_and_where_it_is(
    receiver: RunningReceiver, path: Path
) -> None:
    found = status_at(path)
    assert (found["folder"], found["state"]) == (str(receiver.folder), str(receiver.state))
    assert found["listening"] == [f"127.0.0.1:{receiver.port}"]
    assert (found["transfers"], found["bundles"], found["waiting"]) == ([], [], 0)
    assert found["free_bytes"] > 0
    assert found["staged_bytes"] == found["received_bytes"] == found["disk_waiting_seconds"] == 0


def test_the_time_counts_from_the_start(path: Path) -> None:
    before = status_at(path)
    wait_until(lambda: status_at(path)["seconds"] > before["seconds"], "time goes by")
    assert status_at(path)["started"] == before["started"]


def test_the_document_is_ascii_whatever_a_folder_is_called(tmp_path: Path) -> None:
    odd = tmp_path / b"not\xffunicode".decode("utf-8", "surrogateescape")
    odd.mkdir()
    with running(odd) as receiver, answering(receiver) as path:
        reply = ask(path)
    assert reply.body.isascii()
    assert str(reply.document["folder"]).endswith("not\udcffunicode/inbox")


# --- transfers ---------------------------------------------------------------


def test_a_body_on_its_way_is_seen_and_what_it_leaves_waits(receiver: RunningReceiver, path: Path) -> None:
    upload = open_upload(receiver, "a/b", LENGTH)
    with receiver.connect() as wire:
        wire.send(upload.range_head(0, LENGTH, LENGTH) + bytes(5 * MIB))
        receiver.has_received(5 * MIB)
        wait_until(lambda: only_transfer(path)["held_bytes"] == 4 * MIB, "an extent is held")
        found = only_transfer(path)
        assert (found["name"], found["size"], found["upload"]) == ("a/b", LENGTH, upload.id)
        assert (found["phase"], found["streams"], found["protocol"]) == ("receiving", 1, "tdx")
        assert (found["resumed_bytes"], found["eta_seconds"] is None) == (0, not found["bytes_per_second"])
        assert found["done_bytes"] == found["received_bytes"] == 5 * MIB
        assert found["owner"].startswith("local:")
        assert found["peer"]
        assert status_at(path)["waiting"] == 0
    receiver.has_bodies(0)
    found = only_transfer(path)
    assert (found["phase"], found["streams"], found["bytes_per_second"]) == ("waiting", 0, 0)
    assert (found["received_bytes"], found["eta_seconds"]) == (5 * MIB, None)
    assert status_at(path)["waiting"] == 1


def test_a_run_that_resumes_counts_what_was_held_apart(receiver: RunningReceiver, path: Path) -> None:
    first = open_upload(receiver, "f", LENGTH)
    assert first.put(receiver, 0, bytes(8 * MIB), LENGTH).status == 200
    assert only_transfer(path)["received_bytes"] == 8 * MIB
    again = open_upload(receiver, "f", LENGTH, {"Tdx-Resume": "?1"})
    assert again.id == first.id
    found = only_transfer(path)
    assert (found["resumed_bytes"], found["held_bytes"], found["received_bytes"]) == (8 * MIB, 8 * MIB, 0)
    assert found["done_bytes"] == 8 * MIB
    with receiver.connect() as wire:
        wire.send(again.range_head(8 * MIB, LENGTH, LENGTH) + bytes(MIB))
        receiver.has_received(9 * MIB)
        assert only_transfer(path)["done_bytes"] == 9 * MIB


def test_the_size_of_an_upload_without_a_length_is_not_known(receiver: RunningReceiver, path: Path) -> None:
    with receiver.connect() as wire:
        fields = {"Transfer-Encoding": "chunked"}
        wire.send(head("PUT", "/files/stream", fields) + b"100000\r\n" + bytes(MIB) + b"\r\n")
        receiver.has_bodies(1)
        found = only_transfer(path)
        assert (found["size"], found["eta_seconds"], found["protocol"]) == (None, None, "http")


def test_partials_of_earlier_receivers_wait(receiver: RunningReceiver, tmp_path: Path) -> None:
    assert open_upload(receiver, "f", LENGTH).put(receiver, 0, bytes(4 * MIB), LENGTH).status == 200
    receiver.restart()
    with answering(receiver) as path:
        found = status_at(path)
    assert (found["transfers"], found["waiting"]) == ([], 1)
    assert found["staged_bytes"] >= 4 * MIB


def test_what_is_being_made_durable_is_publishing(
    receiver: RunningReceiver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, content = threading.Event(), bytes(100)
    upload = open_upload(receiver, "f", 100)
    assert upload.put(receiver, 0, content, 100).status == 200
    (session,) = receiver.running.sessions
    publish = session.upload.publish

    def slowly(*args: Any, **kwargs: Any) -> Any:
        assert goes_on.wait(30)
        return publish(*args, **kwargs)

    monkeypatch.setattr(session.upload, "publish", slowly)
    committing = threading.Thread(target=upload.commit, args=(receiver, content))
    committing.start()
    try:
        wait_until(lambda: only_transfer(path)["phase"] == "publishing", "it is being published")
        assert status_at(path)["waiting"] == 0
    finally:
        goes_on.set()
        committing.join(30)
    assert status_at(path)["transfers"] == []


def test_a_bundle_on_its_way_is_one_entry(receiver: RunningReceiver, path: Path) -> None:
    """Its files are looked at when a buffer of 1 MiB is full."""
    body = bundle_wire.bundle({f"f{number}": bytes([number]) * (MIB // 8) for number in range(20)})
    fields = {**bundle_wire.fields(), "Content-Length": len(body)}
    with receiver.connect() as wire:
        wire.send(head("POST", "/files", fields) + body[:-4])
        wait_until(lambda: [each["files"] > 5 for each in status_at(path)["bundles"]] == [True], "it comes")
        (found,) = status_at(path)["bundles"]
        assert (found["size"], found["phase"]) == (len(body), "receiving")
        assert found["received_bytes"] >= 5 * MIB // 8
        assert found["owner"].startswith("local:")
        wire.send(body[-4:])
        assert wire.answer().status == 200
    assert status_at(path)["bundles"] == []


# --- the disk ----------------------------------------------------------------


class SlowStore(MemoryStore):
    """Says nothing until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.asked = 0

    def free_bytes(self) -> int:
        self.asked += 1
        assert self.goes_on.wait(30)
        return 7


def test_a_disk_that_hangs_is_not_waited_for_and_holds_one_thread() -> None:
    store = SlowStore()

    async def look() -> None:
        disk, loop = Disk(store), asyncio.get_running_loop()
        before, began = threading.active_count(), loop.time()
        assert await asyncio.gather(*(disk.ask() for _ in range(50))) == [None] * 50
        assert await disk.ask() is None
        assert loop.time() - began < 2.0
        assert (store.asked, threading.active_count() - before) == (1, 1)
        store.goes_on.set()
        deadline = loop.time() + 30
        while (found := await disk.ask()) is None:
            assert loop.time() < deadline
            await asyncio.sleep(0.001)
        assert (found.free_bytes, found.staged_bytes) == (7, 0)
        disk.close()

    asyncio.run(look())


def test_what_the_disk_has_said_is_good_for_a_while() -> None:
    store = SlowStore()
    store.goes_on.set()

    async def look() -> None:
        disk = Disk(store)
        for _ in range(100):
            assert await disk.ask() is not None
        assert store.asked < 5
        disk.close()

    asyncio.run(look())


def test_a_disk_that_fails_is_one_that_says_nothing() -> None:
    class Failing(MemoryStore):
        def free_bytes(self) -> int:
            raise StorageError("gone")

    async def look() -> None:
        disk = Disk(Failing())
        assert await disk.ask() is None
        disk.close()

    asyncio.run(look())


def test_an_answer_comes_also_while_the_disk_hangs(tmp_path: Path) -> None:
    store = SlowStore()
    with running(tmp_path, make_store=lambda *_: store) as receiver:
        receiver.state.mkdir(exist_ok=True)
        try:
            with answering(receiver) as path:
                began = time.monotonic()
                found = status_at(path)
                assert time.monotonic() - began < 2.0
                assert (found["free_bytes"], found["staged_bytes"], found["waiting"]) == (None, None, None)
                store.goes_on.set()
        finally:
            store.goes_on.set()
