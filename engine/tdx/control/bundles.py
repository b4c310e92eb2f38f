"""The handler of ``POST /files``: many small files in one body."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Final

from tdx.control import events
from tdx.control.file_fields import too_large
from tdx.control.files import receipt_document
from tdx.control.live import Live, Phase
from tdx.control.messages import Exchange, FileBody, Response, digests_differ, json_response
from tdx.control.received import held_back, reason_for
from tdx.control.receiver import Receiver
from tdx.control.replays import Incoming
from tdx.control.upload_fields import told_by
from tdx.data.buffers import BUFFERS
from tdx.data.unpack import Entries
from tdx.errors import (
    ConnectionLost,
    DigestMismatch,
    LengthRequired,
    NoSpace,
    ProtocolError,
    Stalled,
    Superseded,
    TdxError,
    UnsupportedMedia,
)
from tdx.integrity import ALGORITHM, digest_of, new_hasher
from tdx.metrics import Discard
from tdx.model import Conflict, FileName, Outcome, Receipt, Stages, UploadId
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.rules import largest_file
from tdx.proto import bundle as wire
from tdx.proto import fields
from tdx.proto.names import check_name
from tdx.proto.problem import document_of
from tdx.store.port import Bundle, BundledFile

_TOLD_AT: Final = 1 << 20
"""Received bytes are counted when so many have come."""

Result = Receipt | TdxError


async def receive(receiver: Receiver, exchange: Exchange) -> Response:
    """Publish what one bundle brings, and answer for each of its entries."""
    if exchange.headers("content-type") != wire.MEDIA_TYPE:
        raise UnsupportedMedia(f"files come together as {wire.MEDIA_TYPE}; one is for PUT /files/NAME")
    if not exchange.head.framing.stated:
        raise LengthRequired("a bundle needs Content-Length or chunked coding")
    wish = exchange.headers("tdx-conflict")
    conflict = Conflict.RENAME if wish is None else fields.parse_conflict(wish)
    exchange.grant.check_conflict(conflict)
    replay = fields.parse_boolean(exchange.headers("tdx-replay") or "?0")
    length, owner = exchange.head.framing.length, exchange.identity.owner
    incoming = Incoming(owner, replay=replay)
    staging = await receiver.workers.on_disk(receiver.store.bundle, owner, conflict, length)
    arrival = Arrival(receiver, exchange, incoming, staging, conflict)
    try:
        try:
            await arrival.receive()
        except (ConnectionLost, Stalled, Superseded) as error:
            arrival.rest = reason_for(error, incoming.cancel)
            # What has arrived whole need not come again, and its sender will ask.
            with contextlib.suppress(TdxError):
                await exchange.keep_posted(arrival.publish())
            raise
        except BaseException as error:
            arrival.rest = reason_for(error, incoming.cancel)
            raise
        results = await exchange.keep_posted(arrival.publish())
    finally:
        if not arrival.publishing:
            try:
                await receiver.workers.on_disk(arrival.end)
            finally:
                arrival.over([])
    said = [_said(each) for each in results]
    return json_response(200, {"files": said, "stages": arrival.stages.as_dict()})


def _said(result: Result) -> dict[str, object]:
    return receipt_document(result) if isinstance(result, Receipt) else {"problem": document_of(result)}


class Arrival:
    """What one bundle brings: :meth:`receive`, then :meth:`publish` or :meth:`end`."""

    def __init__(
        self,
        receiver: Receiver,
        exchange: Exchange,
        incoming: Incoming,
        staging: Bundle,
        conflict: Conflict,
    ) -> None:
        self._receiver = receiver
        self._exchange = exchange
        self._incoming = incoming
        self._staging = staging
        self._conflict = conflict
        self._grant = exchange.grant
        self._most = largest_file(exchange.limits, exchange.grant, wire.MAX_ENTRY)
        self._results: list[Result | None] = []
        self._arrived: list[int] = []
        """Bytes of content of each, and of one more that has not ended."""
        self._kept: list[FileName] = []
        """The names of those that have no result yet, in order."""
        self.stages = Stages()
        self._told = told_by(exchange)
        self._began = asyncio.get_running_loop().time()
        self._body: FileBody | None = None
        self._received = 0
        self._untold = 0
        self.rest = Discard.REFUSED
        """Why what is neither published nor judged by itself is not kept."""
        receiver.arrivals.add(self)
        self.publishing = False
        """Publishing ends it, also when nobody waits for that any more."""

    async def receive(self) -> None:
        """Stage the entries of the body. Raises what broke it off."""
        exchange, metrics = self._exchange, self._receiver.metrics
        body = self._body = await exchange.file_body(self._incoming.cancel)
        try:
            await exchange.connection.lend(lambda _: self._take_all(body), self._incoming.cancel)
        finally:
            self.stages, self._body = held_back(self.stages, body), None
            metrics.add_stages(self.stages)
            self._tell_received()
        exchange.file_body_ended(body)

    def _tell_received(self) -> None:
        self._receiver.metrics.received_bytes.add(self._untold, (self._exchange.protocol,))
        self._received += self._untold
        self._untold = 0

    def live(self) -> Live:
        """See :class:`tdx.control.receiver.Arriving`."""
        return Live(
            upload=None,
            peer=self._exchange.identity.node,
            owner=self._incoming.owner,
            name=None,
            size=self._exchange.head.framing.length,
            protocol=self._exchange.protocol,
            began=self._began,
            received=self._received + self._untold,
            resumed=0,
            held=self._received + self._untold,
            stages=held_back(self.stages, self._body),
            sender_stages=self._told,
            streams=0 if self._body is None else 1,
            silent_for=self.silent_for,
            phase=self.phase,
            files=len(self._results),
        )

    @property
    def silent_for(self) -> float:
        body = self._body
        return 0.0 if body is None else body.silent_for

    @property
    def phase(self) -> Phase:
        return "publishing" if self.publishing else "receiving"

    # --- in the body's thread -----------------------------------------------------------

    def _take_all(self, body: FileBody) -> None:
        turn = self._staging.turn

        def readinto(view: memoryview) -> int:
            with turn.aside():
                return body.readinto(view)

        buffer = BUFFERS.take()
        started = perf_counter()
        try:
            entries = Entries(readinto, buffer, self._came)
            with turn:
                while (entry := entries.next()) is not None:
                    self._arrived.append(0)
                    self._take(entry, entries)
        finally:
            BUFFERS.give(buffer)
            stages = self.stages
            stages.receive += perf_counter() - started - stages.hash - stages.write

    def _came(self, n: int) -> None:
        self._arrived[-1] += n
        self._untold += n
        if self._untold >= _TOLD_AT:
            self._tell_received()

    def _take(self, entry: wire.Entry, entries: Entries) -> None:
        earlier = self._earlier(entry.key)
        if earlier is not None:
            self._results.append(earlier)
            return
        try:
            file = self._accept(entry)
            self._staging.begin(file)
        except TdxError as error:
            self._results.append(error)
            return
        failed = self._stage(file, entries)
        if failed is None:
            self._kept.append(file.name)
        else:
            self._staging.drop()
        self._results.append(failed)

    def _earlier(self, key: str) -> Result | None:
        """What became of the file when it came before. Raises why the whole has to end."""
        if key in self._incoming.keys:
            return ProtocolError("the key of this entry is another one's of the same bundle")
        if self._receiver.replays.claim(self._incoming, key, self._staging.turn.aside):
            return self._receiver.store.receipt_by_key(self._incoming.owner, key)
        return None

    def _accept(self, entry: wire.Entry) -> BundledFile:
        if entry.size > self._most:
            raise too_large(entry.size, self._most, self._grant)
        name = self._grant.place(check_name(entry.name))
        return BundledFile(name, entry.size, entry.digest, entry.key, entry.mtime_ns, entry.mode)

    def _stage(self, file: BundledFile, entries: Entries) -> TdxError | None:
        """Write the content and compare its digest; why it cannot be kept. Raises what ends the body."""
        stages, staging = self.stages, self._staging
        failed: TdxError | None = None
        digest = b""
        hasher = None
        for part in entries.content():
            started = perf_counter()
            if len(part) == file.size:
                digest = digest_of(part)
            else:
                hasher = hasher or new_hasher()
                hasher.update(part)
            hashed = perf_counter()
            stages.hash += hashed - started
            if failed is None:
                try:
                    staging.write(part)
                except TdxError as error:
                    failed = error
            stages.write += perf_counter() - hashed
        if failed is not None:
            return failed
        if hasher is not None:
            digest = hasher.digest()
        elif not file.size:
            digest = digest_of(b"")
        if digest != file.digest:
            self._receiver.metrics.digest_failures.add(1)
            return digests_differ(ALGORITHM, file.digest)
        started = perf_counter()
        try:
            staging.keep()
        except TdxError as error:
            return error
        finally:
            stages.write += perf_counter() - started
        return None

    # --- publishing ---------------------------------------------------------------------

    def publish(self) -> Coroutine[object, object, list[Result]]:
        """Publish what was staged, and end: what became of each entry. Forbidden where that is not
        granted any more."""
        self.publishing = True
        return self._publish_permitted()

    def end(self) -> None:
        """Keep nothing that is not published. Blocks."""
        self._staging.close()
        self._receiver.replays.leave(self._incoming)

    def over(self, results: Sequence[Result]) -> None:
        """It has ended with these results: what of it is not kept is counted."""
        metrics, receiver = self._receiver.metrics, self._receiver
        receiver.arrivals.discard(self)
        left = self._received
        for size, before, result in zip(self._arrived, self._results, results, strict=False):
            left -= size
            if isinstance(result, DigestMismatch):
                metrics.discard(size, Discard.MISMATCH)
            elif isinstance(result, TdxError):
                metrics.discard(size, Discard.REFUSED)
            elif before is not None or result.outcome is not Outcome.PUBLISHED:
                metrics.discard(size, Discard.HELD)
            else:
                metrics.published_bytes.add(size)
        metrics.discard(left, self.rest)

    async def _publish_permitted(self) -> list[Result]:
        results: list[Result] = []
        try:
            results = await self._published()
        finally:
            self.over(results)
        return results

    async def _published(self) -> list[Result]:
        exchange, receiver = self._exchange, self._receiver
        try:
            await exchange.still_permitted()
            if exchange.grant != self._grant:
                # The policy was changed on the way.
                for name in self._kept:
                    exchange.grant.check_begun(name, self._conflict)
        except BaseException:
            await receiver.workers.on_disk(self.end)
            raise
        started = perf_counter()
        ended = await receiver.workers.in_turn(self._incoming.owner, self._publish)
        spent = Stages(sync=perf_counter() - started)
        receiver.metrics.add_stages(spent)
        self.stages.add(spent)
        receiver.published((each for each in ended if isinstance(each, Receipt)), exchange.identity)
        published = iter(ended)
        results = [next(published) if each is None else each for each in self._results]
        self._count(results)
        seconds = asyncio.get_running_loop().time() - self._began
        receiver.metrics.waited_for(name_bottleneck(self._told, self.stages), seconds)
        events.bundle(self._incoming.owner, results, self._received, seconds, self.stages, self._told)
        return results

    def _publish(self) -> list[Result]:
        quotas, owner, grant = self._receiver.sessions.quotas, self._incoming.owner, self._exchange.grant
        admitted: list[UploadId] = []
        refusal: NoSpace | None = None

        def admit(upload: UploadId, size: int) -> None:
            nonlocal refusal
            if refusal is not None:
                # To be asked again for each would mean to look at every file of this owner each time.
                raise refusal
            try:
                quotas.reserve(owner, upload, grant, size)
            except NoSpace as error:
                refusal = error
                raise
            admitted.append(upload)

        try:
            return self._staging.publish(admit)
        finally:
            for upload in admitted:
                quotas.ended(owner, upload)
            self.end()

    def _count(self, results: list[Result]) -> None:
        metrics, protocol = self._receiver.metrics, self._exchange.protocol
        outcomes = Counter(each.outcome.value if isinstance(each, Receipt) else "failed" for each in results)
        for outcome, count in outcomes.items():
            metrics.uploads.add(count, (protocol, outcome))
        for code, count in Counter(each.code for each in results if isinstance(each, TdxError)).items():
            metrics.refused.add(count, (code,))
