"""Epochs: a newer run takes an upload over, and the older one cannot touch it any more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from store.faulty import FaultySystem, nothing
from support.datakit import pattern
from support.processes import wait_until
from support.receiving import RunningReceiver, local_store, running
from support.uploading import Opened, open_upload
from support.wire import Answer
from tdx.model import FileName, Owner, Receipt, UploadId
from tdx.store.local import LocalStore
from tdx.store.port import Existing

EXTENT = 4 << 20
SIZE = 2 * EXTENT + 1000
CONTENT = pattern(SIZE)
RESUME = {"Tdx-Resume": "?1"}


def is_superseded(answer: Answer) -> bool:
    return (answer.status, answer.problem) == (409, "superseded")


def test_a_new_run_goes_on_from_what_is_held_under_a_new_epoch(receiver: RunningReceiver) -> None:
    first = open_upload(receiver, "f", SIZE, {"Tdx-Fingerprint": "p1"})
    first.put(receiver, 0, CONTENT[:EXTENT], SIZE)
    second = open_upload(receiver, "f", SIZE, {**RESUME, "Tdx-Fingerprint": "p1"})
    assert second.id == first.id
    told = {name: second.created.document[name] for name in ("epoch", "held", "resumed", "unchanged")}
    assert told == {"epoch": 2, "held": [[0, EXTENT]], "resumed": True, "unchanged": True}
    third = open_upload(receiver, "f", SIZE, {**RESUME, "Tdx-Fingerprint": "p2"})
    assert third.created.document["epoch"] == 3
    assert third.created.document["unchanged"] is False
    assert receiver.metrics.resumes.value() == 2
    assert receiver.metrics.resumed_bytes.value() == 2 * EXTENT


def test_the_older_epoch_is_refused_everything(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    new = open_upload(receiver, "f", SIZE, RESUME)
    assert is_superseded(old.put(receiver, 0, CONTENT[:EXTENT], SIZE))
    assert is_superseded(old.commit(receiver, CONTENT))
    assert is_superseded(receiver.request("DELETE", old.target, headers=old.fields))
    fields = {**old.fields, "Upload-Offset": 0, "Upload-Complete": "?0"}
    fields["Content-Type"] = "application/partial-upload"
    assert is_superseded(receiver.request("PATCH", old.target, b"x", fields))
    assert new.put(receiver, 0, CONTENT, SIZE).status == 200
    assert new.commit(receiver, CONTENT).status == 200


def test_the_older_epoch_is_told_so_also_when_the_newer_one_has_finished(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    new = open_upload(receiver, "f", SIZE, RESUME)
    new.put(receiver, 0, CONTENT, SIZE)
    assert new.commit(receiver, CONTENT).status == 200
    assert is_superseded(old.put(receiver, 0, CONTENT[:EXTENT], SIZE))
    assert is_superseded(old.commit(receiver, CONTENT))
    assert is_superseded(receiver.request("GET", old.target, headers=old.fields))
    assert receiver.request("GET", new.target, headers=new.fields).document["state"] == "published"


def test_a_question_that_meets_the_publication_is_answered(tmp_path: Path) -> None:
    meanwhile: list[Callable[[], Answer]] = []

    class Met(LocalStore):
        def receipt(self, upload: UploadId) -> Receipt | None:
            found = super().receipt(upload)
            while meanwhile:
                assert meanwhile.pop()().status == 200
            return found

    with running(tmp_path, make_store=lambda folder, state: Met(folder, state, reserve=0)) as receiver:
        old = open_upload(receiver, "f", SIZE)
        new = open_upload(receiver, "f", SIZE, RESUME)
        new.put(receiver, 0, CONTENT, SIZE)
        meanwhile.append(lambda: new.commit(receiver, CONTENT))
        assert is_superseded(receiver.request("GET", old.target, headers=old.fields))


def test_a_run_that_is_overtaken_before_it_has_its_answer_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    """Or two runs would both be the newest."""
    meanwhile: list[Callable[[], None]] = []

    class Overtaken(LocalStore):
        def look_alikes(self, owner: Owner, name: FileName, size: int) -> list[Existing]:
            if meanwhile:
                meanwhile.pop()()
            return super().look_alikes(owner, name, size)

    newer: list[Opened] = []
    with running(tmp_path, make_store=lambda folder, state: Overtaken(folder, state, reserve=0)) as receiver:
        open_upload(receiver, "f", SIZE)
        # It is asked for before the upload is taken over, and once more before the answer.
        meanwhile.append(lambda: newer.append(open_upload(receiver, "f", SIZE, RESUME)))
        meanwhile.append(lambda: None)
        older = open_upload(receiver, "f", SIZE, RESUME)
        assert is_superseded(older.put(receiver, 0, CONTENT, SIZE))
        assert newer[0].put(receiver, 0, CONTENT, SIZE).status == 200


def test_epochs_outlive_the_receiver(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    new = open_upload(receiver, "f", SIZE, RESUME)
    receiver.restart()
    assert is_superseded(old.put(receiver, 0, CONTENT[:EXTENT], SIZE))
    assert new.put(receiver, 0, CONTENT[:EXTENT], SIZE).status == 200


@pytest.mark.parametrize("pump", ["buffered", "splice"])
def test_after_a_takeover_is_answered_nothing_of_the_older_run_is_written(tmp_path: Path, pump: str) -> None:
    with running(tmp_path, pump=pump) as receiver:
        old = open_upload(receiver, "f", SIZE)
        wrong = bytes(SIZE)
        with receiver.connect() as late:
            late.send(old.range_head(0, SIZE, SIZE) + b"\xee" * (EXTENT // 2))
            receiver.has_received(EXTENT // 2)
            new = open_upload(receiver, "f", SIZE, RESUME)
            receiver.has_bodies(0)
            (staged,) = receiver.staged()
            before = (staged / "data").read_bytes()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                late.send(b"\xee" * (64 << 20))
            assert (staged / "data").read_bytes() == before
            assert new.created.document["held"] == []
            assert new.put(receiver, 0, wrong, SIZE).status == 200
        assert new.commit(receiver, wrong).status == 200
        assert receiver.visible() == {"f": wrong}


def test_a_body_that_slips_in_while_the_epoch_is_raised_is_cut_off_too(tmp_path: Path) -> None:
    system = FaultySystem()
    with running(tmp_path, make_store=local_store(system)) as receiver:
        old = open_upload(receiver, "f", SIZE)
        old.put(receiver, 2 * EXTENT, CONTENT[2 * EXTENT :], SIZE)
        slow, go_on = threading.Event(), threading.Event()

        def hold(name: str, arguments: tuple[object, ...]) -> None:
            if name in ("write", "pwrite", "fdatasync") and threading.current_thread().name.startswith(
                "tdx-disk"
            ):
                slow.set()
                assert go_on.wait(30)

        system.before = hold
        opened: list[Opened] = []
        taker = threading.Thread(target=lambda: opened.append(open_upload(receiver, "f", SIZE, RESUME)))
        taker.start()
        assert slow.wait(30)
        with receiver.connect() as late:
            late.send(old.range_head(0, EXTENT, SIZE) + bytes(100))
            receiver.has_bodies(1)
            go_on.set()
            taker.join(30)
            receiver.has_bodies(0)
            assert late.is_closed()
        system.before = nothing
        assert is_superseded(old.put(receiver, 0, bytes(EXTENT), SIZE))
        (new,) = opened
        assert new.put(receiver, 0, CONTENT[: 2 * EXTENT], SIZE).status == 200
        assert new.commit(receiver, CONTENT).status == 200
        assert receiver.visible() == {"f": CONTENT}


def test_a_fresh_upload_replaces_the_partial_of_the_same_source(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    old.put(receiver, 0, CONTENT[:EXTENT], SIZE)
    new = open_upload(receiver, "f", SIZE)
    assert new.id != old.id
    assert new.created.document["held"] == []
    assert len(receiver.staged()) == 1
    for answer in (
        old.put(receiver, 0, CONTENT[:EXTENT], SIZE),
        old.commit(receiver, CONTENT),
        receiver.request("GET", old.target),
        receiver.request("DELETE", old.target, headers=old.fields),
    ):
        assert is_superseded(answer)
    assert receiver.uploads_ended("tdx", "superseded") == 1


def test_a_fresh_upload_cuts_off_the_body_of_the_older_run(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    with receiver.connect() as late:
        late.send(old.range_head(0, SIZE, SIZE) + CONTENT[:100])
        receiver.has_bodies(1)
        open_upload(receiver, "f", SIZE)
        receiver.has_bodies(0)
        assert late.is_closed()
    assert len(receiver.staged()) == 1


def test_another_length_of_the_source_is_another_upload(receiver: RunningReceiver) -> None:
    old = open_upload(receiver, "f", SIZE)
    new = open_upload(receiver, "f", SIZE + 1, RESUME)
    assert new.id != old.id
    assert len(receiver.staged()) == 1


@pytest.mark.parametrize("resume", [{}, RESUME])
def test_two_sources_under_one_name_never_share_an_upload(
    receiver: RunningReceiver, resume: dict[str, object]
) -> None:
    one = open_upload(receiver, "f", SIZE, source="s1")
    two = open_upload(receiver, "f", SIZE, resume, source="s2")
    assert one.id != two.id
    assert one.put(receiver, 0, CONTENT, SIZE).status == 200
    assert two.put(receiver, 0, bytes(SIZE), SIZE).status == 200
    assert one.commit(receiver, CONTENT).document["path"] == "f"
    assert two.commit(receiver, bytes(SIZE)).document["path"] == "f (1)"


def test_bytes_of_a_late_writer_never_reach_the_published_file(receiver: RunningReceiver) -> None:
    """The older run is blocked in the middle of an extent while the newer one commits."""
    old = open_upload(receiver, "f", SIZE)
    with receiver.connect() as late:
        late.send(old.range_head(0, EXTENT, SIZE) + b"\xee" * (EXTENT // 2))
        receiver.has_received(EXTENT // 2)
        new = open_upload(receiver, "f", SIZE, RESUME)
        new.put(receiver, 0, CONTENT, SIZE)
        assert new.commit(receiver, CONTENT).status == 200
        with contextlib.suppress(OSError):
            late.send(b"\xee" * (EXTENT // 2))
        assert receiver.visible() == {"f": CONTENT}
    receiver.is_quiet()
    assert receiver.visible() == {"f": CONTENT}


def test_overlapping_runs_do_not_cut_each_other_off_for_ever(receiver: RunningReceiver) -> None:
    runs = [open_upload(receiver, "f", SIZE, RESUME) for _ in range(3)]
    assert [run.created.document["epoch"] for run in runs] == [1, 2, 3]
    assert is_superseded(runs[0].put(receiver, 0, CONTENT, SIZE))
    assert is_superseded(runs[1].put(receiver, 0, CONTENT, SIZE))
    assert runs[2].put(receiver, 0, CONTENT, SIZE).status == 200


def test_an_upload_that_another_process_holds_is_busy(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", SIZE)
    receiver.stop()
    beside = LocalStore(receiver.folder, receiver.state, reserve=0, exclusive=False)
    claimed = beside.open(upload.id)  # type: ignore[arg-type]
    try:
        receiver.start()
        answer = upload.put(receiver, 0, CONTENT[:EXTENT], SIZE)
        assert (answer.status, answer.problem) == (409, "upload-busy")
    finally:
        claimed.close()
        beside.close()
    assert upload.put(receiver, 0, CONTENT[:EXTENT], SIZE).status == 200


def test_an_idle_upload_is_let_go_and_found_again(
    receiver: RunningReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdx.control.sessions.IDLE_SECONDS", -1.0)
    monkeypatch.setattr("tdx.control.server.HOUSEKEEPING_SECONDS", 0.01)
    receiver.restart()
    before = receiver.open_files()
    upload = open_upload(receiver, "f", SIZE)
    upload.put(receiver, 0, CONTENT[:EXTENT], SIZE)
    wait_until(lambda: len(receiver.running.sessions) == 0, "the upload is let go")
    wait_until(lambda: receiver.open_files() <= before, "its files are closed")
    assert upload.put(receiver, EXTENT, CONTENT[EXTENT:], SIZE).status == 200
    assert upload.commit(receiver, CONTENT).status == 200
