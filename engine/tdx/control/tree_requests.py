"""Telling the receiver of the entries of a tree: the sender's side of ``POST /v1/tree`` (docs/http.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from tdx.control.client import Answer, Client
from tdx.control.items import Folder, Link
from tdx.control.pace import Pace
from tdx.control.progress import Tally
from tdx.data.port import Cancel, SendHooks
from tdx.data.send import send_buffer
from tdx.errors import ConnectionLost, MethodNotAllowed, NotFound, ProtocolError, TdxError
from tdx.model import Conflict, Span, shown
from tdx.proto import problem
from tdx.proto.tree import MAX_BODY, MAX_ENTRIES

TARGET: Final = "/v1/tree"

MAX_TIME: Final = 2**63 - 1
"""Nanoseconds before or after the Unix epoch. One entry with more would have a whole request refused."""

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


class NoTrees(Exception):
    """The receiver knows no trees: it is an older one."""


@dataclass(slots=True)
class FileState:
    """A file as the receiver is asked about it. ``root`` is None where it is not known."""

    name: str
    size: int
    mtime_ns: int
    mode: int
    root: str | None


Entry = FileState | Folder | Link


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the receiver says of one entry. ``kind`` is ``same``, ``made``, ``send``, ``ask``, ``skipped`` or
    ``failed``, with an ``error``; ``path`` is where it is there, None where that is its name."""

    kind: str
    path: str | None = None
    error: TdxError | None = None


_PART_VERDICTS: Final = {kind: Verdict(kind) for kind in ("same", "made", "skipped")}
_FILE_VERDICTS: Final = _PART_VERDICTS | {kind: Verdict(kind) for kind in ("send", "ask")}


class TreeRequests:
    """Used by one task at a time, but for :meth:`ask`, which any may call."""

    def __init__(self, client: Client, conflict: Conflict, pace: Pace) -> None:
        self._client = client
        self._fields = [("Content-Type", "application/json"), ("Tdx-Conflict", conflict.value)]
        self._pace = pace
        self._understood = False

    async def ask(self, entries: Sequence[Entry]) -> list[Verdict]:
        """A verdict for each entry, in their order. NoTrees, or what ended the request in the end. What the
        receiver could not do just now is asked again a few times."""
        verdicts = [Verdict("failed")] * len(entries)
        waiting = list(range(len(entries)))
        retrier, tally = self._client.retrier(), Tally()
        while waiting:
            answers = await self._ask_all([entries[at] for at in waiting])
            for at, verdict in zip(waiting, answers, strict=True):
                verdicts[at] = verdict
            passing = [(at, error) for at in waiting if (error := verdicts[at].error) and not error.permanent]
            waiting = [at for at, _ in passing]
            if waiting:
                try:
                    await self._client.pause_after(passing[0][1], retrier, tally)
                except TdxError:
                    break
        return verdicts

    async def _ask_all(self, entries: Sequence[Entry]) -> list[Verdict]:
        """In as many requests as it takes."""
        if len(entries) <= MAX_ENTRIES:
            body = _encode({"entries": [_members(each) for each in entries]}).encode()
            if len(body) <= MAX_BODY or len(entries) == 1:
                return await self._request(body, entries)
        half = len(entries) // 2
        return [*await self._ask_all(entries[:half]), *await self._ask_all(entries[half:])]

    async def _request(self, body: bytes, entries: Sequence[Entry]) -> list[Verdict]:
        answer = await self._client.persist(lambda: self._exchange(memoryview(body)), Tally())
        if answer is None:
            raise NoTrees
        self._understood = True
        answers = answer.document().get("entries")
        if not isinstance(answers, list) or len(cast("list[object]", answers)) != len(entries):
            raise ProtocolError("the peer's answer does not fit the tree; is it a tdx receiver?")
        return [_verdict(*pair) for pair in zip(entries, cast("list[object]", answers), strict=True)]

    async def _exchange(self, body: memoryview) -> Answer | None:
        """None from an older receiver, which is asked before it is sent what it would not read."""
        cancel = Cancel()
        hooks = SendHooks(sent=_ignore, hashed=_ignore_digest, pace=self._pace.wait_for)
        stall_timeout = self._client.stall_timeout
        try:
            answer, whole = await self._client.upload(
                "POST",
                TARGET,
                self._fields,
                len(body),
                lambda sock: send_buffer(sock, body, hooks, cancel, stall_timeout),
                cancel,
                ask_first=not self._understood,
            )
        except (NotFound, MethodNotAllowed):
            return None
        if not whole:
            raise ConnectionLost("the peer answered before it had the whole tree")
        return answer


def _members(entry: Entry) -> list[object]:
    if isinstance(entry, FileState):
        return ["file", entry.name, entry.size, entry.mtime_ns, entry.mode, entry.root]
    time = max(-MAX_TIME, min(entry.mtime_ns, MAX_TIME))
    if isinstance(entry, Folder):
        return ["folder", entry.name, time, entry.mode]
    return ["link", entry.name, time, entry.target]


def _verdict(entry: Entry, answer: object) -> Verdict:
    known = _FILE_VERDICTS if isinstance(entry, FileState) else _PART_VERDICTS
    if isinstance(answer, str):
        return known.get(answer) or Verdict("failed", error=_nonsense(entry))
    if isinstance(answer, dict):
        error = problem.parse_member(cast("dict[str, object]", answer))
        return Verdict("failed", error=error or _nonsense(entry))
    if isinstance(answer, list) and len(cast("list[object]", answer)) == 2:
        kind, path = cast("list[object]", answer)
        if isinstance(kind, str) and kind in known and isinstance(path, str):
            return Verdict(kind, path)
    return Verdict("failed", error=_nonsense(entry))


def _nonsense(entry: Entry) -> ProtocolError:
    name = shown(entry.name)
    return ProtocolError(f"{name}: what the peer says of it means nothing; is it a tdx receiver?")


def _ignore(_: int) -> None:
    """What is told of files is none of their content."""


def _ignore_digest(_span: Span, _digest: bytes) -> None:
    """There is nothing to verify it with."""
