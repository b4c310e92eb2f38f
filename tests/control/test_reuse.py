"""What is made from the file that it replaces: bytes that came over the wire, and bytes that were here, are
never taken for each other, whatever senders do and however often they change their minds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.test_received import discarded, received
from support.datakit import pattern
from support.receiving import RunningReceiver, local_store
from support.uploading import Opened, open_upload
from support.wire import head
from tdx.integrity import BLOCK, MIN_EXTENT, PART, block_digests, digest_of, extent_span
from tdx.model import Span, UploadId
from tdx.proto import patch as wire

EXTENT = MIN_EXTENT
LENGTH = 2 * EXTENT + 3 * PART + 7
EXTENTS = range(3)
OVER = {"Tdx-Conflict": "overwrite", "Tdx-Base": "?1"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RunningReceiver]:
    started = RunningReceiver(tmp_path / "inbox", tmp_path / "state", make_store=local_store())
    started.folder.mkdir()
    started.start()
    yield started
    started.stop()


class Replacing:
    """Senders of one file that changes, over a file that is there, as chance has it."""

    def __init__(self, receiver: RunningReceiver, seed: int) -> None:
        self.receiver = receiver
        self.chance = random.Random(seed)
        self.there = bytearray(pattern(LENGTH))
        (receiver.folder / "f").write_bytes(self.there)
        self.content = bytearray(self.there)
        self.versions = 0
        self.uploads: list[Opened] = []
        self.received = self.discarded = self.published = 0
        self.ended: set[str] = set()

    def step(self) -> None:
        actions = (
            *(self.open, self.change, self.base, self.base, self.patch, self.patch, self.patch),
            *(self.put, self.put, self.put_parts, self.commit, self.commit, self.cancel, self.restart),
        )
        self.chance.choice(actions)()

    def settle(self) -> None:
        """Stop the receiver, and take down what it has counted."""
        self.receiver.is_quiet()
        self.receiver.stop()
        self.received += received(self.receiver)
        self.discarded += sum(discarded(self.receiver).values())

    def kept(self) -> int:
        """The bytes of partials that have come over the wire, as the journals have it; it is stopped."""
        store = self.receiver.make_store(self.receiver.folder, self.receiver.state)
        try:
            total = 0
            for partial in store.partials():
                upload = store.open(partial.upload)
                total += upload.received
                upload.close()
            return total
        finally:
            store.close()

    # --- what senders do -------------------------------------------------------

    def open(self) -> None:
        fields = {**OVER, "Tdx-Resume": self.chance.choice(["?0", "?1", "?1"])}
        fields["Tdx-Fingerprint"] = f"v{self.versions}"
        self.uploads.append(open_upload(self.receiver, "f", LENGTH, fields))

    def change(self) -> None:
        """Another version of the source, that shares most with the last one."""
        self.versions += 1
        for _ in range(self.chance.randrange(1, 4)):
            at = self.chance.randrange(LENGTH - 3 * BLOCK)
            self.content[at : at + self.chance.choice([1, BLOCK, 3 * BLOCK])] = b""
            self.content[at:at] = self.chance.randbytes(LENGTH - len(self.content))

    def base(self) -> None:
        upload, some = self._upload(), sorted(self.chance.sample(EXTENTS, self.chance.randrange(1, 4)))
        listed = wire.encode_list((index, self._digest(index)) for index in some)
        self._ask(upload, "base", listed)

    def patch(self) -> None:
        """Blocks of an extent: those that differ from what is there, most of the time."""
        upload, index = self._upload(), self.chance.choice(EXTENTS)
        span = extent_span(index, LENGTH, EXTENT)
        asked = wire.encode_blocks([(index, block_digests(memoryview(self._of(span))))])
        answer = self._ask(upload, "blocks", asked)
        runs = [Span(*each) for each in answer.get("needed", [])]
        if self.chance.random() < 0.2:
            runs = runs[1:] or [Span(span.start, span.start + BLOCK)]
        runs = [run for each in runs for run in _cut(each)]
        sent = b"".join(wire.encode_run(run) + self._of(run) for run in runs)
        body = wire.COUNT.pack(1) + wire.encode_list([(index, self._digest(index))]) + sent
        stated = f"bytes {span.start}-{span.end - 1}/{LENGTH}"
        fields = {**upload.fields, "Content-Range": stated, "Content-Length": len(body)}
        self._send(head("POST", f"{upload.target}/patch", fields), body)

    def put(self) -> None:
        upload, span = self._upload(), extent_span(self.chance.choice(EXTENTS), LENGTH, EXTENT)
        body = bytes(len(span)) if self.chance.random() < 0.2 else self._of(span)
        self._send(head("PUT", upload.target, upload.range_fields(span.start, span.end, LENGTH)), body)

    def put_parts(self) -> None:
        upload, span = self._upload(), extent_span(self.chance.choice(EXTENTS), LENGTH, EXTENT)
        cuts = [span.start, *range(span.start + PART, span.end, 3 * PART), span.end]
        for start, end in zip(cuts, cuts[1:], strict=False):
            fields = upload.range_fields(start, end, LENGTH)
            self._send(head("PUT", upload.target, fields), self._of(Span(start, end)))

    def commit(self) -> None:
        """What is missing or another version's is sent, most of the time, as the answers say."""
        upload = self._upload()
        for _ in range(3):
            had = self._received_by(upload)
            answer = upload.commit(self.receiver, bytes(self.content))
            if answer.status == 200 and upload.id not in self.ended:  # of which the receipt is told again
                self.ended.add(upload.id)
                if answer.document["outcome"] == "published":
                    self.published += had
                    self.there = bytearray(self.content)
                assert (self.receiver.folder / "f").read_bytes() == self.there
            if answer.status != 409 or self.chance.random() < 0.3:
                return
            missing = answer.document.get("extents")
            for index in missing if isinstance(missing, list) else EXTENTS:
                span = extent_span(index, LENGTH, EXTENT)
                upload.put(self.receiver, span.start, self._of(span), LENGTH)

    def cancel(self) -> None:
        upload = self._upload()
        self.receiver.request("DELETE", upload.target, headers=upload.fields)

    def restart(self) -> None:
        self.settle()
        self.receiver.start()

    # --- how -------------------------------------------------------------------

    def _upload(self) -> Opened:
        """The newest, most of the time: the others are of no use any more."""
        if not self.uploads:
            self.open()
        return self.uploads[-1] if self.chance.random() < 0.9 else self.chance.choice(self.uploads)

    def _of(self, span: Span) -> bytes:
        return bytes(self.content[span.start : span.end])

    def _digest(self, index: int) -> bytes:
        return digest_of(self._of(extent_span(index, LENGTH, EXTENT)))

    def _ask(self, upload: Opened, step: str, body: bytes) -> dict[str, list[list[int]]]:
        answer = self.receiver.request("POST", f"{upload.target}/{step}", body, upload.fields)
        return answer.document if answer.status == 200 else {}  # type: ignore[return-value]

    def _received_by(self, upload: Opened) -> int:
        there = {session.id: session.upload.received for session in self.receiver.running.sessions}
        return there.get(UploadId(upload.id), 0)

    def _send(self, begin: bytes, body: bytes) -> None:
        """A request whose body comes whole, or breaks off somewhere."""
        whole = self.chance.random() < 0.7
        with self.receiver.connect() as connection, contextlib.suppress(OSError, AssertionError):
            connection.request("GET", "/v1/hello")  # who goes away before it is known who it is, is nobody
            if whole:
                connection.send(begin + body).answer()
            else:
                connection.send(begin + body[: self.chance.randrange(len(body))])
                self.chance.choice((connection.reset, connection.end))()
        self.receiver.is_quiet()


def _cut(run: Span) -> Iterator[Span]:
    for start in range(run.start, run.end, wire.MAX_RUN):
        yield Span(start, min(start + wire.MAX_RUN, run.end))


@pytest.mark.parametrize("seed", range(8))
def test_bytes_that_were_here_are_not_taken_for_bytes_that_came(receiver: RunningReceiver, seed: int) -> None:
    replacing = Replacing(receiver, seed)
    for _ in range(50):
        replacing.step()
    replacing.settle()
    assert replacing.received - replacing.discarded == replacing.kept() + replacing.published
    assert replacing.received
