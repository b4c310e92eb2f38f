"""The handler of ``POST /v1/tree``: what of a tree is here, and what is still to come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tdx.control.file_fields import too_large
from tdx.control.messages import JSON_TYPE, Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.data.port import Cancel
from tdx.errors import BadName, LengthRequired, TdxError, TooLarge, UnsupportedMedia
from tdx.integrity import MAX_LENGTH
from tdx.model import Conflict, Outcome
from tdx.policy.rules import Grant, largest_file
from tdx.proto import fields
from tdx.proto.problem import document_of
from tdx.proto.tree import MAX_BODY, Entry, FileEntry, Verdict, parse_entries, said
from tdx.store.port import Told

Result = Told | TdxError

_OUTCOMES = {
    Verdict.SAME: Outcome.IDENTICAL,
    Verdict.MADE: Outcome.IDENTICAL,
    Verdict.SKIPPED: Outcome.SKIPPED,
}
"""How the push of a file has ended that need not come. Others are counted when they come."""


async def take(receiver: Receiver, exchange: Exchange) -> Response:
    """Make what needs no content of many entries, and say of each what is still needed."""
    media_type = (exchange.headers("content-type") or "").partition(";")[0]
    if media_type.strip().lower() != JSON_TYPE:
        raise UnsupportedMedia(f"the entries of a tree come as {JSON_TYPE}")
    length = exchange.head.framing.length
    if length is None or not exchange.head.framing.stated:
        raise LengthRequired("the entries of a tree need Content-Length")
    if length > MAX_BODY:
        raise TooLarge(f"a body of {length} bytes where at most {MAX_BODY} are taken")
    wish = exchange.headers("tdx-conflict")
    conflict = Conflict.RENAME if wish is None else fields.parse_conflict(wish)
    exchange.grant.check_conflict(conflict)
    with receiver.tree_bodies.room_for(exchange.identity.owner, length):
        body = await exchange.small_body(MAX_BODY)
        await exchange.still_permitted()
        exchange.grant.check_conflict(conflict)
        cancel = Cancel()
        try:
            answer = await exchange.keep_posted(_take(receiver, exchange, conflict, body, cancel))
        finally:
            cancel.stop()  # where nobody waits for it any more
    return json_response(200, {"entries": answer})


async def _take(
    receiver: Receiver, exchange: Exchange, conflict: Conflict, body: bytes, cancel: Cancel
) -> list[object]:
    owner, grant = exchange.identity.owner, exchange.grant

    def work() -> tuple[list[Entry | BadName], list[Result]]:
        entries = parse_entries(body)
        placed = [_placed(each, grant) for each in entries]
        wanted = [each for each in placed if not isinstance(each, BadName)]
        told = iter(receiver.store.take_entries(owner, conflict, wanted, cancel.check))
        return entries, [each if isinstance(each, BadName) else next(told) for each in placed]

    try:
        entries, results = await receiver.workers.in_turn(owner, work)
    except TdxError:
        if cancel.reason is not None:
            return []  # nobody is there to be told
        raise
    most = largest_file(exchange.limits, grant, MAX_LENGTH)
    results = [_bounded(entry, result, most, grant) for entry, result in zip(entries, results, strict=True)]
    _count(receiver, exchange.protocol, entries, results)
    return [_said(entry, result) for entry, result in zip(entries, results, strict=True)]


def _placed(entry: Entry | BadName, grant: Grant) -> Entry | BadName:
    """The entry under the name that it shall have at this receiver."""
    if grant.into is None or isinstance(entry, BadName):
        return entry
    try:
        return replace(entry, name=grant.place(entry.name))
    except BadName as error:
        return error


def _bounded(entry: Entry | BadName, result: Result, most: int, grant: Grant) -> Result:
    """Whether content that is needed would be taken too."""
    wanted = isinstance(result, Told) and result.verdict is Verdict.SEND
    if wanted and isinstance(entry, FileEntry) and entry.size > most:
        return too_large(entry.size, most, grant)
    return result


def _said(entry: Entry | BadName, result: Result) -> object:
    if isinstance(entry, BadName):
        return {"problem": document_of(entry)}
    if isinstance(result, TdxError):
        return {"problem": document_of(result)}
    return said(result.verdict, entry.name, result.path)


def _count(
    receiver: Receiver, protocol: str, entries: Sequence[Entry | BadName], results: Sequence[Result]
) -> None:
    outcomes: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, TdxError):
            refused[result.code] += 1
        elif isinstance(entry, FileEntry) and result.verdict in _OUTCOMES:
            outcomes[_OUTCOMES[result.verdict].value] += 1
    for outcome, count in outcomes.items():
        receiver.metrics.uploads.add(count, (protocol, outcome))
    for code, count in refused.items():
        receiver.metrics.refused.add(count, (code,))
