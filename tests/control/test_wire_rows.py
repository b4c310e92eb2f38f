"""Claims of docs/wire-tests.md that are about no single kind of request."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.receiving import RunningReceiver, local_store, running
from support.uploading import open_upload
from support.vouching import Vouching

DAY = 86400.0


def test_a_plain_partial_is_kept_for_a_day_and_one_of_a_tdx_sender_for_seven(
    receiver: RunningReceiver,
) -> None:
    part = {"Content-Range": "bytes 0-3/10"}
    assert receiver.request("PUT", "/files/plain", b"half", part).status == 202
    open_upload(receiver, "tdx", 10)
    receiver.restart()  # which lets go of them
    store, now = receiver.running.store, time.time()

    def expired(days: float) -> list[str]:
        return [partial.spec.name for partial in store.expire(now + days * DAY)]

    assert expired(0.9) == []
    assert expired(1.1) == ["plain"]
    assert receiver.request("HEAD", "/files/plain").status == 404
    assert expired(6.9) == []
    assert expired(7.1) == ["tdx"]
    assert receiver.staged() == []


def test_where_a_partial_stands_is_told_to_its_owner_alone(tmp_path: Path) -> None:
    caller = Vouching("local:1")
    with running(tmp_path, providers=[caller]) as receiver:
        receiver.request("PUT", "/files/f", b"half", {"Content-Range": "bytes 0-3/10"})
        assert receiver.request("HEAD", "/files/f").headers["upload-offset"] == "4"
        caller.owner = "local:2"
        assert receiver.request("HEAD", "/files/f").status == 404
        there = receiver.request("PUT", "/files/f", b"other!", {"Content-Range": "bytes 4-9/10"})
        assert (there.status, there.headers["upload-offset"]) == (409, "0")


def test_out_of_memory_is_busy_and_the_receiver_lives_on(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        system.spoil("pwrite", MemoryError())
        answer = receiver.request("PUT", "/files/f", b"content")
        assert (answer.status, answer.problem) == (503, "busy")
        assert receiver.visible() == {}
        assert receiver.request("PUT", "/files/f", b"content").status == 201
        assert receiver.visible() == {"f": b"content"}


@pytest.mark.parametrize("leaf", ["x" * 255, "ü" * 126 + ".mp4"[:3], "x" * 251 + ".iso"])
def test_a_final_name_of_255_bytes_is_published_and_numbered(receiver: RunningReceiver, leaf: str) -> None:
    name = leaf.encode()
    assert len(name) == 255
    target = "/files/" + "".join(f"%{byte:02X}" for byte in name)
    assert receiver.request("PUT", target, b"one").document["path"] == leaf
    numbered = receiver.request("PUT", target, b"two").document["path"]
    assert isinstance(numbered, str)
    assert " (1)" in numbered
    assert len(numbered.encode()) <= 255
    assert receiver.visible() == {leaf: b"one", numbered: b"two"}
