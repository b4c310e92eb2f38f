"""What a receiver logs about uploads, from their beginning to their end: the words and the fields.

Every function leaves one record whose ``fields`` attribute, a mapping, is the same for programs; a formatter
writes them out (docs/logs.md). Texts from elsewhere are made fit for a line here, fields are as they came.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from tdx.errors import TdxError
from tdx.model import FileName, Identity, Outcome, Owner, Receipt, Stages, UploadId, shown
from tdx.policy.bottleneck import name_bottleneck

if TYPE_CHECKING:
    from tdx.control.session import Session
    from tdx.store.port import Existing, Partial, Upload

uploads: Final = logging.getLogger("tdx.uploads")
"""Uploads that begin and end."""

audit: Final = logging.getLogger("tdx.audit")
"""Whoever was not let in."""

requests: Final = logging.getLogger("tdx.requests")
"""What was refused to those who may be here."""

LONGEST_SAID: Final = 1000
"""Characters of a text from elsewhere that go into a line."""

CALLER: Final[ContextVar[Identity | None]] = ContextVar("caller", default=None)
"""Whose request is being answered, as far as that is known."""


def calling_for(owner: Owner) -> str | None:
    """The machine that is calling, if it is one of this owner's."""
    caller = CALLER.get()
    return caller.node if caller is not None and caller.owner == owner else None


def said(text: str) -> str:
    """Text from elsewhere: one line, of a bounded length."""
    return shown(text[:LONGEST_SAID])


def _tell(
    level: int, event: str, text: str, fields: Mapping[str, object], logger: logging.Logger = uploads
) -> None:
    caller = CALLER.get()
    peer = {} if caller is None else {"peer": caller.node, "owner": caller.owner}
    extra = {"fields": {"event": event, **peer, **fields}}
    logger.log(level, "%s", text, extra=extra)


def _seconds(value: float) -> float:
    return round(value, 6)


def _waited_for(sender: Stages | None, receiver: Stages) -> dict[str, object]:
    return {
        "sender_stages": None if sender is None else sender.took_time(),
        "bottleneck": name_bottleneck(sender, receiver),
    }


def _of(upload: Upload) -> dict[str, object]:
    spec = upload.spec
    return {"upload": upload.id, "owner": spec.owner, "name": spec.name, "size": spec.length}


def _who(owner: Owner) -> str:
    caller = CALLER.get()
    return str(caller) if caller is not None and caller.owner == owner else shown(owner)


def _bytes(size: int | None) -> str:
    return "of unknown length" if size is None else f"of {size} bytes"


# --- one upload --------------------------------------------------------------


def created(upload: Upload) -> None:
    """A new upload, of which nothing is held."""
    if uploads.isEnabledFor(logging.INFO):
        spec = upload.spec
        text = f"{upload.id} created: {said(spec.name)} {_bytes(spec.length)} from {_who(spec.owner)}"
        _tell(logging.INFO, "created", text, _of(upload))


def resumed(upload: Upload) -> None:
    """A new run goes on from what an earlier one brought."""
    if uploads.isEnabledFor(logging.INFO):
        spec, held = upload.spec, upload.held.total()
        text = (
            f"{upload.id} resumed: {said(spec.name)} {_bytes(spec.length)} from {_who(spec.owner)}, "
            f"{held} held already"
        )
        _tell(logging.INFO, "resumed", text, {**_of(upload), "resumed_bytes": held})


def ended(
    session: Session,
    outcome: str,
    seconds: float,
    receipt: Receipt | None = None,
    why: BaseException | None = None,
) -> None:
    """An upload is no more: ``outcome`` is that of its ``receipt``, or ``failed``, ``cancelled`` or
    ``superseded``, as the metrics have it; ``why``: what it failed of."""
    if not uploads.isEnabledFor(logging.INFO):
        return
    brought = session.brought
    facts: dict[str, object] = {
        **_of(session.upload),
        "received_bytes": brought.bytes,
        "resumed_bytes": session.resumed,
        "seconds": _seconds(seconds),
        "stages": brought.stages.took_time(),
        **_waited_for(session.told, brought.stages),
        "outcome": outcome,
    }
    text = f"{session.id} {outcome}: {said(session.upload.spec.name)}"
    if receipt is not None:
        facts |= {"path": receipt.path, "size": receipt.size, "root": receipt.root}
        text += _as(receipt) + f", {receipt.size} bytes"
    if why is not None:
        facts |= reason_of(why)
        text += f": {said(str(why) or type(why).__name__)}"
    text += f"; {brought.bytes} received, {session.resumed} resumed, in {seconds:.3f} s"
    if stages := " ".join(f"{stage} {took:.3f}" for stage, took in brought.stages.took_time().items()):
        text += f" ({stages})"
    if facts["bottleneck"] is not None:
        text += f", limited by {facts['bottleneck']}"
    _tell(logging.INFO, outcome, text, facts)


def reason_of(why: BaseException) -> dict[str, object]:
    """The fields ``error``, a stable code, and ``reason``, for people. What is no error of the tree, such
    as the end of the task, is ``interrupted``."""
    if isinstance(why, TdxError):
        return {"error": why.code, "reason": why.message}
    return {"error": "interrupted", "reason": f"{type(why).__name__}: {why}".removesuffix(": ")}


def _as(receipt: Receipt) -> str:
    return "" if receipt.path == receipt.name else f" as {said(receipt.path)}"


def kept(session: Session) -> None:
    """Nobody is sending any more, and what has come waits to be resumed."""
    if uploads.isEnabledFor(logging.INFO):
        held = session.upload.held.total()
        text = (
            f"{session.id} kept: {said(session.upload.spec.name)}, {held} bytes are held and can be resumed"
        )
        facts = {"received_bytes": session.brought.bytes, "held_bytes": held}
        _tell(logging.INFO, "kept", text, {**_of(session.upload), **facts})


def expired(partial: Partial) -> None:
    """An abandoned upload was removed."""
    spec = partial.spec
    text = f"{partial.upload} expired: {said(spec.name)} of {shown(spec.owner)}"
    facts = {"owner": spec.owner, "name": spec.name, "size": spec.length, "held_bytes": partial.staged_bytes}
    _tell(logging.INFO, "expired", text, {"upload": partial.upload, **facts})


def recovered(receipt: Receipt) -> None:
    """What an earlier process was publishing has been published."""
    text = f"{receipt.upload} published: {said(receipt.name)}{_as(receipt)}, after an interruption"
    facts = {
        "outcome": receipt.outcome.value,
        "path": receipt.path,
        "size": receipt.size,
        "root": receipt.root,
    }
    _tell(logging.INFO, "published", text, {**_named(receipt.upload, receipt.owner, receipt.name), **facts})


def _named(upload: UploadId, owner: Owner, name: FileName) -> dict[str, object]:
    return {"upload": upload, "owner": owner, "name": name}


def left_alone(name: FileName, existing: Existing, outcome: Outcome) -> None:
    """Nothing had to be received, because of the file that is there."""
    if uploads.isEnabledFor(logging.INFO):
        caller = CALLER.get()
        by = "" if caller is None else f" from {caller}"
        text = f"{outcome}: {said(name)}{by}; {said(existing.path)} is there"
        facts = {"name": name, "path": existing.path, "size": existing.size, "outcome": outcome.value}
        _tell(logging.INFO, outcome.value, text, {**facts, "received_bytes": 0})


# --- many at once ------------------------------------------------------------


def bundle(
    owner: Owner,
    results: Sequence[Receipt | TdxError],
    received: int,
    seconds: float,
    stages: Stages,
    sender_stages: Stages | None,
) -> None:
    """Files that came together: one line with their counts, and one for each where that is asked for."""
    if not uploads.isEnabledFor(logging.INFO):
        return
    counts = Counter(each.outcome.value if isinstance(each, Receipt) else "failed" for each in results)
    errors = Counter(each.code for each in results if isinstance(each, TdxError))
    text = f"bundle: {', '.join(f'{count} {what}' for what, count in counts.items()) or 'nothing'}"
    if errors:
        text += f" ({', '.join(f'{count} {code}' for code, count in errors.items())})"
    text += f" from {_who(owner)}; {received} bytes received in {seconds:.3f} s"
    facts: dict[str, object] = {
        "owner": owner,
        "files": len(results),
        **{outcome.value: counts[outcome.value] for outcome in Outcome},
        "failed": counts["failed"],
        "errors": dict(errors),
        "received_bytes": received,
        "seconds": _seconds(seconds),
        "stages": stages.took_time(),
        **_waited_for(sender_stages, stages),
    }
    _tell(logging.INFO, "bundle", text, facts)
    if uploads.isEnabledFor(logging.DEBUG):
        _each(owner, results)


def _each(owner: Owner, results: Iterable[Receipt | TdxError]) -> None:
    for each in results:
        if isinstance(each, Receipt):
            text = f"{each.upload} {each.outcome}: {said(each.name)}{_as(each)}, {each.size} bytes"
            facts = {"path": each.path, "size": each.size, "root": each.root, "outcome": each.outcome.value}
            named = _named(each.upload, each.owner, each.name)
            _tell(logging.DEBUG, each.outcome.value, text, {**named, **facts})
        else:
            facts = {"owner": owner, "outcome": "failed", **reason_of(each)}
            _tell(logging.DEBUG, "failed", f"failed in a bundle: {said(each.message)}", facts)


# --- refusals ----------------------------------------------------------------


def refused(remote: str, what: str, error: TdxError, *, level: int, held_back: int) -> None:
    """``what`` was refused to whoever is at the address ``remote``; before it, ``held_back`` more that
    have no line. A warning is about somebody who was not let in."""
    logger = audit if level >= logging.WARNING else requests
    if not logger.isEnabledFor(level):
        return
    if held_back:
        text = f"{held_back} more were refused that have no line here"
        _tell(level, "held-back", text, {"count": held_back}, logger)
    facts = {"address": remote, "request": what[:LONGEST_SAID], "error": error.code}
    text = f"refused {said(what)} from {remote}: {said(error.message)}"
    _tell(level, "refused", text, {**facts, "reason": error.message[:LONGEST_SAID]}, logger)
