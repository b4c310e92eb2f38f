"""What a receiver does by itself: few idle claims, early rechecks, an end without a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from store.faulty import FaultySystem
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, running
from support.uploading import open_upload
from tdx.config import ServeConfig
from tdx.control import server as serving
from tdx.control import sessions
from tdx.control.serve import assemble
from tdx.control.server import Server
from tdx.integrity import digest_of
from tdx.model import FileName, Owner, Span, UploadSpec
from tdx.store.local import LocalStore
from tdx.store.port import Piece
from tdx.store.syscalls import System

EXTENT = 4 << 20
CONTENT = pattern(2 * EXTENT + 5)


def test_few_claims_are_kept_for_uploads_that_nobody_is_sending(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MOST_IDLE", 2)
    uploads = [open_upload(receiver, f"f{number}", 3, source=f"s{number}") for number in range(6)]
    assert len(receiver.running.sessions) <= 4
    for upload in uploads:
        assert upload.put(receiver, 0, b"abc", 3).status == 200
        assert upload.commit(receiver, b"abc").status == 200
    assert receiver.visible() == {f"f{number}": b"abc" for number in range(6)}


def test_what_a_killed_receiver_may_have_lost_is_read_again_while_the_rest_is_sent(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    killed = FaultySystem(System().boot_id())
    store = LocalStore(inbox, tmp_path / "state", reserve=0, system=killed)
    spec = UploadSpec(
        Owner(f"local:{os.getuid()}"), FileName("f"), len(CONTENT), EXTENT, source_id="s1", fingerprint="1"
    )
    upload = store.create(spec)
    for start in (0, EXTENT):
        span = Span(start, start + EXTENT)
        upload.write_at(memoryview(CONTENT)[span.start : span.end], span.start)
        upload.record(Piece(span, digest_of(CONTENT[span.start : span.end])))
    killed.die()
    staged = inbox / ".tdx" / "uploads" / upload.id / "data"
    with staged.open("r+b") as data:
        data.seek(EXTENT + 17)
        data.write(b"lost")
    with running(tmp_path) as receiver:
        again = open_upload(receiver, "f", len(CONTENT), {"Tdx-Resume": "?1", "Tdx-Fingerprint": "1"})
        wait_until(
            lambda: (
                receiver.request("GET", again.target, b"", again.fields).document["held"] == [[0, EXTENT]]
            ),
            "what was lost is no longer held",
        )
        assert again.put(receiver, EXTENT, CONTENT[EXTENT:], len(CONTENT)).status == 200
        assert again.commit(receiver, CONTENT).status == 200
        assert receiver.visible() == {"f": CONTENT}


async def test_a_receiver_whose_folder_is_removed_has_nothing_left_to_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HOUSEKEEPING_SECONDS", 0.01)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    config = ServeConfig(folder=inbox, state=tmp_path / "state", listen=(("127.0.0.1", 0),))
    store = LocalStore(inbox, config.state, reserve=0)
    receiver = assemble(config, store)
    server = Server(receiver)
    try:
        await server.start()
        assert not server.folder_gone.is_set()
        shutil.rmtree(inbox)
        async with asyncio.timeout(30):
            await server.folder_gone.wait()
    finally:
        await server.stop()
        receiver.workers.close()
        store.close()
