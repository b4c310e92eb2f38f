"""Handlers of ``/files/NAME``: whole and partial PUT, creation, and where a partial stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.control.session import Session
from tdx.errors import (
    DigestMismatch,
    Exists,
    LengthRequired,
    NotFound,
    OffsetMismatch,
    PreconditionFailed,
    ProtocolError,
    TooLarge,
)
from tdx.integrity import ALGORITHM, extent_size_for
from tdx.model import Conflict, FileName, Outcome, Receipt, UploadSpec
from tdx.proto import fields
from tdx.store.port import Existing

PLAIN_EXPIRY: Final = 86400.0
"""Idle lifetime in seconds of what a plain HTTP client left half-sent."""

VERIFIABLE: Final = (ALGORITHM, "sha-256", "sha-512")


def receipt_response(receipt: Receipt, status: int = 200) -> Response:
    document = {
        "outcome": receipt.outcome,
        "name": receipt.name,
        "path": receipt.path,
        "size": receipt.size,
        "root": receipt.root,
        "verified": receipt.verified,
    }
    return json_response(status, document)


def left_alone(name: FileName, existing: Existing, outcome: Outcome) -> Response:
    """The answer where nothing had to be stored, because of the file that is there."""
    return json_response(
        200, {"outcome": outcome, "name": name, "path": existing.path, "size": existing.size, "root": None}
    )


def spec_of(exchange: Exchange, name: FileName, length: int | None) -> UploadSpec:
    """The upload that a request's fields ask for."""
    get = exchange.headers
    mtime, mode, conflict, holes = get("tdx-mtime"), get("tdx-mode"), get("tdx-conflict"), get("tdx-holes")
    spec = UploadSpec(
        owner=exchange.identity.owner,
        name=name,
        length=length,
        extent_size=extent_size_for(length),
        conflict=Conflict.RENAME if conflict is None else fields.parse_conflict(conflict),
        source_id=get("tdx-source"),
        fingerprint=get("tdx-fingerprint"),
        mtime_ns=None if mtime is None else fields.parse_integer(mtime),
        mode=None if mode is None else fields.parse_mode(mode),
        holes=() if holes is None else fields.parse_spans(holes),
        key=get("tdx-upload-key"),
    )
    if any(hole.end > (length or 0) for hole in spec.holes):
        raise ProtocolError("Tdx-Holes reaches beyond the file")
    return spec


def expected_digests(exchange: Exchange) -> dict[str, bytes]:
    """The digests of Content-Digest and Repr-Digest (RFC 9530) that can be verified here.

    Both name the whole file, since no content coding is taken.
    """
    return _verifiable(exchange, "content-digest") | _verifiable(exchange, "repr-digest")


def _verifiable(exchange: Exchange, name: str) -> dict[str, bytes]:
    value = exchange.headers(name)
    given = {} if value is None else fields.parse_digests(value)
    return {algorithm: digest for algorithm, digest in given.items() if algorithm in VERIFIABLE}


def check_size(receiver: Receiver, length: int | None) -> None:
    limit = receiver.limits.max_file
    if limit is not None and length is not None and length > limit:
        raise TooLarge(f"a file of {length} bytes where at most {limit} are taken")


async def put_file(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """A whole file in one request; or, with Content-Range, the next part of one."""
    content_range = exchange.headers("content-range")
    if content_range is not None:
        return await _put_part(receiver, exchange, name, fields.parse_content_range(content_range))
    key = exchange.headers("tdx-upload-key")
    if key is not None:
        receipt = await receiver.workers.on_disk(receiver.store.receipt_by_key, exchange.identity.owner, key)
        if receipt is not None:
            return receipt_response(receipt)
    length = exchange.head.framing.length
    check_size(receiver, length)
    spec = replace(spec_of(exchange, name, length), expires_after=PLAIN_EXPIRY)
    digests = expected_digests(exchange)
    answer = await _settled_before_body(receiver, exchange, spec, digests)
    if answer is not None:
        return answer
    session, _ = await receiver.sessions.open_for(spec, resume=False)
    try:
        await session.receive_onward(exchange, 0)
    except BaseException:
        # What a plain client left can be continued with Content-Range if its length is
        # known. A tdx sender sends so small a file again as a whole.
        if key is not None or length is None:
            await receiver.sessions.discard(session)
        raise
    return await exchange.keep_posted(complete(receiver, session, digests))


async def _settled_before_body(
    receiver: Receiver, exchange: Exchange, spec: UploadSpec, digests: Mapping[str, bytes]
) -> Response | None:
    existing = await receiver.workers.on_disk(receiver.store.existing, spec.name)
    if existing is None:
        return None
    if exchange.headers("if-none-match") == "*":
        raise PreconditionFailed(f"{spec.name} exists")
    if spec.conflict is Conflict.SKIP:
        return left_alone(spec.name, existing, Outcome.SKIPPED)
    digest = digests.get(ALGORITHM)
    if digest is not None and spec.length is not None and existing.size == spec.length <= spec.extent_size:
        there = await receiver.workers.on_disk(receiver.store.existing_digests, spec.name, spec.extent_size)
        if there == ([digest] if spec.length else []):
            return left_alone(spec.name, existing, Outcome.IDENTICAL)
    if spec.conflict is Conflict.ERROR:
        raise Exists(f"{spec.name} exists")
    return None


async def _put_part(
    receiver: Receiver, exchange: Exchange, name: FileName, content_range: fields.ContentRange
) -> Response:
    """A partial PUT (RFC 9110 section 14.5): in order, one partial per owner, name and length."""
    span, length = content_range.span, content_range.length
    if length is None:
        raise ProtocolError("a partial PUT names the whole length: Content-Range: bytes a-b/N")
    if exchange.head.framing.length != len(span):
        raise ProtocolError(f"Content-Length does not fit Content-Range, which has {len(span)} bytes")
    check_size(receiver, length)
    if span.start == 0:
        spec = replace(spec_of(exchange, name, length), expires_after=PLAIN_EXPIRY)
        answer = await _settled_before_body(receiver, exchange, spec, {})
        if answer is not None:
            return answer
        session, _ = await receiver.sessions.open_for(spec, resume=False)
    else:
        found = await receiver.sessions.find_sequential(exchange.identity.owner, name, length)
        if found is None:
            raise OffsetMismatch(f"nothing of {name} is here yet", offset=0)
        session = found
    await session.receive_onward(exchange, span.start)
    if session.offset < length:
        return Response(202, [("Upload-Offset", str(session.offset)), ("Upload-Complete", "?0")])
    # Content-Digest covers the part only, Repr-Digest still the whole file.
    return await exchange.keep_posted(complete(receiver, session, _verifiable(exchange, "repr-digest")))


async def complete(receiver: Receiver, session: Session, digests: Mapping[str, bytes]) -> Response:
    """Verify what a plain client sent against its digests, and publish it: 201 once durable."""
    async with session.gate:
        if session.upload.spec.length is None:
            await receiver.workers.on_disk(session.upload.set_length, session.offset)
            check_size(receiver, session.offset)
        for algorithm, digest in digests.items():
            if not await session.matches(algorithm, digest):
                receiver.metrics.digest_failures.add(1)
                await receiver.sessions.discard(session)
                raise DigestMismatch(f"the content does not have the {algorithm} digest that came with it")
        try:
            receipt = await session.finish(verified=bool(digests))
        except Exists:
            await receiver.sessions.discard(session)
            raise
        receiver.sessions.ended(session)
    return receipt_response(receipt, 201 if receipt.outcome is Outcome.PUBLISHED else 200)


async def create(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """Create an upload, or take over the one an earlier run of the same push left."""
    if fields.parse_boolean(exchange.headers("upload-complete") or "?0"):
        return await put_file(receiver, exchange, name)
    stated = exchange.headers("upload-length")
    length = None if stated is None else fields.parse_integer(stated)
    check_size(receiver, length)
    spec = spec_of(exchange, name, length)
    existing = await receiver.workers.on_disk(receiver.store.existing, name)
    same_size = existing is not None and existing.size == length
    if existing is not None and spec.conflict is Conflict.SKIP:
        return left_alone(name, existing, Outcome.SKIPPED)
    if existing is not None and spec.conflict is Conflict.ERROR and not same_size:
        raise Exists(f"{name} exists with another size")
    wish = exchange.headers("tdx-resume")
    session, earlier = await receiver.sessions.open_for(
        spec, resume=wish is not None and fields.parse_boolean(wish)
    )
    if earlier is not None:
        receiver.metrics.resumes.add(1)
        receiver.metrics.resumed_bytes.add(session.upload.held.total())
    if not exchange.body_done:
        await session.receive_onward(exchange, 0)
    document = {
        "id": session.id,
        "epoch": session.upload.epoch,
        "extent_size": session.upload.spec.extent_size,
        "held": [[span.start, span.end] for span in session.upload.held],
        "streams": receiver.limits.streams_per_upload,
        "existing": same_size,
        "resumed": earlier is not None,
        "unchanged": earlier is not None and earlier.fingerprint == spec.fingerprint,
    }
    return json_response(
        201,
        document,
        [
            ("Location", f"/uploads/{session.id}"),
            ("Upload-Offset", str(session.offset)),
            ("Upload-Complete", "?0"),
        ],
    )


async def stand(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """HEAD: how far the caller's own partial of this name has come."""
    session = await receiver.sessions.find_sequential(exchange.identity.owner, name, None)
    if session is None:
        raise NotFound(f"no partial of {name} from you")
    length = session.upload.spec.length
    if length is None:
        raise LengthRequired("the partial has no length")
    return Response(
        204,
        [
            ("Upload-Offset", str(session.offset)),
            ("Upload-Length", str(length)),
            ("Upload-Complete", "?0"),
            ("Cache-Control", "no-store"),
        ],
    )
