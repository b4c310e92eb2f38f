"""One upload while this process holds it: writers, leases, takeover and commit."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tdx.control.messages import Exchange
from tdx.control.workers import Workers
from tdx.data.port import Cancel, ReceiveHooks, Slot
from tdx.data.probe import choose_receive
from tdx.data.sockets import shut
from tdx.errors import (
    Busy,
    DigestMismatch,
    Exists,
    ExtentsDiffer,
    OffsetMismatch,
    ProtocolError,
    Superseded,
    TdxError,
    VerificationFailed,
)
from tdx.integrity import (
    ALGORITHM,
    BUFFER_FOR_HASHING,
    Hasher,
    Root,
    cut,
    extent_count,
    extent_span,
    extents_of,
    new_hasher,
)
from tdx.metrics import Metrics
from tdx.model import Conflict, Outcome, Owner, Receipt, Span, Stages, UploadId
from tdx.proto.receiver import MAX_REPAIR_ROUNDS, Leases, UploadEvent, UploadMachine, UploadState
from tdx.store.port import Piece, Store, Upload

ENDLESS: Final = 1 << 62
"""Where a body of unknown length is taken to end."""


@dataclass(slots=True)
class Writer:
    """A body that is being received, and how to stop it."""

    exchange: Exchange
    cancel: Cancel
    finished: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Received:
    """What one body brought: whole extents in order of completion, and where time went."""

    digests: dict[int, bytes] = field(default_factory=dict[int, bytes])
    stages: Stages = field(default_factory=Stages)


class Session:
    """Holds the claim on one upload. Used by the loop's thread only."""

    def __init__(
        self, upload: Upload, store: Store, workers: Workers, metrics: Metrics, pump: str | None
    ) -> None:
        self.upload = upload
        self.machine = UploadMachine()
        self.gate = asyncio.Lock()
        """Held by whoever takes over, commits or cancels: one at a time."""
        self.last_used = asyncio.get_running_loop().time()
        self._store = store
        self._workers = workers
        self._metrics = metrics
        self._pump = pump
        self._leases = Leases()
        self._writers: dict[int, Writer] = {}
        self._numbers = itertools.count(1)

    @property
    def id(self) -> UploadId:
        return self.upload.id

    @property
    def owner(self) -> Owner:
        return self.upload.spec.owner

    @property
    def protocol(self) -> str:
        """The label of metrics: ``tdx`` for its own senders, ``http`` for everybody else."""
        return "http" if self.upload.spec.source_id is None and self.upload.spec.key is None else "tdx"

    @property
    def busy(self) -> bool:
        return bool(self._writers) or self.gate.locked()

    def touch(self) -> None:
        self.last_used = asyncio.get_running_loop().time()

    def check_epoch(self, epoch: int | None) -> None:
        """A tdx upload is only for its newest opener; generic clients have no epoch."""
        if epoch is None:
            if self.upload.spec.source_id is not None:
                raise ProtocolError("a request on this upload needs Tdx-Epoch")
        elif epoch < self.upload.epoch:
            raise Superseded("a newer run of the same push has taken this upload over")
        elif epoch > self.upload.epoch:
            raise ProtocolError(f"epoch {epoch} has not been given out")

    # --- receiving -----------------------------------------------------------

    async def receive_extents(self, exchange: Exchange, span: Span, expected: bytes | None) -> Received:
        """Receive an aligned run; extents already held are read and dropped.

        ``expected`` is the sender's digest of a run of one extent (RFC 9530): bytes that
        do not fit it are not recorded.
        """
        size = self.upload.spec.extent_size
        held = self.upload.digests
        slots = (Slot(part, keep=part.start // size not in held) for part in cut(span, size))
        return await self._receive(
            exchange, slots, extents_of(span, size), expected=expected, keep_tail=False
        )

    async def receive_onward(self, exchange: Exchange, start: int) -> Received:
        """Receive from offset ``start``, which must be where the upload ends so far, to the
        end of the body; a body that breaks off inside an extent leaves its beginning held."""
        offset = self.offset
        if start != offset:
            raise OffsetMismatch(f"the upload stands at {offset}, not at {start}", offset=offset)
        size = self.upload.spec.extent_size
        carried = await self._workers.on_disk(self._restore_hasher, start)
        framing_length = exchange.head.framing.length
        end = ENDLESS if framing_length is None else start + framing_length
        if end == start:
            return Received()
        spans = cut(Span(start, end), size)

        def slots() -> Iterator[Slot]:
            yield Slot(next(spans), hasher=carried)
            yield from (Slot(span) for span in spans)

        return await self._receive(
            exchange, slots(), extents_of(Span(start, end), size), expected=None, keep_tail=True
        )

    @property
    def offset(self) -> int:
        """The contiguous prefix, ``Upload-Offset``."""
        return self.upload.held.prefix()

    def _restore_hasher(self, start: int) -> Hasher | None:
        """Hash the beginning of the extent that ``start`` lies in, as it is on disk, and
        hold it against the journal; None on a boundary."""
        size = self.upload.spec.extent_size
        index, ahead = divmod(start, size)
        if not ahead:
            return None
        hasher = new_hasher()
        hash_stored(self.upload, Span(index * size, start), hasher)
        tail = self.upload.tails.get(index)
        if tail is None or tail.span.end != start or tail.digest != hasher.digest():
            self.upload.invalidate([index])
            raise OffsetMismatch(
                "what was stored of the last extent does not verify; it is dropped", offset=index * size
            )
        return hasher

    async def _receive(
        self,
        exchange: Exchange,
        slots: Iterator[Slot],
        extents: range,
        *,
        expected: bytes | None,
        keep_tail: bool,
    ) -> Received:
        self.machine.handle(UploadEvent.BODY)
        if len(self._writers) >= exchange.limits.streams_per_upload:
            raise Busy(f"this upload has {len(self._writers)} streams already")
        number = next(self._numbers)
        self._leases.take(number, extents)
        cancel = Cancel()
        writer = self._writers[number] = Writer(exchange, cancel)
        received = Received()
        hooks = self._hooks(received, expected, keep_tail=keep_tail)
        try:
            body = await exchange.file_body(cancel)
            pump = choose_receive(self._pump, self.upload, body)
            received.stages = await exchange.connection.lend(
                lambda _: pump.receive(body, self.upload, slots, hooks, cancel), cancel
            )
            exchange.file_body_ended(body)
            self._metrics.add_stages(received.stages)
        finally:
            self._leases.release(number)
            del self._writers[number]
            writer.finished.set()
            self.touch()
        return received

    def _hooks(self, received: Received, expected: bytes | None, *, keep_tail: bool) -> ReceiveHooks:
        size, upload, metrics = self.upload.spec.extent_size, self.upload, self._metrics
        protocol = (self.protocol,)

        def completed(span: Span, digest: bytes) -> None:
            index = span.start // size
            if expected is not None and digest != expected:
                metrics.digest_failures.add(1)
                raise DigestMismatch(f"extent {index} does not have the digest that came with it")
            upload.record(Piece(Span(index * size, span.end), digest))
            received.digests[index] = digest

        def broke_off(span: Span, digest: bytes) -> None:
            if keep_tail:
                upload.record(Piece(Span(span.start // size * size, span.end), digest))

        return ReceiveHooks(
            received=lambda n: metrics.received_bytes.add(n, protocol),
            completed=completed,
            broke_off=broke_off,
            discarded=lambda n: metrics.discarded_bytes.add(n, ("held",)),
        )

    async def cut_off_writers(self, reason: TdxError) -> None:
        """Stop every body of this upload and wait until none can write any more."""
        while self._writers:
            writers = list(self._writers.values())
            for writer in writers:
                writer.cancel.set(reason)
                shut(writer.exchange.connection.sock)
            for writer in writers:
                await writer.finished.wait()

    # --- ending --------------------------------------------------------------

    async def commit(self, digests: Sequence[bytes], length: int, *, check_identical: bool) -> Receipt:
        """Hold the sender's digests against the recorded ones, and publish if all are equal.

        With ``check_identical`` the published file of this name is compared first.
        Raises ExtentsDiffer with what is to be sent again, VerificationFailed after the
        last repair round. The caller holds :attr:`gate`.
        """
        upload, size = self.upload, self.upload.spec.extent_size
        self.machine.handle(UploadEvent.COMMIT)
        try:
            await self.cut_off_writers(Superseded("the upload was committed while this body was on its way"))
            if upload.spec.length is None:
                await self._workers.on_disk(upload.set_length, length)
            elif upload.spec.length != length:
                raise ProtocolError(f"the upload has {upload.spec.length} bytes, the commit says {length}")
            if len(digests) != extent_count(length, size):
                raise ProtocolError(f"{len(digests)} digests for {extent_count(length, size)} extents")
            root = str(Root.over(digests, length, size))
            if check_identical:
                if (receipt := await self.settle_identical(digests, root)) is not None:
                    return receipt
                if upload.spec.conflict is Conflict.ERROR:
                    raise Exists(f"{upload.spec.name} exists and differs")
            await self._compare(digests)
            return await self._publish(root, verified=True)
        except BaseException:
            self._abort_commit()
            raise

    async def finish(self, *, verified: bool) -> Receipt:
        """Publish an upload whose sender gave no digests of extents (plain HTTP clients).
        The caller holds :attr:`gate` and has received every byte."""
        upload = self.upload
        self.machine.handle(UploadEvent.COMMIT)
        try:
            await self._recheck()
            length = upload.spec.length
            if length is None or upload.held.missing(length):
                raise ProtocolError("the upload is not complete")
            count = extent_count(length, upload.spec.extent_size)
            digests = [upload.digests[index] for index in range(count)]
            root = str(Root.over(digests, length, upload.spec.extent_size))
            if (receipt := await self.settle_identical(digests, root)) is not None:
                return receipt
            return await self._publish(root, verified=verified)
        except BaseException:
            self._abort_commit()
            raise

    def _abort_commit(self) -> None:
        if self.machine.state is UploadState.COMMITTING:
            self.machine.handle(UploadEvent.ABORT)

    async def settle_identical(self, digests: Sequence[bytes], root: str) -> Receipt | None:
        """End the upload as ``identical`` if the published file of its name has these digests."""
        spec = self.upload.spec
        existing = await self._workers.on_disk(self._store.existing, spec.name)
        if existing is None or existing.size != spec.length:
            return None
        if await self._workers.on_disk(self._store.existing_digests, spec.name, spec.extent_size) != list(
            digests
        ):
            return None
        receipt = await self._workers.on_disk(
            self.upload.settle, Outcome.IDENTICAL, existing.path, root=root
        )
        self.machine.handle(UploadEvent.PUBLISH)
        return receipt

    async def _publish(self, root: str, *, verified: bool) -> Receipt:
        receipt = await self._workers.on_disk(self.upload.publish, root=root, verified=verified)
        self.machine.handle(UploadEvent.PUBLISH)
        return receipt

    async def _recheck(self) -> None:
        if suspects := self.upload.suspects:
            await self._workers.on_disk(self.upload.recheck, suspects)

    async def _compare(self, digests: Sequence[bytes]) -> None:
        await self._recheck()
        recorded = self.upload.digests
        differing = [index for index, digest in enumerate(digests) if recorded.get(index) != digest]
        if not differing:
            return
        wrong = [index for index in differing if index in recorded]
        if wrong:
            self._metrics.digest_failures.add(len(wrong))
            if self.machine.handle(UploadEvent.DIFFER) is UploadState.FAILED:
                raise VerificationFailed(
                    f"{self.upload.spec.name}: extents still differ after {MAX_REPAIR_ROUNDS} repairs; "
                    "nothing was published"
                )
            await self._workers.on_disk(self.upload.invalidate, wrong)
        raise ExtentsDiffer(f"{len(differing)} extents are missing or differ", extents=differing)

    async def matches(self, algorithm: str, expected: bytes) -> bool:
        """Whether the whole stored content has this digest (RFC 9530 Repr-Digest)."""
        return await self._workers.on_disk(self._content_digest, algorithm) == expected

    def _content_digest(self, algorithm: str) -> bytes:
        length = self.upload.spec.length or 0
        digests = self.upload.digests
        if algorithm == ALGORITHM and extent_count(length, self.upload.spec.extent_size) == 1:
            return digests[0]
        hasher: Hasher = new_hasher() if algorithm == ALGORITHM else hashlib.new(algorithm.replace("-", ""))
        if length:
            hash_stored(self.upload, Span(0, length), hasher)
        return hasher.digest()

    def extent(self, index: int) -> Span:
        return extent_span(index, self.upload.spec.length, self.upload.spec.extent_size)


def hash_stored(upload: Upload, span: Span, hasher: Hasher) -> None:
    """Feed the stored bytes of ``span`` to ``hasher``."""
    buffer = memoryview(bytearray(min(BUFFER_FOR_HASHING, len(span))))
    at = span.start
    while at < span.end:
        part = buffer[: min(len(buffer), span.end - at)]
        n = upload.read_at(part, at)
        if n == 0:
            raise ProtocolError("stored bytes are missing")
        hasher.update(part[:n])
        at += n
