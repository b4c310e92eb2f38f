"""One upload while this process holds it: its writers, their leases, what they bring."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from typing import Final, ParamSpec, TypeVar

from tdx.control import events
from tdx.control.live import Live, Phase
from tdx.control.messages import Exchange
from tdx.control.quotas import Quotas
from tdx.control.received import Received, accounting, held_back
from tdx.control.receiving import Judgement, hooks_for
from tdx.control.stored import hash_stored
from tdx.control.workers import Workers
from tdx.control.writers import Writer, Writers
from tdx.data.port import Slot
from tdx.data.probe import choose_receive
from tdx.errors import (
    OffsetMismatch,
    Overrun,
    ProtocolError,
    Superseded,
    TdxError,
    TooLarge,
)
from tdx.integrity import (
    MAX_EXTENTS,
    Hasher,
    cut,
    extent_span,
    extents_of,
    new_hasher,
)
from tdx.metrics import Discard, Metrics
from tdx.model import Claim, Owner, Span, Stages, UploadId
from tdx.proto.problem import INCONSISTENT_LENGTH
from tdx.proto.receiver import UploadEvent, UploadMachine, UploadState
from tdx.store.port import Piece, Store, Upload

P = ParamSpec("P")
T = TypeVar("T")

ENDLESS: Final = 1 << 62
"""Where a body of unknown length is taken to end."""


class Session:
    """Holds the claim on one upload. Used by the loop's thread only."""

    def __init__(
        self,
        upload: Upload,
        store: Store,
        workers: Workers,
        metrics: Metrics,
        pump: str | None,
        publishing: asyncio.Lock,
        quotas: Quotas,
    ) -> None:
        self.upload = upload
        self.machine = UploadMachine()
        self.gate = asyncio.Lock()
        """Held by whoever takes over, commits or cancels: one at a time."""
        self.publishing = publishing
        """Shared by every session of this name: between the look whether the file is there
        already and its publication no other one may be published."""
        self.compared = False
        """The file that was there has been found to be another one."""
        self.last_used = self.started = asyncio.get_running_loop().time()
        """Seconds on the loop's clock; ``started`` is when the newest run opened the upload."""
        self.brought = Received()
        """What arrived since then by bodies that have ended, and where the time went."""
        self.told: Stages | None = None
        """The seconds of the sender in this run, as far as it has told."""
        self.resumed, self.peer = upload.held.total(), events.calling_for(self.owner)
        """Bytes that were held before, and the machine that opened it, as the network names it."""
        self.store = store
        self.workers = workers
        self.metrics = metrics
        self.admitted = False
        """Its bytes have been found to fit the owner's quota."""
        self._quotas = quotas
        self._pump = pump
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._rechecking: asyncio.Task[None] | None = None
        self.writers = Writers(lambda n: metrics.discard(n, Discard.BROKEN_OFF))
        """The bodies on their way to it."""
        upload.tell_lost(lambda n: metrics.discard(n, Discard.INVALIDATED))

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

    async def at_length(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Long work on this upload, in its owner's turn."""
        return await self.workers.in_turn(self.owner, work, *args, **kwargs)

    @property
    def busy(self) -> bool:
        return bool(self._users or self.writers) or self.gate.locked()

    @contextlib.contextmanager
    def in_use(self) -> Generator[None]:
        """Keep the upload from being taken for an abandoned one between a request's steps."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def unused(self) -> None:
        """Wait until no request keeps it in use."""
        await self._unused.wait()

    def recheck_early(self) -> None:
        """Begin to read again what an earlier process recorded and may have lost, while the
        sender sends the rest; the commit waits for it, and finds what differs missing."""
        if self._rechecking is None and self.upload.suspects:
            self._rechecking = asyncio.create_task(self._recheck_early())

    async def _recheck_early(self) -> None:
        with self.in_use(), contextlib.suppress(TdxError):  # the commit looks at all that is left
            await self.at_length(self.upload.recheck, self.upload.suspects)

    async def rechecked(self) -> None:
        """Wait for what :meth:`recheck_early` began."""
        if self._rechecking is not None:
            await asyncio.wait([self._rechecking])

    def restarted(self) -> None:
        """A new run has taken the upload over."""
        self.started = asyncio.get_running_loop().time()
        self.brought, self.told, self.resumed = Received(), None, self.upload.held.total()
        self.compared, self.peer = False, events.calling_for(self.owner)
        self.writers.parts.forget()

    def touch(self) -> None:
        self.last_used = asyncio.get_running_loop().time()

    def let_go(self) -> None:
        """Nothing more is received; what came of extents that are not whole does not count."""
        self.writers.parts.forget()

    # --- what others see of it -----------------------------------------------

    def heard(self, told: Stages | None) -> None:
        """Its sender says where its time went in this run so far. Of several streams an older word may come
        after a newer one."""
        if told is not None:
            self.told = told if self.told is None else self.told.at_least(told)

    def live(self) -> Live:
        """How it stands at this moment, bodies that are on their way included. From any thread."""
        brought = self.writers.brought()
        brought.add(self.brought)
        return Live(
            upload=self.id,
            peer=self.peer,
            owner=self.owner,
            name=self.upload.spec.name,
            size=self.upload.spec.length,
            protocol=self.protocol,
            began=self.started,
            received=brought.bytes,
            resumed=self.resumed,
            held=self.upload.held.total(),
            stages=brought.stages,
            sender_stages=self.told,
            streams=len(self.writers),
            silent_for=self.silent_for,
            phase=self.phase,
        )

    @property
    def silent_for(self) -> float:
        """See :meth:`tdx.control.writers.Writers.silent_for`."""
        return self.writers.silent_for()

    @property
    def phase(self) -> Phase:
        """What goes on. From any thread."""
        if self.writers:
            return "receiving"
        if self.machine.state is UploadState.COMMITTING and self.publishing.locked():
            return "publishing"
        return "comparing" if self.busy else "waiting"

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
        extents = extents_of(span, self.upload.spec.extent_size)
        with self.writing(exchange, span) as writer:
            self.forget_parts([extents])
            return await self._receive_kept(writer, extents, expected)

    def forget_parts(self, extents: Iterable[range]) -> None:
        """Parts of these that came do not count any more."""
        for each in extents:
            self.writers.parts.forget(each)

    async def receive_part(self, exchange: Exchange, span: Span, expected: bytes | None) -> Received:
        """Receive a part of one extent, which is recorded, with the digest of what is stored, once all its
        parts are there. ``expected`` as for :meth:`receive_extents`, of the part."""
        index = span.start // self.upload.spec.extent_size
        with self.writing(exchange, span, part_of=index) as writer:
            return await self._receive_kept(writer, range(index, index + 1), expected, part_of=index)

    async def _receive_kept(
        self, writer: Writer, extents: range, expected: bytes | None, part_of: int | None = None
    ) -> Received:
        await self.drop_beginnings(extents)
        judgement = Judgement(self.upload, self.metrics, writer.received)
        slots = self._slots(writer.span)
        return await self._receive(writer, slots, judgement, expected=expected, part_of=part_of)

    async def drop_beginnings(self, extents: Container[int]) -> None:
        """Forget what appends left of these extents: it is about to be written over."""
        if stale := [index for index in self.upload.tails if index in extents]:
            await self.workers.on_disk(self.upload.invalidate, stale)

    def _slots(self, span: Span) -> Iterator[Slot]:
        """Each extent's part of a body, and whether it is kept: not of an extent that is held by now."""
        # Ranges: bodies of a file of holes are many, and each would hold the digests of a million extents.
        held, size, length = self.upload.held, self.upload.spec.extent_size, self.upload.spec.length
        return (
            Slot(part, keep=not held.covers(extent_span(part.start // size, length, size)))
            for part in cut(span, size)
        )

    async def receive_onward(self, exchange: Exchange, start: int, claims: Sequence[Claim] = ()) -> Received:
        """Receive from offset ``start``, which must be where the upload ends so far, to the
        end of the body; a body that breaks off inside an extent leaves its beginning held.
        DigestMismatch where it lacks one of ``claims``; Overrun beyond the upload's length."""
        offset, size, length = self.offset, self.upload.spec.extent_size, exchange.head.framing.length
        if start != offset:
            raise OffsetMismatch(
                f"the upload stands at {offset}, not at {start}", offset=offset, provided=start
            )
        if length == 0:
            Judgement(self.upload, self.metrics, Received(), claims).check(None)
            return Received()
        end = ENDLESS if length is None else start + length
        whole = self.upload.spec.length
        if whole is not None and length is not None and end > whole:
            raise Overrun(
                f"the upload ends at {whole}, the body at {end}: it is given up", type=INCONSISTENT_LENGTH
            )
        if length is not None and end > MAX_EXTENTS * size:
            raise TooLarge(f"a file of more than {MAX_EXTENTS * size} bytes")
        span = Span(start, end)
        with self.writing(exchange, span, in_order=True) as writer:
            self.writers.parts.forget(extents_of(span, size))
            carried = await self.at_length(self._restore_hasher, start) if start % size else None
            slots = self._slots(span)
            first = next(slots)
            first.hasher = carried
            judgement = Judgement(self.upload, self.metrics, writer.received, claims)
            return await self._receive(writer, itertools.chain([first], slots), judgement)

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

    @contextlib.contextmanager
    def writing(
        self,
        exchange: Exchange,
        span: Span,
        extents: Sequence[range] | None = None,
        *,
        in_order: bool = False,
        part_of: int | None = None,
    ) -> Generator[Writer]:
        """Register a writer of the ``extents`` that ``span`` touches, or of some of them. Nothing is awaited
        between the caller's checks and the lease."""
        self.machine.handle(UploadEvent.BODY)
        if extents is None:
            extents = [extents_of(span, self.upload.spec.extent_size)]
        try:
            with self.writers.writing(exchange, span, extents, in_order=in_order, part_of=part_of) as writer:
                yield writer
        finally:
            if not self.writers:
                self._quotas.settle(self.upload)
            self.touch()

    async def _receive(
        self,
        writer: Writer,
        slots: Iterator[Slot],
        judgement: Judgement,
        *,
        expected: bytes | None = None,
        part_of: int | None = None,
    ) -> Received:
        exchange, cancel, received = writer.exchange, writer.cancel, writer.received
        hooks = hooks_for(
            writer,
            self.upload,
            self.metrics,
            self._quotas,
            judgement,
            lambda: self.workers.turns.turn(self.owner, cancel),
            protocol=self.protocol,
            expected=expected,
            wrote_part=None if part_of is None else lambda part: self._wrote_part(part_of, part),
        )
        body = writer.body = await exchange.file_body(cancel)
        pump = choose_receive(self._pump, self.upload, body)

        def move() -> None:
            with judgement.passed(writer.span.start):
                pump.receive(body, self.upload, slots, hooks, cancel)

        with self.counted(writer):
            await exchange.connection.lend(lambda _: move(), cancel)
        exchange.file_body_ended(body)
        return received

    @contextlib.contextmanager
    def counted(self, writer: Writer) -> Generator[None]:
        """Around the receiving of one body: what it brings is added up, however it ends."""
        received = writer.received
        try:
            with accounting(received, self.metrics, writer.cancel):
                yield
        finally:
            received.stages = held_back(received.stages, writer.body)
            self.brought.add(received)
            self.metrics.add_stages(received.stages)
            writer.received, writer.body = Received(), None

    def _wrote_part(self, index: int, part: Span) -> None:
        whole = extent_span(index, self.upload.spec.length, self.upload.spec.extent_size)
        if not self.writers.parts.wrote(index, part, whole):
            return
        # Nobody writes there any more: a part that came again would have begun anew.
        try:
            hasher = new_hasher()
            hash_stored(self.upload, whole, hasher)
            self.upload.record(Piece(whole, hasher.digest()))
        except BaseException:
            self.metrics.discard(len(whole), Discard.BROKEN_OFF)
            raise
