"""Pushing what has no length yet: standard input, extent by extent from memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from tdx.control.client import Answer, Client
from tdx.control.pace import Pace
from tdx.control.progress import PushResult, Tally, receipt_of
from tdx.control.push_whole import put_buffer, put_whole
from tdx.control.sending import OpenUpload
from tdx.data.port import Cancel
from tdx.data.stream import read_block
from tdx.errors import ExtentsDiffer, StorageError, TdxError, UsageError, VerificationFailed
from tdx.integrity import ALGORITHM, UNKNOWN_LENGTH_EXTENT, Root, cut, digest_of, extent_size_for
from tdx.model import Conflict, Outcome, Span
from tdx.proto.fields import ContentRange, format_content_range, format_digest
from tdx.proto.names import check_name, encode_name

WITHDRAW_SECONDS: Final = 3.0
"""For how long a push that failed tries to take its upload back."""


class StreamPush:
    """One push from a descriptor that is read once.

    Two extents are in memory at a time, one being read and one on its way; each is kept
    until the receiver has acknowledged it with its digest, so that connections may drop.
    A push that fails leaves nothing behind, as far as the receiver can be reached: no other
    could continue it.
    """

    def __init__(
        self, client: Client, descriptor: int, name: str | None, conflict: Conflict, pace: Pace, tally: Tally
    ) -> None:
        if name is None:
            raise UsageError("standard input has no name of its own; give one with --name")
        self._client = client
        self._descriptor = descriptor
        self._target = "/files/" + encode_name(check_name(name))
        self._meta = [("Tdx-Conflict", conflict.value)]
        # Made up, so that a repeated creation replaces the upload whose id got lost.
        self._source = ("Tdx-Source", os.urandom(16).hex())
        self._pace = pace
        self._tally = tally
        self._cancel = Cancel()
        self._digests: list[bytes] = []
        self._disk_failed: StorageError | None = None
        """What a commit that met a failing disk was answered: the next one finds that extents are lost."""

    async def run(self) -> PushResult:
        """Push until the end of the input; the result once it is durable."""
        started = asyncio.get_running_loop().time()
        root: str | None
        try:
            block = await self._read()
            if len(block) < UNKNOWN_LENGTH_EXTENT:
                answer, root = await self._push_short(block)
            else:
                answer, root = await self._push_long(block)
        finally:
            self._cancel.stop()
        seconds = asyncio.get_running_loop().time() - started
        return receipt_of(answer.document(), root, seconds, sent=self._tally.sent)

    async def _read(self) -> memoryview:
        """The next extent of the input, short only at its end."""
        view = memoryview(bytearray(UNKNOWN_LENGTH_EXTENT))

        def work() -> int:
            return read_block(self._descriptor, view, self._cancel)

        return view[: await self._client.workers.until(self._cancel.stop, work)]

    async def _push_short(self, content: memoryview) -> tuple[Answer, str]:
        self._tally.total, self._tally.phase = len(content), "sending"
        answer = await put_whole(
            self._client, self._target, content, digest_of(content), self._meta, self._pace, self._tally
        )
        size = extent_size_for(len(content))
        spans = cut(Span(0, len(content)), size) if content else ()
        digests = [digest_of(content[span.start : span.end]) for span in spans]
        return answer, str(Root.over(digests, len(content), size))

    async def _push_long(self, block: memoryview) -> tuple[Answer, str | None]:
        created = await self._client.persist(
            lambda: self._client.request(
                "POST", self._target, [*self._meta, self._source, ("Upload-Complete", "?0")]
            ),
            self._tally,
        )
        document = created.document()
        if document.get("outcome") == Outcome.SKIPPED:
            return created, None
        upload = OpenUpload.parse(document, None)
        try:
            return await self._send_and_commit(upload, block)
        except (Exception, asyncio.CancelledError):
            await self._withdraw(upload)
            raise

    async def _withdraw(self, upload: OpenUpload) -> None:
        """Have the receiver remove what it holds; whatever prevents it, its own expiry will."""
        with contextlib.suppress(TdxError, OSError):  # a timeout is an OSError
            async with asyncio.timeout(WITHDRAW_SECONDS):
                await self._client.request("DELETE", upload.target, upload.fields)

    async def _send_and_commit(self, upload: OpenUpload, block: memoryview) -> tuple[Answer, str]:
        """Send ``block`` and what follows it until the end of the input."""
        self._tally.phase = "sending"
        length = 0
        while block:
            following = asyncio.create_task(self._read())
            try:
                await self._put(upload, Span(length, length + len(block)), block)
                length += len(block)
                block = await following
            finally:
                if not following.done():
                    self._cancel.stop()
                await asyncio.gather(following, return_exceptions=True)
        self._tally.total, self._tally.phase = length, "committing"
        answer = await self._client.persist(lambda: self._commit(upload, length), self._tally)
        return answer, str(Root.over(self._digests, length, UNKNOWN_LENGTH_EXTENT))

    async def _put(self, upload: OpenUpload, span: Span, block: memoryview) -> None:
        digest = digest_of(block)
        fields = [
            *upload.fields,
            ("Content-Range", format_content_range(ContentRange(span, None))),
            ("Content-Digest", format_digest(ALGORITHM, digest)),
        ]
        await self._client.persist(
            lambda: put_buffer(
                self._client, upload.target, fields, block, self._pace, self._tally, seals=upload.seals
            ),
            self._tally,
        )
        self._digests.append(digest)

    async def _commit(self, upload: OpenUpload, length: int) -> Answer:
        fields = [
            *upload.fields,
            *self._tally.told(),
            ("Upload-Length", str(length)),
            ("Content-Type", "application/octet-stream"),
        ]
        try:
            target = upload.target + "/commit"
            answer = await self._client.request("POST", target, fields, b"".join(self._digests))
            self._tally.hear_all(answer.headers)
            return answer
        except StorageError as error:
            self._disk_failed = error
            raise
        except ExtentsDiffer as difference:
            lost = VerificationFailed(
                f"the receiver lost extents {difference.extents}, and the input cannot be read twice"
            )
            raise self._disk_failed or lost from None
