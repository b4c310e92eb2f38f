"""Defects of Taildrop, the closest system, that must not be possible here, through the real wire."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from support.datakit import pattern
from support.proxy import Fault, mistreating, once
from support.receiving import RunningReceiver, in_background, push
from support.uploading import open_upload
from support.wire import head
from tdx.control.getting import Ended, GetOptions, Getting
from tdx.control.sender import SenderOptions
from tdx.errors import ConnectionLost

EXTENT = 4 << 20
LARGE = pattern(3 * EXTENT)
SMALL = pattern(2 * EXTENT + 99, seed=7)

pytestmark = pytest.mark.usefixtures("short_waits")


class TestDefect1ASmallerFileOverALargerPartialKeepsTheOldTail:
    def test_with_plain_put(self, receiver: RunningReceiver) -> None:
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/disk.img", {"Content-Length": len(LARGE)}) + LARGE[:-1])
            receiver.has_received(2 * EXTENT)
        receiver.is_quiet()
        answer = receiver.request("PUT", "/files/disk.img", SMALL)
        assert (answer.status, answer.document["size"]) == (201, len(SMALL))
        assert receiver.visible() == {"disk.img": SMALL}

    def test_with_partial_put_from_offset_0(self, receiver: RunningReceiver) -> None:
        fields = {"Content-Range": f"bytes 0-{len(LARGE) - 2}/{len(LARGE)}"}
        receiver.request("PUT", "/files/disk.img", LARGE[:-1], fields)
        fields = {"Content-Range": f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}"}
        assert receiver.request("PUT", "/files/disk.img", SMALL, fields).status == 201
        assert receiver.visible() == {"disk.img": SMALL}

    def test_with_a_source_that_became_smaller(self, receiver: RunningReceiver, tmp_path: Path) -> None:
        source = tmp_path / "disk.img"
        source.write_bytes(LARGE)
        with (
            mistreating(receiver.port, once(Fault("cut", len(LARGE) - 1000))) as proxy,
            pytest.raises(ConnectionLost),
        ):
            push(proxy.peer, source, tmp_path / "sender", sender=SenderOptions(retries=0), streams=1)
        source.write_bytes(SMALL)
        push(receiver.peer, source, tmp_path / "sender", resume=True)
        assert receiver.visible() == {"disk.img": SMALL}


class TestDefect2ASecondPutTruncatesTheLivePartialBeforeItIsRefused:
    @pytest.mark.parametrize("second", [LARGE[::-1], SMALL], ids=["same length", "another length"])
    def test_with_plain_put(self, receiver: RunningReceiver, second: bytes) -> None:
        with receiver.connect() as first:
            first.send(head("PUT", "/files/disk.img", {"Content-Length": len(LARGE)}) + LARGE[: 2 * EXTENT])
            receiver.has_received(EXTENT)
            assert receiver.request("PUT", "/files/disk.img", second).status == 201
            answer = first.send(LARGE[2 * EXTENT :]).answer()
        assert (answer.status, answer.document["path"]) == (201, "disk (1).img")
        assert receiver.visible() == {"disk.img": second, "disk (1).img": LARGE}

    def test_with_a_refused_writer_of_the_same_upload(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "disk.img", len(LARGE))
        with receiver.connect() as first:
            first.send(upload.range_head(0, len(LARGE), len(LARGE)) + LARGE[: 2 * EXTENT])
            receiver.has_received(EXTENT)
            assert upload.put(receiver, 0, bytes(EXTENT), len(LARGE)).status == 409
            assert first.send(LARGE[2 * EXTENT :]).answer().status == 200
        assert upload.commit(receiver, LARGE).status == 200
        assert receiver.visible() == {"disk.img": LARGE}


class TestDefect3AResumedUploadIsDeletedUnderItsSendersFeet:
    def test_an_upload_in_use_never_expires(self, receiver: RunningReceiver, tmp_path: Path) -> None:
        source = tmp_path / "disk.img"
        source.write_bytes(LARGE)
        slowly = SenderOptions(limit_rate=20e6, stall_timeout=10.0)
        with in_background(
            lambda: push(receiver.peer, source, tmp_path / "sender", sender=slowly, resume=True)
        ) as pushing:
            receiver.has_received(EXTENT)
            in_a_year = time.time() + 365 * 86400
            assert receiver.running.store.expire(in_a_year) == []
            assert receiver.running.store.expire(in_a_year, older_than=0.0) == []
        assert pushing.result().size == len(LARGE)
        assert receiver.visible() == {"disk.img": LARGE}

    @pytest.mark.parametrize("days", [0.9, 1.1])
    def test_a_plain_partial_lives_for_a_day_after_its_last_byte(
        self, receiver: RunningReceiver, days: float
    ) -> None:
        fields = {"Content-Range": f"bytes 0-{EXTENT - 1}/{len(LARGE)}"}
        receiver.request("PUT", "/files/disk.img", LARGE[:EXTENT], fields)
        receiver.restart()
        removed = receiver.running.store.expire(time.time() + days * 86400)
        assert len(removed) == (days > 1)
        assert len(receiver.staged()) == (days < 1)

    def test_an_abandoned_upload_lives_for_a_week(self, receiver: RunningReceiver) -> None:
        open_upload(receiver, "disk.img", len(LARGE))
        receiver.restart()
        assert receiver.running.store.expire(time.time() + 6.9 * 86400) == []
        assert len(receiver.running.store.expire(time.time() + 7.1 * 86400)) == 1


class TestDefect5WhatFailsLeavesATruncatedFileUnderTheFinalName:
    @pytest.mark.parametrize("sent", [0, 1, EXTENT, len(LARGE) - 1])
    def test_nothing_is_visible_before_it_is_whole(self, receiver: RunningReceiver, sent: int) -> None:
        with receiver.connect() as wire:
            wire.send(head("PUT", "/files/folder/disk.img", {"Content-Length": len(LARGE)}) + LARGE[:sent])
            receiver.has_bodies(1)
            assert receiver.visible() == {}
            wire.reset()
        receiver.is_quiet()
        assert receiver.visible() == {}

    def test_overwriting_keeps_the_old_file_until_the_new_one_is_whole(
        self, receiver: RunningReceiver, tmp_path: Path
    ) -> None:
        receiver.request("PUT", "/files/disk.img", SMALL)
        inode = (receiver.folder / "disk.img").stat().st_ino
        upload = open_upload(receiver, "disk.img", len(LARGE), {"Tdx-Conflict": "overwrite"})
        upload.put(receiver, 0, LARGE[:EXTENT], len(LARGE))
        assert upload.commit(receiver, LARGE).status == 409
        assert receiver.visible() == {"disk.img": SMALL}
        assert (receiver.folder / "disk.img").stat().st_ino == inode
        upload.put(receiver, EXTENT, LARGE[EXTENT:], len(LARGE))
        assert upload.commit(receiver, LARGE).status == 200
        assert receiver.visible() == {"disk.img": LARGE}

    def test_no_byte_is_stored_twice(self, receiver: RunningReceiver) -> None:
        upload = open_upload(receiver, "disk.img", len(LARGE))
        upload.put(receiver, 0, LARGE, len(LARGE))
        (staged,) = receiver.staged()
        inode = os.stat(staged / "data").st_ino
        upload.commit(receiver, LARGE)
        assert (receiver.folder / "disk.img").stat().st_ino == inode


class TestDefect5GettingAFileCopiesAndLeavesATruncatedOne:
    """What `tdx get` does where it fails or is killed, at every call: tests/store/test_moving.py."""

    def test_on_one_filesystem_not_a_byte_is_copied(self, receiver: RunningReceiver, tmp_path: Path) -> None:
        assert receiver.request("PUT", "/files/a/disk.img", SMALL).status == 201
        before = (receiver.folder / "a" / "disk.img").stat()
        moved = self.get(receiver, tmp_path)
        assert [(each.file.path, each.error) for each in moved] == [("a/disk.img", None)]
        after = (tmp_path / "dest" / "a" / "disk.img").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert receiver.visible() == {}

    def test_a_name_that_is_taken_is_never_written_over(
        self, receiver: RunningReceiver, tmp_path: Path
    ) -> None:
        (tmp_path / "dest").mkdir()
        (tmp_path / "dest" / "disk.img").write_bytes(b"mine")
        assert receiver.request("PUT", "/files/disk.img", SMALL).status == 201
        (moved,) = self.get(receiver, tmp_path)
        numbered = tmp_path / "dest" / "disk (1).img"
        assert moved.path == numbered
        assert (tmp_path / "dest" / "disk.img").read_bytes() == b"mine"
        assert numbered.read_bytes() == SMALL

    def test_the_twelfth_of_a_name_is_moved_like_the_first(
        self, receiver: RunningReceiver, tmp_path: Path
    ) -> None:
        for number in range(12):
            assert receiver.request("PUT", "/files/f.txt", f"{number}".encode()).status == 201
            assert len(self.get(receiver, tmp_path)) == 1
        names = {"f.txt", *(f"f ({number}).txt" for number in range(1, 12))}
        assert {path.name for path in (tmp_path / "dest").iterdir()} == names

    def get(self, receiver: RunningReceiver, tmp_path: Path) -> list[Ended]:
        (tmp_path / "dest").mkdir(exist_ok=True)
        ended: list[Ended] = []
        options = GetOptions(receiver.folder, receiver.state, tmp_path / "dest")
        Getting(options, NeverStop(), ended.append).run()
        return ended


class NeverStop:
    def check(self) -> None:
        pass

    def wait(self, seconds: float) -> None:
        raise AssertionError("nothing is waited for")
