"""A disk that fails at the wrong moment: nothing is acknowledged that is not durable."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.faulty import FaultySystem
from support.receiving import RunningReceiver, local_store, running
from support.uploading import open_upload
from tdx.errors import StorageError
from tdx.integrity import digest_of
from tdx.model import Receipt
from tdx.store.receipts import Receipts

CONTENT = b"small enough for one extent"


@pytest.fixture
def system() -> FaultySystem:
    return FaultySystem()


@pytest.fixture
def receiver(tmp_path: Path, system: FaultySystem) -> Iterator[RunningReceiver]:
    with running(tmp_path, make_store=local_store(system)) as started:
        yield started


def keyed(content: bytes, key: str) -> dict[str, str]:
    digest = b64encode(digest_of(content)).decode()
    return {"Tdx-Upload-Key": key, "Content-Digest": f"xxh3-128=:{digest}:"}


def test_identical_is_not_said_of_a_file_that_cannot_be_synced(
    receiver: RunningReceiver, system: FaultySystem
) -> None:
    assert receiver.request("PUT", "/files/f", CONTENT, keyed(CONTENT, "a")).status == 201
    system.fail("fsync", 5, times=10)
    answer = receiver.request("PUT", "/files/f", CONTENT, keyed(CONTENT, "b"))
    assert (answer.status, answer.problem) == (500, "storage")
    system.heal()
    receiver.restart()
    assert (
        receiver.request("PUT", "/files/f", CONTENT, keyed(CONTENT, "c")).document["outcome"] == "identical"
    )
    assert receiver.visible() == {"f": CONTENT}


def test_whole_files_that_cannot_be_published_leave_no_copies(
    receiver: RunningReceiver, system: FaultySystem
) -> None:
    system.fail("fsync", 5, times=100)
    for attempt in range(3):
        assert receiver.request("PUT", "/files/f", CONTENT, keyed(CONTENT, str(attempt))).status == 500
    system.heal()
    assert receiver.staged() == []
    assert receiver.visible() == {}


def test_a_commit_is_answered_once_its_receipt_can_be_stored(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = open_upload(receiver, "f", len(CONTENT))
    assert upload.put(receiver, 0, CONTENT, len(CONTENT)).status == 200
    store, failures = Receipts.put, iter([True])

    def put(self: Receipts, receipt: Receipt, **more: Any) -> None:
        if next(failures, False):
            raise StorageError("the receipts are locked")
        store(self, receipt, **more)

    monkeypatch.setattr(Receipts, "put", put)
    assert upload.commit(receiver, CONTENT).status == 500
    answer = upload.commit(receiver, CONTENT)
    assert (answer.status, answer.document["outcome"]) == (200, "published")
    assert receiver.visible() == {"f": CONTENT}
    assert receiver.staged() == []


def test_an_upload_that_a_failed_sync_has_spoiled_is_taken_up_again(
    receiver: RunningReceiver, system: FaultySystem
) -> None:
    resume = {"Tdx-Resume": "?1", "Tdx-Fingerprint": hashlib.sha256(CONTENT).hexdigest()}
    upload = open_upload(receiver, "f", len(CONTENT), resume)
    assert upload.put(receiver, 0, CONTENT, len(CONTENT)).status == 200
    system.fail("fdatasync", 5)
    assert (
        receiver.request(
            "POST",
            "/files/f",
            b"",
            {"Upload-Complete": "?0", "Upload-Length": len(CONTENT), "Tdx-Source": "s1", **resume},
        ).status
        == 500
    )  # raising the epoch could not be made durable
    system.heal()
    again = open_upload(receiver, "f", len(CONTENT), resume)
    assert again.created.status == 201
    assert again.put(receiver, 0, CONTENT, len(CONTENT)).status == 200
    assert again.commit(receiver, CONTENT).status == 200
    assert receiver.visible() == {"f": CONTENT}


def test_a_part_that_cannot_be_held_against_its_digest_does_not_count(
    receiver: RunningReceiver, system: FaultySystem
) -> None:
    upload = open_upload(receiver, "f", None, source=None)
    digest = b64encode(hashlib.sha256(CONTENT).digest()).decode()
    fields = {
        "Content-Type": "application/partial-upload",
        "Content-Digest": f"sha-256=:{digest}:",
        "Upload-Offset": 0,
        "Upload-Complete": "?0",
    }
    system.fail("preadv", 5)
    answer = receiver.request("PATCH", upload.target, CONTENT, fields)
    assert (answer.status, answer.problem) == (500, "storage")
    system.heal()
    assert receiver.request("HEAD", upload.target).headers["upload-offset"] == "0"
    assert receiver.request("PATCH", upload.target, CONTENT, fields).status == 204
