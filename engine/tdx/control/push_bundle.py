"""Pushing many small files with one request: the sender's side of ``POST /files`` (docs/http.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, cast

from tdx.control.client import Client
from tdx.control.items import BUNDLED_MOST
from tdx.control.pace import Pace
from tdx.control.progress import PushResult, Tally, receipt_of
from tdx.data.entries import EntriesSend, SmallFile
from tdx.data.port import Cancel
from tdx.errors import (
    ConnectionLost,
    DigestMismatch,
    LengthRequired,
    MethodNotAllowed,
    NotFound,
    ProtocolError,
    Superseded,
    TdxError,
    UnsupportedMedia,
    VerificationFailed,
)
from tdx.integrity import MIN_EXTENT, Root
from tdx.model import MAX_REPAIR_ROUNDS, Conflict
from tdx.proto import problem
from tdx.proto.bundle import MEDIA_TYPE

TARGET: Final = "/files"

_UNKNOWN: Final = (NotFound, MethodNotAllowed, LengthRequired, UnsupportedMedia)

FileOutcome = PushResult | TdxError


class NotBundled(Exception):
    """The receiver knows no bundles: it is an older one."""


class BundlePush:
    """One bundle from its first sending until every file of it has an outcome.

    ``outcomes`` is filled as answers come; a file that stays out of the bundle
    (:attr:`SmallFile.aside`) gets none. ``turn`` lets one bundle at a time be written: two
    threads at it would wait for each other's interpreter, and a body that rests would look
    stalled to the receiver.
    """

    def __init__(
        self,
        client: Client,
        files: Sequence[SmallFile],
        conflict: Conflict,
        pace: Pace,
        tally: Tally,
        turn: asyncio.Lock,
    ) -> None:
        self.outcomes: dict[SmallFile, FileOutcome] = {}
        self._client = client
        self._files = files
        self._conflict = conflict
        self._tally = tally
        self._turn = turn
        self._pump = EntriesSend(BUNDLED_MOST, tally.add_sent, pace.wait_for, pace.most)
        self._retrier = client.retrier()
        self._began = asyncio.get_running_loop().time()
        self._repairs = 0
        self._replay = False

    async def run(self) -> None:
        """Send the files until each is settled. NotBundled where the receiver takes no bundles."""
        try:
            await self._run()
        except TdxError as error:
            for file in self._files:
                if not file.aside:
                    self.outcomes.setdefault(file, error)

    async def _run(self) -> None:
        waiting = list(self._files)
        while waiting:
            try:
                document = await self._exchange(waiting)
            except _UNKNOWN as error:
                raise NotBundled from error
            except TdxError as error:
                self._replay = True
                if isinstance(error, Superseded):
                    # Nobody else has these keys: bytes of an earlier sending had yet to be read there, and
                    # were read after its replay had begun.
                    error = ConnectionLost("the peer has received an earlier sending of these files instead")
                await self._client.pause_after(error, self._retrier, self._tally)
                waiting = self._unsettled(waiting)
            else:
                waiting = await self._settle(self._unsettled(waiting), document)

    async def _exchange(self, files: Sequence[SmallFile]) -> dict[str, object]:
        cancel = Cancel()
        told = self._tally.told()
        fields = [("Content-Type", MEDIA_TYPE), ("Tdx-Conflict", self._conflict.value), *told]
        if self._replay:
            fields.append(("Tdx-Replay", "?1"))
        await self._turn.acquire()
        waits_for_answer = False

        def written() -> None:
            nonlocal waits_for_answer
            waits_for_answer = True
            self._tally.phase = "committing"
            self._turn.release()

        self._tally.phase = "sending"
        try:
            with self._tally.under_way() as stages:
                answer, whole = await self._client.upload(
                    "POST",
                    TARGET,
                    fields,
                    None,
                    lambda sock: self._pump.send(sock, files, cancel, self._client.stall_timeout, stages),
                    cancel,
                    written=written,
                )
        finally:
            if not waits_for_answer:
                self._turn.release()
        if not whole:
            raise ProtocolError("the peer answered before it had the whole bundle")
        return answer.document()

    def _unsettled(self, files: Sequence[SmallFile]) -> list[SmallFile]:
        """Those that are in the bundle; what has changed since it was sent first is settled here."""
        for file in files:
            if file.error is not None:
                self.outcomes[file] = file.error
        return [file for file in files if not file.aside]

    async def _settle(self, files: list[SmallFile], document: dict[str, object]) -> list[SmallFile]:
        """Take the answer's word on each file; those that are to be sent again."""
        answers = document.get("files")
        if not isinstance(answers, list) or len(cast("list[object]", answers)) != len(files):
            raise ProtocolError("the peer's answer does not fit the bundle; is it a tdx receiver?")
        self._tally.hear(document.get("stages"))
        seconds = asyncio.get_running_loop().time() - self._began
        damaged: dict[SmallFile, TdxError] = {}
        refused: dict[SmallFile, TdxError] = {}
        settled = False
        for file, answer in zip(files, cast("list[object]", answers), strict=True):
            outcome = _outcome_of(file, answer, seconds)
            if isinstance(outcome, DigestMismatch):
                damaged[file] = outcome
            elif isinstance(outcome, TdxError) and not outcome.permanent:
                refused[file] = outcome
            else:
                self.outcomes[file] = outcome
                settled = True
        if settled:
            self._retrier.progressed()
        self._replay = True
        return self._repairable(damaged) + await self._repeatable(refused)

    def _repairable(self, damaged: dict[SmallFile, TdxError]) -> list[SmallFile]:
        """What arrived corrupt is sent again at once, a bounded number of times."""
        if damaged and self._repairs == MAX_REPAIR_ROUNDS:
            for file, error in damaged.items():
                message = f"{error.message}, also after {self._repairs} repairs"
                self.outcomes[file] = VerificationFailed(message)
            return []
        if damaged:
            self._repairs += 1
            self._client.count_retry(next(iter(damaged.values())), self._tally)
        return list(damaged)

    async def _repeatable(self, refused: dict[SmallFile, TdxError]) -> list[SmallFile]:
        """What the receiver could not take just now, after a wait."""
        if not refused:
            return []
        try:
            await self._client.pause_after(next(iter(refused.values())), self._retrier, self._tally)
        except TdxError:
            self.outcomes.update(refused)
            return []
        return list(refused)


def _outcome_of(file: SmallFile, answer: object, seconds: float) -> FileOutcome:
    if not isinstance(answer, dict):
        return ProtocolError("the peer's answer is not a receipt; is it a tdx receiver?")
    document = cast("dict[str, object]", answer)
    if (refusal := problem.parse_member(document)) is not None:
        return refusal
    digests = [file.digest] if file.size else []
    try:
        return receipt_of(document, str(Root.over(digests, file.size, MIN_EXTENT)), seconds, sent=file.sent)
    except ProtocolError as error:
        return error
