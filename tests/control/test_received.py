"""Every byte that a receiver has received is held, or is counted as one that is not, and why."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.test_patches import FIRST_BLOCK, OVER, SECOND, SIZE, ask, listed, patch, patch_of
from support import bundle_wire
from support.datakit import pattern
from support.receiving import RunningReceiver, local_store, running
from support.uploading import Opened, open_upload
from support.wire import chunked, head
from tdx.control.sessions import Sessions
from tdx.control.workers import Workers
from tdx.integrity import BLOCK, MIN_EXTENT, PART, digest_of, extent_span
from tdx.metrics import Discard, Metrics
from tdx.model import FileName, Owner, Span, UploadSpec
from tdx.policy.admission import Limits
from tdx.store.memory import MemoryStore
from tdx.store.port import Piece

EXTENT = MIN_EXTENT
LENGTH = 2 * EXTENT + 3 * PART + 7
CONTENT = pattern(LENGTH)
WRONG = {"Content-Digest": f"xxh3-128=:{'A' * 22}==:"}


def received(receiver: RunningReceiver) -> int:
    return int(sum(receiver.metrics.received_bytes.value((name,)) for name in ("tdx", "http")))


def discarded(receiver: RunningReceiver) -> dict[str, int]:
    """What is not kept, by the reasons that there are."""
    counted = {reason.value: int(receiver.metrics.discarded_bytes.value((reason,))) for reason in Discard}
    return {reason: count for reason, count in counted.items() if count}


def held(receiver: RunningReceiver) -> int:
    """What is in its folder, of which nothing has come otherwise than over the wire; it is stopped."""
    store = receiver.make_store(receiver.folder, receiver.state)
    try:
        total = sum(path.stat().st_size for path in receiver.folder.iterdir() if path.is_file())
        for partial in store.partials():
            upload = store.open(partial.upload)
            total += upload.held.total()
            upload.close()
        return total
    finally:
        store.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    limits = Limits(max_file=5 * EXTENT)
    started = RunningReceiver(tmp_path / "inbox", tmp_path / "state", limits, local_store())
    started.folder.mkdir()
    started.start()
    yield started
    started.stop()


class Traffic:
    """What clients of all kinds do, as chance has it; what goes wrong on the way is part of it."""

    def __init__(self, receiver: RunningReceiver, seed: int) -> None:
        self.receiver = receiver
        self.chance = random.Random(seed)
        self.uploads: list[Opened] = []
        self.appended: list[Opened] = []
        self.received = 0
        self.discarded = 0
        self.reasons: set[str] = set()

    def settle(self) -> None:
        """Stop the receiver, and take down what it has counted."""
        self.receiver.is_quiet()
        self.receiver.stop()
        self.received += received(self.receiver)
        lost = discarded(self.receiver)
        self.discarded += sum(lost.values())
        self.reasons |= lost.keys()

    def step(self) -> None:
        actions = (
            self.open,
            self.put,
            self.put,
            self.put,
            self.put_part,
            self.put_part,
            self.commit,
            self.cancel,
            self.put_whole,
            self.append,
            self.append,
            self.bundle,
            self.restart,
        )
        self.chance.choice(actions)()

    def open(self) -> None:
        name, resume = f"n{self.chance.randrange(2)}", self.chance.choice(["?0", "?1", "?1"])
        self.uploads.append(open_upload(self.receiver, name, LENGTH, {"Tdx-Resume": resume}))

    def _send(self, begin: bytes, body: bytes) -> None:
        """A request whose body comes whole, or breaks off somewhere."""
        whole = self.chance.random() < 0.6
        with self.receiver.connect() as wire, contextlib.suppress(OSError, AssertionError):
            wire.request("GET", "/v1/hello")  # who goes away before it is known who it is, is nobody
            if whole:
                wire.send(begin + body).answer()
            else:
                wire.send(begin + body[: self.chance.randrange(len(body))])
                self.chance.choice((wire.reset, wire.end))()
        self.receiver.is_quiet()

    def _upload(self) -> Opened:
        if not self.uploads:
            self.open()
        return self.chance.choice(self.uploads)

    def put(self) -> None:
        upload, first = self._upload(), self.chance.randrange(3)
        span = extent_span(first, LENGTH, EXTENT)
        more = WRONG if self.chance.random() < 0.2 else {}
        spoilt = self.chance.random() < 0.2
        body = bytes(len(span)) if spoilt else CONTENT[span.start : span.end]
        fields = {**upload.range_fields(span.start, span.end, LENGTH), **more}
        self._send(head("PUT", upload.target, fields), body)

    def put_part(self) -> None:
        upload, index = self._upload(), self.chance.randrange(3)
        span = extent_span(index, LENGTH, EXTENT)
        cuts = [span.start, *range(span.start + PART, span.end, 3 * PART), span.end]
        at = self.chance.randrange(len(cuts) - 1)
        for start, end in list(zip(cuts, cuts[1:], strict=False))[at : at + 4]:
            self._send(
                head("PUT", upload.target, upload.range_fields(start, end, LENGTH)), CONTENT[start:end]
            )

    def commit(self) -> None:
        upload = self._upload()
        if self.chance.random() < 0.6:
            for index in range(3):
                span = extent_span(index, LENGTH, EXTENT)
                upload.put(self.receiver, span.start, CONTENT[span.start : span.end], LENGTH)
        upload.commit(self.receiver, CONTENT)

    def cancel(self) -> None:
        upload = self._upload()
        self.receiver.request("DELETE", upload.target, headers=upload.fields)

    def put_whole(self) -> None:
        size = self.chance.choice([1, 70_000, EXTENT + 5, 6 * EXTENT])
        body = pattern(size)
        fields: dict[str, object] = {"Content-Length": size}
        if self.chance.random() < 0.5:
            fields["Tdx-Upload-Key"] = f"key{self.chance.randrange(1000)}"
        if self.chance.random() < 0.3:
            fields |= WRONG
        if self.chance.random() < 0.3:
            fields = {"Transfer-Encoding": "chunked"}
            body = chunked([body])
        self._send(head("PUT", f"/files/w{size}", fields), body)

    def append(self) -> None:
        if not self.appended or self.chance.random() < 0.3:
            length = self.chance.choice([LENGTH, None])
            self.appended.append(open_upload(self.receiver, "a", length, source=None))
        upload = self.chance.choice(self.appended)
        told = self.receiver.request("HEAD", upload.target)
        if told.status != 204:
            return
        at = int(told.headers["upload-offset"])
        end = min(at + self.chance.choice([1, 1000, EXTENT, EXTENT + 9]), LENGTH)
        body = CONTENT[at:end] + (b"beyond" if self.chance.random() < 0.1 else b"")
        if not body:
            return
        fields: dict[str, object] = {
            "Content-Type": "application/partial-upload",
            "Upload-Offset": at,
            "Upload-Complete": self.chance.choice(["?0", "?0", "?1"]),
            "Content-Length": len(body),
        }
        if self.chance.random() < 0.2:
            fields |= WRONG
        self._send(head("PATCH", upload.target, fields), body)

    def bundle(self) -> None:
        entries = []
        for _ in range(self.chance.randrange(1, 5)):
            content = pattern(self.chance.choice([0, 10, 100_000, 300_000]))
            wrong = {"digest": "0" * 32} if self.chance.random() < 0.2 else {}
            name = self.chance.choice(["b", "../b", "b2"])
            key = f"b{self.chance.randrange(6)}"
            entries.append(bundle_wire.entry(name, content, key, **wrong))
        body = b"".join(entries) + bundle_wire.END
        self._send(head("POST", "/files", {**bundle_wire.fields(), "Content-Length": len(body)}), body)

    def restart(self) -> None:
        self.settle()
        self.receiver.start()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_clients_do_each_byte_is_held_or_counted_as_lost(
    receiver: RunningReceiver, seed: int
) -> None:
    traffic = Traffic(receiver, seed)
    for _ in range(50):
        traffic.step()
    traffic.settle()
    assert traffic.received - traffic.discarded == held(receiver)
    assert len(traffic.reasons) > 1


# --- each reason -------------------------------------------------------------


def test_a_body_that_breaks_off_inside_an_extent_is_lost_from_there(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    with receiver.connect() as wire:
        wire.request("GET", "/v1/hello")
        wire.send(upload.range_head(0, 2 * EXTENT, LENGTH) + CONTENT[: EXTENT + 12345])
    receiver.is_quiet()
    assert received(receiver) == EXTENT + 12345
    assert discarded(receiver) == {"broken_off": 12345}


def test_the_seconds_of_a_body_that_breaks_off_are_counted(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    with receiver.connect() as wire:
        wire.request("GET", "/v1/hello")
        wire.send(upload.range_head(0, EXTENT, LENGTH) + CONTENT[: EXTENT - 1])
    receiver.is_quiet()
    for stage in ("receive", "hash", "write"):
        assert receiver.metrics.stage_seconds.value((stage,)) > 0


def test_an_append_that_breaks_off_loses_nothing(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        wire.request("GET", "/v1/hello")
        wire.send(head("PUT", "/files/f", {"Content-Length": LENGTH}) + CONTENT[:12345])
    receiver.is_quiet()
    assert (received(receiver), discarded(receiver)) == (12345, {})


def test_an_extent_that_is_held_already_is_dropped(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    for _ in range(2):
        upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH)
    assert discarded(receiver) == {"held": EXTENT}


def test_a_digest_that_is_not_right_loses_all_of_the_extent(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    assert upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH, WRONG).status == 400
    assert discarded(receiver) == {"mismatch": EXTENT}


def test_what_a_repair_replaces_was_held_and_is_invalid(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    upload.put(receiver, 0, bytes(EXTENT), LENGTH)
    upload.put(receiver, EXTENT, CONTENT[EXTENT:], LENGTH)
    assert upload.commit(receiver, CONTENT).status == 409
    assert discarded(receiver) == {"invalidated": EXTENT}


def test_what_an_earlier_run_left_of_an_upload_that_is_cancelled_counts_too(
    receiver: RunningReceiver,
) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH)
    receiver.restart()
    again = open_upload(receiver, "f", LENGTH, {"Tdx-Resume": "?1"})
    receiver.request("DELETE", again.target, headers=again.fields)
    assert (received(receiver), discarded(receiver)) == (0, {"abandoned": EXTENT})


def test_what_expires_is_abandoned(receiver: RunningReceiver) -> None:
    upload = open_upload(receiver, "f", LENGTH, {"Tdx-Holes": f"{EXTENT}-{2 * EXTENT - 1}"})
    upload.put(receiver, 0, CONTENT[:EXTENT], LENGTH)
    receiver.stop()
    store = receiver.make_store(receiver.folder, receiver.state)
    (partial,) = store.expire(1e12)
    store.close()
    assert partial.received == EXTENT


def test_what_goes_beyond_the_length_of_its_upload_is_refused_and_all_of_it_given_up(
    receiver: RunningReceiver,
) -> None:
    upload = open_upload(receiver, "f", LENGTH, source=None)
    fields = {
        "Content-Type": "application/partial-upload",
        "Upload-Offset": 0,
        "Upload-Complete": "?0",
        "Transfer-Encoding": "chunked",
    }
    answer = receiver.request("PATCH", upload.target, chunked([CONTENT, b"beyond"]), fields)
    assert answer.status == 400
    lost = discarded(receiver)
    assert lost.keys() == {"refused", "abandoned"}
    assert sum(lost.values()) == received(receiver) > 2 * EXTENT


def test_parts_of_an_extent_that_never_becomes_whole_are_lost_with_their_upload(
    receiver: RunningReceiver,
) -> None:
    upload = open_upload(receiver, "f", LENGTH)
    upload.put(receiver, 0, CONTENT[:PART], LENGTH)
    upload.put(receiver, 2 * PART, CONTENT[2 * PART : 3 * PART], LENGTH)
    assert discarded(receiver) == {}
    upload.put(receiver, 0, CONTENT[:PART], LENGTH)
    assert discarded(receiver) == {"broken_off": PART}
    receiver.request("DELETE", upload.target, headers=upload.fields)
    assert received(receiver) == 3 * PART
    assert discarded(receiver) == {"broken_off": 3 * PART}


def test_the_same_small_file_once_more_was_here_already(receiver: RunningReceiver) -> None:
    for _ in range(2):
        receiver.request("PUT", "/files/f", b"hello", {"Content-Digest": "sha-256=:LPJNul+wow4m6Dsqxbning=:"})
        receiver.request("PUT", "/files/g", b"hello")
    bundle_wire.post(receiver, bundle_wire.bundle({"g": b"hello"}))
    assert received(receiver) - 5 == sum(discarded(receiver).values())
    assert discarded(receiver)["held"] == 10
    assert receiver.metrics.published_bytes.value() == 5


def test_what_a_file_shares_with_the_one_it_replaces_was_not_received(tmp_path: Path) -> None:
    from control.test_patches import NEW, OLD

    with running(tmp_path) as receiver:
        (receiver.folder / "f").write_bytes(OLD)
        upload = open_upload(receiver, "f", SIZE, OVER)
        ask(receiver, upload, "base", listed(0, 1, 2, 3))
        broken = patch_of([1], [FIRST_BLOCK])
        stated = f"bytes {SECOND.start}-{SECOND.end - 1}/{SIZE}"
        given = {**upload.fields, "Content-Range": stated, "Content-Length": len(broken) + 100}
        with receiver.connect() as wire:
            wire.request("GET", "/v1/hello")
            wire.send(head("POST", f"{upload.target}/patch", given) + broken)
        receiver.is_quiet()
        assert (received(receiver), discarded(receiver)) == (BLOCK, {"broken_off": BLOCK})
        assert patch(receiver, upload, SECOND, patch_of([1], [FIRST_BLOCK])).status == 200
        assert (received(receiver), discarded(receiver)) == (2 * BLOCK, {"broken_off": BLOCK})
        receiver.restart()
        again = open_upload(receiver, "f", SIZE, {**OVER, "Tdx-Resume": "?1"})
        assert again.commit(receiver, NEW, digests=[bytes(16)] * 4).status == 409
        # Of all four extents one block had come over the wire.
        assert discarded(receiver) == {"invalidated": BLOCK}


async def test_of_what_nobody_can_go_on_with_a_reboot_has_taken_some_and_the_rest_is_abandoned() -> None:
    store, metrics, size = MemoryStore(), Metrics("1.2.3"), 2 * EXTENT
    spec = UploadSpec(owner=Owner("local:0"), name=FileName("f"), length=size, extent_size=EXTENT, key="k")
    upload = store.create(spec)
    for start in (0, EXTENT):
        part = CONTENT[start : start + EXTENT]
        upload.write_at(memoryview(part), start)
        upload.record(Piece(Span(start, start + EXTENT), digest_of(part)))
        if not start:
            upload.mark()
    store.restart(reboot=True)
    workers = Workers(bodies=1)
    try:
        await Sessions(store, workers, metrics, None).discard_orphans()
    finally:
        workers.close()
    assert store.partials() == []
    lost = {each: metrics.discarded_bytes.value((each,)) for each in ("invalidated", "abandoned")}
    assert lost == {"invalidated": EXTENT, "abandoned": EXTENT}
