"""Pushing what of a file has changed since the receiver got an earlier version of it (the sender's side of
``POST /uploads/ID/base``, ``blocks`` and ``patch``, docs/http.md)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from tdx.control.client import Client
from tdx.control.pace import Pace
from tdx.control.progress import Tally
from tdx.control.sending import OpenUpload, first_of, parse_held
from tdx.data.patch import send_patch
from tdx.data.port import Cancel
from tdx.data.source import Source
from tdx.errors import ProtocolError, TdxError
from tdx.integrity import BLOCK, cut, extent_span, extents_of
from tdx.model import Span
from tdx.policy.retry import Retrier
from tdx.proto import patch as wire
from tdx.proto.fields import ContentRange, format_content_range
from tdx.ranges import RangeSet

BATCH_BYTES: Final = 256 << 20
"""Bytes of the file that are spoken of at once."""

BATCHES_AT_ONCE: Final = 2
"""While one is hashed here, another one is compared there."""

SAMPLES: Final = range(4, 17)
"""How many extents are looked at first, one in sixteen of them if possible: where nothing of these can be
used, the rest is not asked about."""


class BasePush:
    """Has the receiver take what it can from the file that is to be replaced.

    ``digests`` are those of extents, as far as they are known; ``hash_extents(indices, cancel)`` adds to
    them.
    """

    def __init__(
        self,
        client: Client,
        upload: OpenUpload,
        source: Source,
        tally: Tally,
        pace: Pace,
        digests: dict[int, bytes],
        hash_extents: Callable[[list[int], Cancel], Awaitable[None]],
    ) -> None:
        self._client = client
        self._upload = upload
        self._source = source
        self._tally = tally
        self._pace = pace
        self._digests = digests
        self._hash = hash_extents
        self._length = source.length
        self._left = RangeSet()
        self._useful = False

    async def seems_identical(self) -> bool:
        """Whether the published file, which is as long, has the same bytes in some places. Nothing is
        taken from it."""
        samples = _spread(extents_of(Span(0, self._length), self._upload.extent_size))
        return len(await self._same(samples, [("Tdx-Check", "?1")])) == len(samples)

    async def reuse(self, missing: RangeSet) -> RangeSet:
        """Of ``missing``, which is whole extents, what is still to be sent when this is done."""
        self._left = missing.copy()
        size = self._upload.extent_size
        indices = [
            index
            for span in missing
            for index in extents_of(span, size)
            if index * size < self._upload.base  # beyond, the earlier version has nothing
        ]
        samples = _spread(indices)
        if samples:
            await self._settle(samples)
        if self._useful:
            chosen = set(samples)
            await self._settle_all([index for index in indices if index not in chosen])
        return self._left

    async def _settle_all(self, indices: list[int]) -> None:
        apiece = max(1, BATCH_BYTES // self._upload.extent_size)
        batches = iter([indices[at : at + apiece] for at in range(0, len(indices), apiece)])

        async def work() -> None:
            for batch in batches:
                await self._settle(batch)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(BATCHES_AT_ONCE, self._upload.streams)):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise first_of(failures) from None

    async def _settle(self, indices: list[int]) -> None:
        """Have these extents taken from the earlier version, or made from it, or leave them to be sent."""
        same = set(await self._same(indices, []))
        self._done(same)
        self._tally.add_reused(sum(len(self._span(index)) for index in same))
        differing = [index for index in indices if index not in same]
        if differing:
            await self._mend(differing)

    async def _same(self, indices: list[int], extra: list[tuple[str, str]]) -> list[int]:
        """Those of these extents that the receiver has the same of."""
        await self._hash(indices, Cancel())
        body = wire.encode_list((index, self._digests[index]) for index in indices)
        target = self._upload.target + "/base"
        answer = await self._client.persist(
            lambda: self._client.request("POST", target, [*self._upload.fields, *extra], body), self._tally
        )
        return self._whole(indices, answer.document().get("same"))

    def _whole(self, indices: Iterable[int], told: object) -> list[int]:
        same = parse_held(told, self._length)
        return [index for index in indices if same.covers(self._span(index))]

    def _done(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._left.remove(self._span(index))
            self._useful = True

    # --- extents that differ ------------------------------------------------------

    async def _mend(self, indices: list[int]) -> None:
        """Send the blocks that differ, of extents most of which do not. What fails on the way is tried again
        from what the receiver then has."""
        digests = await self._hash_blocks(indices)
        retrier = self._client.retrier()
        first: dict[int, int] = {}
        before: int | None = None
        while True:
            try:
                needed = await self._needed(indices, digests)
                few = [index for index in indices if _total(needed[index]) * 2 <= len(self._span(index))]
                total = sum(_total(needed[index]) for index in few)
                if before is not None and total < before:
                    retrier.progressed()
                before = total
                for index in few:
                    first.setdefault(index, _total(needed[index]))
                same = await self._patch(few, [span for index in few for span in needed[index]])
            except TdxError as error:
                await self._again(error, retrier)
            else:
                self._done(same)
                self._tally.add_reused(sum(len(self._span(index)) - first[index] for index in same))
                return

    async def _again(self, error: TdxError, retrier: Retrier) -> None:
        await self._client.pause_after(error, retrier, self._tally)

    async def _hash_blocks(self, indices: list[int]) -> dict[int, bytes]:
        cancel = Cancel()

        def work() -> dict[int, bytes]:
            found: dict[int, bytes] = {}
            for index in indices:
                cancel.check()
                found[index] = self._source.block_digests(self._span(index))
            return found

        return await self._client.workers.until(cancel.stop, work)

    async def _needed(self, indices: list[int], digests: dict[int, bytes]) -> dict[int, list[Span]]:
        """What the receiver lacks of each of these extents."""
        body = wire.encode_blocks((index, digests[index]) for index in indices)
        answer = await self._client.request(
            "POST", self._upload.target + "/blocks", self._upload.fields, body
        )
        needed: dict[int, list[Span]] = {index: [] for index in indices}
        for span in parse_held(answer.document().get("needed"), self._length):
            if span.start % BLOCK or (span.end % BLOCK and span.end != self._length):
                raise ProtocolError("the peer asks for less than a block")
            for part in cut(span, self._upload.extent_size):
                wanted = needed.get(part.start // self._upload.extent_size)
                if wanted is None:
                    raise ProtocolError("the peer asks for blocks that it was not told of")
                wanted.append(part)
        return needed

    async def _patch(self, indices: list[int], needed: Sequence[Span]) -> list[int]:
        """Send these blocks; the extents that are whole with that."""
        if not indices:
            return []
        listed = [(index, self._digests[index]) for index in indices]
        runs = list(wire.runs_of(needed))
        cancel = Cancel()

        lies_in = Span(self._span(indices[0]).start, self._span(indices[-1]).end)
        fields = [
            *self._upload.fields,
            *self._tally.told(),
            ("Content-Type", wire.MEDIA_TYPE),
            ("Content-Range", format_content_range(ContentRange(lies_in, self._length))),
        ]
        size = wire.patch_size(len(listed), runs)
        with self._tally.under_way() as stages:

            def pump(sock: socket.socket) -> None:
                send_patch(
                    sock,
                    self._source.descriptor,
                    listed,
                    runs,
                    self._tally.add_sent,
                    self._pace.wait_for,
                    cancel,
                    self._client.stall_timeout,
                    stages,
                )

            answer, whole = await self._client.upload(
                "POST", self._upload.target + "/patch", fields, size, pump, cancel
            )
        if not whole:
            raise ProtocolError("the peer answered before it had the whole patch")
        document = answer.document()
        self._tally.hear(document.get("stages"))
        return self._whole(indices, document.get("same"))

    def _span(self, index: int) -> Span:
        return extent_span(index, self._length, self._upload.extent_size)


def _total(spans: Iterable[Span]) -> int:
    return sum(map(len, spans))


def _spread(indices: Sequence[int]) -> list[int]:
    """Some of these, evenly spread."""
    count = min(max(SAMPLES.start, len(indices) // 16), SAMPLES.stop - 1, len(indices))
    return [indices[(2 * at + 1) * len(indices) // (2 * count)] for at in range(count)]
