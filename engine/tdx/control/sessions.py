"""The uploads this process holds, by id, and who may open them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Hashable, Iterator
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from tdx.control import events
from tdx.control.quotas import Quotas
from tdx.control.session import Session
from tdx.control.workers import Workers
from tdx.errors import Busy, NoSpace, NotFound, StorageError, Superseded, TdxError
from tdx.metrics import Discard, Metrics
from tdx.model import FileName, Outcome, Owner, Receipt, UploadId, UploadSpec
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.rules import Grant
from tdx.proto.receiver import UploadEvent
from tdx.store.port import Partial, Store, Upload

T = TypeVar("T")
log = logging.getLogger(__name__)

REMEMBERED_ENDS: Final = 4096
MOST_IDLE: Final = 64
IDLE_SECONDS: Final = 30.0
"""A session without a writer gives up its claim after this long, so that other processes can clean up."""


class Sessions:
    """Opens, finds and ends sessions. Used by the loop's thread only."""

    def __init__(self, store: Store, workers: Workers, metrics: Metrics, pump: str | None) -> None:
        self._store = store
        self._workers = workers
        self._metrics = metrics
        self._pump = pump
        self.quotas = Quotas(store)
        self._open: dict[UploadId, Session] = {}
        self._removed: OrderedDict[UploadId, tuple[Owner, TdxError]] = OrderedDict()
        """Whose uploads are no more, and what their streams that are still on their way are told."""
        self._last_epochs: OrderedDict[UploadId, int] = OrderedDict()
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        """A lock lives as long as somebody holds it or waits for it."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Session]:
        """Those that are open now. From any thread."""
        return iter(list(self._open.values()))

    def busy(self) -> int:
        """How many are being received, compared or published now."""
        return sum(session.busy for session in self._open.values())

    async def open_for(
        self, spec: UploadSpec, grant: Grant, *, resume: bool, compares: bool = False
    ) -> tuple[Session, int, UploadSpec | None]:
        """A session for a new run of a push, and the epoch that is this run's own, whoever comes later;
        with it, where that goes on from a partial, the partial's specification as the earlier run left it.

        An earlier run of the same source is cut off first: with ``resume`` its upload is
        taken over under a new epoch, without it that upload is discarded. NoSpace where a new
        one would exceed the quota granted; with ``compares``, as a file is there that this may
        be identical to, that is for :meth:`admit` to say.
        """
        async with self._lock((spec.owner, spec.name)):
            partials = await self._partials_like(spec)
            goes_on = resume and any(partial.spec.length == spec.length for partial in partials)
            if partials and not compares and not goes_on:
                await self._workers.on_disk(self.quotas.check, spec, grant, partials)
            for partial in partials:
                if resume and partial.spec.length == spec.length:
                    try:
                        return *await self._take_over(partial.upload, spec), partial.spec
                    except NotFound:
                        continue
                await self._supersede(partial.upload, spec.owner)
            upload = await self._workers.on_disk(self.quotas.create, spec, grant, compares=compares)
            session = self._adopt(upload)
            session.admitted = not compares
            epoch = upload.epoch
            events.created(upload)
        await self._make_room(session)
        return session, epoch, None

    async def _partials_like(self, spec: UploadSpec) -> list[Partial]:
        """The partials that a new run of this push goes on from, or replaces."""
        if spec.source_id is None and not spec.by_name:
            return []
        found = await self._workers.on_disk(self._store.find, spec.owner, spec.name, None, spec.source_id)
        if spec.by_name:
            # Plain clients have one partial per (owner, name, length), and two of them may
            # send different files under one name at once: what is being written lives on.
            return [
                partial
                for partial in found
                if partial.spec.by_name
                and partial.spec.length == spec.length
                and not self._is_busy(partial.upload)
            ]
        return found

    async def admit(self, session: Session, grant: Grant) -> None:
        """Before bytes: NoSpace where they would exceed the quota granted, and nobody has
        looked yet. An upload that has none so far is then removed."""
        if session.admitted or grant.quota is None:
            return
        try:
            await self._workers.on_disk(self.quotas.admit, session.upload, grant)
        except NoSpace as error:
            if not session.upload.held:
                _remember(self._removed, session.id, (session.owner, error))
                await self.discard(session, "failed", error)
            raise
        session.admitted = True

    async def fix_length(self, session: Session, length: int, grant: Grant) -> None:
        """The length of an upload has become known: from here on all of it counts. NoSpace as for
        :meth:`admit`."""
        await self._workers.on_disk(session.upload.set_length, length)
        self.quotas.ended(session.owner, session.id)
        session.admitted = False
        await self.admit(session, grant)

    def _is_busy(self, upload: UploadId) -> bool:
        session = self._open.get(upload)
        return session is not None and session.busy

    async def _take_over(self, upload: UploadId, spec: UploadSpec) -> tuple[Session, int]:
        session = await self.get(upload, spec.owner)
        async with session.gate:
            if self._open.get(upload) is not session:
                raise NotFound("the upload ended meanwhile")
            session.machine.handle(UploadEvent.TAKEOVER)
            reason = Superseded("a newer run of the same push has taken this upload over")
            await session.writers.cut_off(reason)
            await self._workers.on_disk(session.upload.raise_epoch)
            # Until the epoch was raised, bodies of the older run were still let in.
            await session.writers.cut_off(reason)
            session.restarted()
            await self._workers.on_disk(session.upload.refresh, spec)
            session.recheck_early()
            events.resumed(session.upload)
            return session, session.upload.epoch

    async def _supersede(self, upload: UploadId, owner: Owner) -> None:
        try:
            session = await self.get(upload, owner)
        except NotFound:
            return
        async with session.gate:
            if self._open.get(upload) is not session:
                return
            session.machine.handle(UploadEvent.SUPERSEDE)
            replaced = Superseded("a newer run of the same push has replaced this upload")
            await session.writers.cut_off(replaced)
            _remember(self._removed, upload, (owner, replaced))
            await self.discard(session, "superseded", replaced)

    async def get(self, upload: UploadId, owner: Owner) -> Session:
        """The session of an upload, opened from the store where this process does not hold
        it. NotFound for an unknown one and for another owner's alike."""
        removed = self._removed.get(upload)
        if removed is not None and removed[0] == owner:
            raise removed[1].with_traceback(None)
        async with self._lock(upload):
            session = self._open.get(upload)
            if session is not None and session.upload.spoiled and not session.busy:
                self._forget(session)
                await self._workers.on_disk(session.upload.close)
                session = None
            if session is None:
                session = self._adopt(await self._workers.on_disk(self._store.open, upload))
        if session.owner != owner:
            raise NotFound("no such upload")
        session.touch()
        await self._make_room(session)
        return session

    @contextlib.asynccontextmanager
    async def alone(self, upload: UploadId, owner: Owner) -> AsyncGenerator[Session]:
        """As :meth:`get`, with the session's gate held."""
        while True:
            session = await self.get(upload, owner)
            async with session.gate:
                # Whoever held the gate before may have ended it, or it was opened anew.
                if self._open.get(upload) is session:
                    yield session
                    return

    async def find_sequential(self, owner: Owner, name: FileName, length: int | None) -> Session | None:
        """The newest partial that a plain client left under this name (and length)."""
        for partial in await self._workers.on_disk(self._store.find, owner, name, length, None):
            if partial.spec.by_name:
                with contextlib.suppress(NotFound):  # what could not be opened again is gone
                    return await self.get(partial.upload, owner)
        return None

    async def receipt(self, upload: UploadId, owner: Owner, epoch: int | None) -> Receipt | None:
        """The receipt of an upload that has ended; Superseded for a run that a newer one had
        taken it over from."""
        receipt = await self._workers.on_disk(self._store.receipt, upload)
        if receipt is None or receipt.owner != owner:
            return None
        if epoch is not None and epoch < self._last_epochs.get(upload, epoch):
            raise Superseded("a newer run of the same push has taken this upload over")
        return receipt

    def _lock(self, key: Hashable) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def _adopt(self, upload: Upload) -> Session:
        publishing = self._lock(("publishing", upload.spec.name))
        session = Session(
            upload, self._store, self._workers, self._metrics, self._pump, publishing, self.quotas
        )
        self._open[upload.id] = session
        return session

    @contextlib.asynccontextmanager
    async def one_with_key(self, owner: Owner, key: str) -> AsyncGenerator[None]:
        """One request with this key at a time, so that a repetition finds the receipt of
        the first. A first one whose body has not ended never will: it is cut off."""
        for session in list(self._open.values()):
            if session.owner == owner and session.upload.spec.key == key:
                await session.writers.cut_off(Superseded("the same request has come again"))
        async with self._lock((owner, "key", key)):
            yield

    def ended(self, session: Session, receipt: Receipt) -> None:
        """The upload was published or settled; the store has closed it."""
        self._account(session, receipt.outcome, receipt)
        self._forget(session)
        _remember(self._last_epochs, session.id, session.upload.epoch)

    async def discard(self, session: Session, result: str, why: BaseException | None = None) -> None:
        """Remove an upload; ``result`` is its label in the metrics, ``why`` for the log. One that
        has ended already is no error."""
        await session.writers.cut_off(NotFound("the upload was removed"))
        async with self._lock(session.id):
            if self._forget(session):
                self._account(session, result, why=why)
            try:
                self._metrics.discard(await self._workers.on_disk(session.upload.discard), Discard.ABANDONED)
            except NotFound:
                return
            except StorageError:
                # What cannot be removed is at least not kept claimed.
                await self._workers.on_disk(session.upload.close)
                raise

    def _forget(self, session: Session) -> bool:
        """Whether ``session`` was still the one that holds its upload; now it is not."""
        mine = self._open.get(session.id) is session
        if mine:
            del self._open[session.id]
            session.let_go()
            self.quotas.ended(session.owner, session.id)
        return mine

    def _account(
        self,
        session: Session,
        result: str,
        receipt: Receipt | None = None,
        why: BaseException | None = None,
    ) -> None:
        seconds = asyncio.get_running_loop().time() - session.started
        self._metrics.uploads.add(1, (session.protocol, result))
        self._metrics.transfer_duration.observe(seconds)
        self._metrics.waited_for(name_bottleneck(session.told, session.brought.stages), seconds)
        received = session.brought.bytes
        if result == Outcome.PUBLISHED and received and seconds > 0:
            self._metrics.transfer_throughput.observe(received / seconds)
        events.ended(session, result, seconds, receipt, why)

    async def discard_orphans(self) -> None:
        """Remove what an earlier receiver left that nobody can go on with: whole files of tdx
        senders, who send so small a file again. Called once, before anything is opened."""
        for partial in await self._workers.on_disk(self._store.partials):
            if partial.spec.key is not None and partial.spec.source_id is None:
                try:
                    upload = await self._workers.on_disk(self._store.open, partial.upload)
                    upload.tell_lost(lambda n: self._metrics.discard(n, Discard.INVALIDATED))
                    self._metrics.discard(await self._workers.on_disk(upload.discard), Discard.ABANDONED)
                except TdxError as error:
                    log.warning("the upload %s stays: %s", partial.upload, error)

    async def release(self, session: Session) -> None:
        """Give up the claim and keep the partial."""
        async with self._lock(session.id):
            if self._forget(session):
                if session.brought.bytes:
                    events.kept(session)
                await self._workers.on_disk(session.upload.close)

    async def _make_room(self, newest: Session) -> None:
        """Keep few idle claims: each holds descriptors. The longest unused go first."""
        idle = [session for session in self._open.values() if not session.busy and session is not newest]
        if len(idle) > MOST_IDLE:
            await self.release(min(idle, key=lambda session: session.last_used))

    async def release_idle(self, now: float) -> None:
        for session in list(self._open.values()):
            if not session.busy and now - session.last_used > IDLE_SECONDS:
                await self.release(session)

    async def close(self, reason: TdxError | None = None) -> None:
        """Stop every body and keep every partial."""
        stop = reason or Busy("the receiver is shutting down; run again with --resume")
        sessions = list(self._open.values())
        await asyncio.gather(*(session.writers.cut_off(stop) for session in sessions))
        for session in sessions:
            async with session.gate:  # a commit that is running is let finish
                if self._open.get(session.id) is session:
                    await self.release(session)


def _remember(memory: OrderedDict[UploadId, T], upload: UploadId, fact: T) -> None:
    """Note how an upload ended, and forget the oldest ones."""
    memory[upload] = fact
    if len(memory) > REMEMBERED_ENDS:
        memory.popitem(last=False)
