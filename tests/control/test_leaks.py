"""Connections that end at any stage leave nothing behind: no session in use, no lease, no descriptor."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver
from support.uploading import Opened, open_upload
from support.wire import head
from tdx.config import ServeConfig
from tdx.control.serve import assemble
from tdx.control.server import Server
from tdx.store.local import LocalStore

EXTENT = 4 << 20
SIZE = 2 * EXTENT
CONTENT = pattern(SIZE)

Stage = Callable[[Opened], bytes]
"""What has been sent when the connection ends."""


def _commit_head(upload: Opened) -> bytes:
    fields = {**upload.fields, "Upload-Length": SIZE, "Content-Length": 32}
    return head("POST", upload.target + "/commit", fields)


def _range_head(upload: Opened) -> bytes:
    return upload.range_head(0, SIZE, SIZE)


STAGES: dict[str, Stage] = {
    "connected": lambda _: b"",
    "inside the request line": lambda _: b"PUT /fil",
    "inside the fields": lambda _: head("PUT", "/files/f")[:-3],
    "before the answer": lambda _: head("GET", "/v1/hello"),
    "waiting for the body": _range_head,
    "inside the body": lambda upload: _range_head(upload) + CONTENT[:EXTENT],
    "inside an extent": lambda upload: _range_head(upload) + CONTENT[: EXTENT + 9],
    "at the end of the body": lambda upload: _range_head(upload) + CONTENT,
    "inside a whole file": lambda _: (
        head("PUT", "/files/g", {"Content-Length": SIZE, "Tdx-Upload-Key": "k"}) + CONTENT[:EXTENT]
    ),
    "inside a chunk": lambda _: head("PUT", "/files/g", {"Transfer-Encoding": "chunked"}) + b"ffff\r\nabc",
    "inside a commit": lambda upload: _commit_head(upload) + bytes(16),
    "after a refusal": lambda _: (
        head("PUT", "/files/g", {"Content-Length": SIZE, "Host": "evil.example"}) + CONTENT[:EXTENT]
    ),
    "after garbage": lambda _: b"\0\0\0\0",
}


@pytest.mark.parametrize("how", ["close", "reset", "end"])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_connection_that_ends_leaves_nothing_behind(
    receiver: RunningReceiver, stage: Stage, how: str
) -> None:
    upload = open_upload(receiver, "f", SIZE)
    receiver.is_quiet()
    before = receiver.open_files()
    for _ in range(3):
        with receiver.connect() as wire:
            assert wire.request("GET", "/v1/hello").status == 200
            wire.send(stage(upload))
            getattr(wire, how)()
            if how == "end":
                receiver.is_quiet()
    receiver.is_quiet()
    receiver.has_bodies(0)
    assert receiver.metrics.connections_active.value() == 0
    wait_until(lambda: receiver.open_files() <= before, "every descriptor is closed")
    with receiver.connect() as wire:
        # The leases are free again: the whole can be sent and committed.
        assert wire.request("PUT", upload.target, CONTENT, upload.range_fields(0, SIZE, SIZE)).status == 200
    assert upload.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}
    wait_until(lambda: receiver.staged() == [], "nothing is staged")


def test_uploads_that_end_close_their_files(receiver: RunningReceiver) -> None:
    receiver.request("GET", "/v1/hello")
    receiver.is_quiet()
    before = receiver.open_files()
    for number in range(5):
        receiver.request("PUT", f"/files/w{number}", b"whole")
        upload = open_upload(receiver, f"u{number}", SIZE)
        upload.put(receiver, 0, CONTENT, SIZE)
        upload.commit(receiver, CONTENT)
        cancelled = open_upload(receiver, f"c{number}", SIZE)
        receiver.request("DELETE", cancelled.target, headers=cancelled.fields)
        open_upload(receiver, "s", SIZE)
    receiver.is_quiet()
    assert len(receiver.running.sessions) == 1
    wait_until(lambda: receiver.open_files() <= before + 3, "every descriptor but one upload's is closed")


def held(receiver: RunningReceiver, upload: Opened) -> object:
    return receiver.request("GET", upload.target).document["held"]


def test_stopping_keeps_partials_and_closes_everything(receiver: RunningReceiver) -> None:
    receiver.stop()
    before = receiver.open_files()
    receiver.start()
    upload = open_upload(receiver, "f", SIZE)
    with receiver.connect() as wire, receiver.connect() as idle:
        idle.request("GET", "/v1/hello")
        wire.send(upload.range_head(0, SIZE, SIZE) + CONTENT[: EXTENT + 10])
        wait_until(lambda: held(receiver, upload) == [[0, EXTENT]], "the first extent is held")
        receiver.stop()
    assert receiver.open_files() <= before
    receiver.start()
    assert held(receiver, upload) == [[0, EXTENT]]


def test_a_commit_that_is_running_is_finished_before_the_receiver_stops(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = open_upload(receiver, "f", SIZE)
    upload.put(receiver, 0, CONTENT, SIZE)
    begun, go_on = threading.Event(), threading.Event()
    publish = type(next(iter(receiver.running.sessions._open.values())).upload).publish

    def slow(self: object, **options: object) -> object:
        begun.set()
        assert go_on.wait(30)
        return publish(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tdx.store.upload.LocalUpload.publish", slow)
    committing = threading.Thread(target=_commit_regardless, args=(receiver, upload))
    committing.start()
    assert begun.wait(30)
    stopping = threading.Thread(target=receiver.stop)
    stopping.start()
    go_on.set()
    stopping.join(30)
    committing.join(30)
    assert receiver.visible() == {"f": CONTENT}
    receiver.start()
    assert upload.commit(receiver, CONTENT).document["outcome"] == "published"
    assert list(receiver.visible()) == ["f"]


def _commit_regardless(receiver: RunningReceiver, upload: Opened) -> None:
    with receiver.connect() as wire:
        body = b"".join(upload.digests(CONTENT))
        fields = {**upload.fields, "Upload-Length": SIZE, "Content-Length": len(body)}
        wire.send(head("POST", upload.target + "/commit", fields) + body)
        wire.is_closed()


def test_a_connection_that_comes_as_the_receiver_stops_is_closed(tmp_path: Path) -> None:
    async def stop_at_once() -> None:
        near, far = socket.socketpair()
        store = LocalStore(tmp_path / "inbox", tmp_path / "state", reserve=0)
        receiver = assemble(ServeConfig(tmp_path / "inbox", tmp_path / "state"), store, None)
        server = Server(receiver)
        server._acceptor._converse(near)
        await server.stop()  # before its task has run a step
        receiver.workers.close()
        store.close()
        with far:
            assert near.fileno() == -1

    (tmp_path / "inbox").mkdir()
    asyncio.run(stop_at_once())
