"""Pushing one file: open, send what is missing, commit, repair, result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tdx.control.client import Answer, Client
from tdx.control.pace import Pace
from tdx.control.progress import PushResult, Tally, receipt_of
from tdx.control.push_whole import put_whole
from tdx.control.sending import MOST_STREAMS, OpenUpload, Sending, first_of
from tdx.data.port import Cancel
from tdx.data.send import choose_send
from tdx.data.source import Source
from tdx.errors import (
    ExtentsDiffer,
    NotFound,
    ProtocolError,
    StorageError,
    StorageUnusable,
    VerificationFailed,
)
from tdx.integrity import Root, digest_of, extent_count, extent_size_for, extent_span, extents_of, zero_digest
from tdx.model import Conflict, Outcome, Span
from tdx.proto import fields
from tdx.proto.names import check_name, encode_name
from tdx.proto.sender import PushEvent, PushMachine, PushState
from tdx.ranges import RangeSet
from tdx.store.digestlog import DigestLog

if TYPE_CHECKING:
    from tdx.store.roots import Roots


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What the caller wishes for one push.

    ``state`` is the folder for digest logs; ``streams`` None: chosen by measuring;
    ``pump`` None: chosen by probing.
    """

    state: Path
    name: str | None = None
    conflict: Conflict = Conflict.RENAME
    resume: bool = False
    streams: int | None = None
    pump: str | None = None
    most_streams: int = MOST_STREAMS
    """Bounds ``streams``, also where that is found by measuring."""

    alone: Callable[[], bool] = lambda: True
    """Whether no other file is on its way to the peer, or about to be. Asked again and again."""

    whole: bool = False
    """Send all of a file that replaces another one, instead of what of it has changed."""

    digest: str | None = None
    """A further digest of the whole file, ``sha-256`` or ``sha-512`` (RFC 9530), that the receiver
    must find in what it stored before it publishes."""

    roots: Roots | None = None
    """Where the root of what was pushed is remembered, if it is to be."""


class FilePush:
    """One run of one push of an open source."""

    def __init__(
        self, client: Client, source: Source, options: PushOptions, pace: Pace, tally: Tally
    ) -> None:
        self._client = client
        self._source = source
        self._options = options
        self._pace = pace
        self._tally = tally
        self._machine = PushMachine()
        self._name = check_name(Path(source.path).name if options.name is None else options.name)
        self._target = "/files/" + encode_name(self._name)
        self._length = source.length
        self._extent_size = extent_size_for(source.length)
        self._count = extent_count(source.length, self._extent_size)
        self._digests: dict[int, bytes] = {}
        self._whole: list[tuple[str, str]] = []
        """The field with the digest of the whole file, once it is known."""
        self._log: DigestLog
        self._disk_failed: StorageError | None = None
        """What a commit that met a failing disk was answered: it makes the receiver ask for repairs."""
        tally.total = source.length

    async def run(self) -> PushResult:
        """Push the file; the result once it is durable under its final name."""
        started = asyncio.get_running_loop().time()
        root: str | None
        if self._count <= 1:
            document, root = await self._push_whole()
        else:
            with self._open_log() as self._log:
                document, root = await self._push_upload()
        seconds = asyncio.get_running_loop().time() - started
        tally = self._tally
        return receipt_of(
            document, root, seconds, sent=tally.sent, resumed=tally.resumed, reused=tally.reused
        )

    def _open_log(self) -> DigestLog:
        return DigestLog.open(
            self._options.state / "digests",
            self._source.source_id,
            self._source.stat_key,
            self._extent_size,
            trustworthy=not self._source.young(time.time()),
        )

    def _meta(self) -> list[tuple[str, str]]:
        told = [
            ("Tdx-Conflict", self._options.conflict.value),
            ("Tdx-Mtime", str(self._source.mtime_ns)),
            ("Tdx-Mode", f"{self._source.mode:o}"),
        ]
        if self._source.sparse:
            told.append(("Tdx-Sparse", fields.format_boolean(True)))
        return told

    # --- at most one extent ----------------------------------------------------

    async def _push_whole(self) -> tuple[dict[str, object], str]:
        content = memoryview(await self._client.workers.on_disk(self._source.read_all))
        digest = digest_of(content)
        digests = [digest] if self._count else []
        await self._check_unchanged(digests)
        await self._digest_whole(Cancel())
        self._tally.phase = "sending"
        self._machine.handle(PushEvent.OPEN)
        meta = [*self._meta(), *self._whole]
        answer = await put_whole(self._client, self._target, content, digest, meta, self._pace, self._tally)
        self._machine.handle(PushEvent.RECEIPT)
        return answer.document(), str(Root.over(digests, self._length, self._extent_size))

    # --- many extents ----------------------------------------------------------

    async def _push_upload(self) -> tuple[dict[str, object], str | None]:
        holes = await self._client.workers.on_disk(self._source.holes, self._extent_size)
        self._take_zero_digests(holes)
        self._digests.update(self._log.digests())
        self._machine.handle(PushEvent.OPEN)
        answer = await self._client.persist(lambda: self._create(holes), self._tally)
        document = answer.document()
        if document.get("outcome") == Outcome.SKIPPED:
            self._machine.handle(PushEvent.RECEIPT)
            return document, None
        upload = OpenUpload.parse(document, self._length)
        upload = replace(upload, streams=min(upload.streams, self._options.most_streams))
        if upload.extent_size != self._extent_size:
            raise ProtocolError(f"the peer cuts {self._length} bytes into extents of {upload.extent_size}")
        missing = self._missing(upload.held)
        self._tally.resumed = self._length - missing.total() if upload.resumed else 0
        check = upload.existing and not (upload.resumed and upload.unchanged)
        if check or upload.base:
            self._machine.handle(PushEvent.SAME_NAME)
            self._tally.phase = "checking"
            settled = await self._take_from_existing(upload, missing, check=check)
            if isinstance(settled, Answer):
                self._machine.handle(PushEvent.RECEIPT)
                return settled.document(), self._root()
            self._machine.handle(PushEvent.DIFFERENT)
            missing = settled
        else:
            self._machine.handle(PushEvent.OPENED)
        answer = await self._send_and_commit(upload, missing)
        self._machine.handle(PushEvent.RECEIPT)
        return answer.document(), self._root()

    def _take_zero_digests(self, holes: list[Span]) -> None:
        for hole in holes:  # each is a run of whole extents
            for index in extents_of(hole, self._extent_size):
                self._digests[index] = zero_digest(len(self._span(index)))

    async def _create(self, holes: list[Span]) -> Answer:
        request = [
            *self._meta(),
            ("Upload-Complete", "?0"),
            ("Upload-Length", str(self._length)),
            ("Tdx-Source", self._source.source_id),
            ("Tdx-Fingerprint", self._source.fingerprint),
            ("Tdx-Resume", fields.format_boolean(self._options.resume)),
        ]
        if self._options.conflict is Conflict.OVERWRITE and not self._options.whole:
            request.append(("Tdx-Base", "?1"))
        if holes:
            request.append(("Tdx-Holes", fields.format_spans(holes)))
        return await self._client.request("POST", self._target, request)

    def _missing(self, held: RangeSet) -> RangeSet:
        """What to send so that the receiver has every extent: whole extents only."""
        missing = RangeSet()
        for gap in held.missing(self._length):
            for index in extents_of(gap, self._extent_size):
                missing.add(extent_span(index, self._length, self._extent_size))
        return missing

    async def _take_from_existing(
        self, upload: OpenUpload, missing: RangeSet, *, check: bool
    ) -> Answer | RangeSet:
        """The receipt, where the published file of this name is the same (``check``: it may be); else what is
        left to send once the receiver has taken from that file what it can use."""
        if not upload.base:
            return await self._check_identical(upload)
        from tdx.control.push_base import BasePush

        base = BasePush(
            self._client, upload, self._source, self._tally, self._pace, self._digests, self._hash
        )
        if check and await base.seems_identical():
            settled = await self._check_identical(upload)
            if isinstance(settled, Answer):
                return settled
            missing = settled
        return await base.reuse(missing)

    async def _check_identical(self, upload: OpenUpload) -> Answer | RangeSet:
        """Hash the source and ask whether the published file of this name is the same:
        the receipt if so, else what is to be sent."""
        await self._hash(range(self._count), Cancel())
        await self._check_unchanged(self._all_digests())
        try:
            return await self._client.persist(
                lambda: self._commit(upload, [("Tdx-Check", "?1")]), self._tally
            )
        except ExtentsDiffer as difference:
            return self._spans_of(difference.extents)

    async def _send_and_commit(self, upload: OpenUpload, missing: RangeSet) -> Answer:
        held = [index for index in range(self._count) if not missing.covers(self._span(index))]
        while True:
            self._tally.phase = "sending"
            await self._send_and_hash(upload, missing, [i for i in held if i not in self._digests])
            if len(self._digests) < self._count:
                # Found held after a lost connection, without this run having sent them.
                await self._hash(range(self._count), Cancel())
            self._tally.phase = "committing"
            await self._check_unchanged(self._all_digests())
            self._machine.handle(PushEvent.SENT)
            try:
                return await self._client.persist(lambda: self._commit(upload, []), self._tally)
            except ExtentsDiffer as difference:
                if self._machine.handle(PushEvent.DIFFER) is PushState.FAILED:
                    in_vain = VerificationFailed(f"{self._name}: the receiver keeps asking for repairs")
                    raise self._disk_failed or in_vain from None
                missing, held = self._spans_of(difference.extents), []

    async def _send_and_hash(self, upload: OpenUpload, missing: RangeSet, unknown: list[int]) -> None:
        """Send what is missing and meanwhile hash what the receiver holds and we have no
        digest of."""
        sending = Sending(
            self._client,
            upload,
            self._source,
            choose_send(self._options.pump, self._source.descriptor),
            self._pace,
            self._tally,
            streams=self._options.streams,
            recorder=self._recorder,
            alone=self._options.alone,
        )
        cancel = Cancel()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sending.send(missing))
                if unknown:
                    group.create_task(self._hash(unknown, cancel))
                if not self._whole:
                    group.create_task(self._digest_whole(cancel))
        except BaseExceptionGroup as failures:
            raise first_of(failures) from None
        finally:
            cancel.stop()

    def _recorder(self) -> Callable[[Span, bytes], None]:
        """What takes the digests of a reading that begins now."""
        trusted = not self._source.young(time.time())

        def record(span: Span, digest: bytes) -> None:
            index = span.start // self._extent_size
            self._digests[index] = digest
            self._log.append(index, digest, trusted=trusted)

        return record

    async def _hash(self, indices: range | list[int], cancel: Cancel) -> None:
        """Read and hash these extents in a worker thread, those with a digest excepted."""

        def work() -> None:
            wanted = [index for index in indices if index not in self._digests]
            record = self._recorder()
            for index, digest in self._source.hash_extents(wanted, self._extent_size):
                cancel.check()
                span = self._span(index)
                record(span, digest)
                self._tally.add_checked(len(span))

        await self._client.workers.until(cancel.stop, work)

    async def _digest_whole(self, cancel: Cancel) -> None:
        algorithm = self._options.digest
        if algorithm is not None:
            value = await self._client.workers.until(
                cancel.stop,
                lambda: self._source.content_digest(algorithm, cancel.check),
            )
            self._whole = [("Repr-Digest", fields.format_digest(algorithm, value))]

    async def _commit(self, upload: OpenUpload, extra: list[tuple[str, str]]) -> Answer:
        request = [
            *upload.fields,
            *extra,
            *self._whole,
            *self._tally.told(),
            ("Upload-Length", str(self._length)),
            ("Content-Type", "application/octet-stream"),
        ]
        digests = b"".join(self._all_digests())
        try:
            answer = await self._client.request("POST", upload.target + "/commit", request, digests)
            self._tally.hear_all(answer.headers)
            return answer
        except StorageError as error:
            self._disk_failed = error
            raise
        except NotFound as error:
            if self._disk_failed is None:
                raise
            # It could not even note what its disk had lost, and gave the upload up.
            raise StorageUnusable(self._disk_failed.message) from error

    async def _check_unchanged(self, digests: list[bytes]) -> None:
        """SourceChanged unless these are the digests of what the source was at one moment."""
        cancel = Cancel()
        await self._client.workers.until(
            cancel.stop,
            lambda: self._source.check_unchanged(digests, self._extent_size, cancel.check),
        )

    def _root(self) -> str:
        return str(Root.over(self._all_digests(), self._length, self._extent_size))

    def _all_digests(self) -> list[bytes]:
        return [self._digests[index] for index in range(self._count)]

    def _span(self, index: int) -> Span:
        return extent_span(index, self._length, self._extent_size)

    def _spans_of(self, indices: list[int]) -> RangeSet:
        if any(not 0 <= index < self._count for index in indices) or not indices:
            raise ProtocolError("the peer asks for extents that the file does not have")
        return RangeSet(self._span(index) for index in indices)
