"""Handlers of ``/uploads/ID``: ranges, appends, queries, commit and cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tdx.control import ending
from tdx.control.files import receipt_response
from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.control.session import Session
from tdx.control.upload_fields import NO_STORE, claims_of, epoch_of, limit, standing, told_by
from tdx.errors import (
    Exists,
    NotFound,
    ProtocolError,
    RangeNotSatisfiable,
    TooLarge,
    VerificationFailed,
)
from tdx.integrity import ALGORITHM, DIGEST_SIZE, MAX_EXTENTS, MIN_EXTENT, PART, extent_count, extents_of
from tdx.model import Claim, Receipt, Span, Stages, UploadId
from tdx.proto import fields
from tdx.proto.receiver import UploadEvent

SPARE_DIGESTS: Final = 4096
"""Digests that a commit may bring beyond those of its upload's extents."""


async def session_of(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Session:
    """The upload, which has not ended, for a request of its newest run."""
    found = await session_or_receipt(receiver, exchange, upload)
    if isinstance(found, Receipt):
        raise NotFound("the upload has ended")
    found.check_epoch(epoch_of(exchange))
    return found


async def session_or_receipt(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Session | Receipt:
    """What there is of an upload. Superseded for a run that a newer one has finished.

    The receipt is looked for last: who publishes writes it first and lets go of the session then, so that an
    upload that ends meanwhile is never missed.
    """
    owner = exchange.identity.owner
    try:
        return await receiver.sessions.get(upload, owner)
    except NotFound:
        receipt = await receiver.sessions.receipt(upload, owner, epoch_of(exchange))
        if receipt is None:
            raise
        return receipt


async def settled(
    receiver: Receiver, exchange: Exchange, upload: UploadId, session: Session
) -> Session | Receipt:
    """What there is of ``session`` once nothing more happens to it: an append that is on its way is ended,
    what it brought is kept, and what is being published is published."""
    await session.writers.end_appends()
    async with session.gate:
        pass
    return await session_or_receipt(receiver, exchange, upload)


async def put_range(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """A run of extents; several connections at once, in any order."""
    session = await session_of(receiver, exchange, upload)
    content_range = exchange.headers("content-range")
    if content_range is None:
        raise ProtocolError("a PUT on an upload needs Content-Range")
    wanted = fields.parse_content_range(content_range)
    span = _checked_span(session, wanted)
    if exchange.head.framing.length != exchange.unseal(len(span)):
        raise ProtocolError(f"Content-Length does not fit Content-Range, which has {len(span)} bytes")
    digest = _digest_of_one(session, exchange, span)
    await receiver.sessions.admit(session, exchange.grant)
    await session.writers.cut_off_silent(span)
    session = await session_of(receiver, exchange, upload)
    session.heard(told_by(exchange))
    receive = session.receive_extents if _is_whole(session, span) else session.receive_part
    received = await receive(exchange, span, digest)
    return json_response(200, {"stages": received.stages.as_dict()})


def _checked_span(session: Session, wanted: fields.ContentRange) -> Span:
    length, size, span = session.upload.spec.length, session.upload.spec.extent_size, wanted.span
    if wanted.length != length:
        raise RangeNotSatisfiable(f"the upload's length is {length}, Content-Range says {wanted.length}")
    if length is not None and span.end > length:
        raise RangeNotSatisfiable(f"the range ends at {span.end}, the upload at {length}")
    if span.end > MAX_EXTENTS * size:
        raise TooLarge(f"the range ends at {span.end}; a file has at most {MAX_EXTENTS * size} bytes")
    if not _is_whole(session, span) and not _is_part(session, span):
        raise RangeNotSatisfiable(
            f"a range starts and ends on a multiple of {size}, or at the end of the file; or it is a part of "
            f"one such extent, and starts and ends on a multiple of {PART}, or at the end of the file"
        )
    return span


def _is_whole(session: Session, span: Span) -> bool:
    """Whether it is a run of extents."""
    length, size = session.upload.spec.length, session.upload.spec.extent_size
    return span.start % size == 0 and (span.end % size == 0 or span.end == length or length is None)


def _is_part(session: Session, span: Span) -> bool:
    length, size = session.upload.spec.length, session.upload.spec.extent_size
    inside = len(extents_of(span, size)) == 1 and length is not None
    return inside and span.start % PART == 0 and (span.end % PART == 0 or span.end == length)


def _digest_of_one(session: Session, exchange: Exchange, span: Span) -> bytes | None:
    """The Content-Digest of a body that is one extent: its extent digest."""
    if exchange.headers("content-digest") is None:
        return None
    digests = [
        claim.digest for claim in claims_of(exchange, "content-digest") if claim.algorithm == ALGORITHM
    ]
    if not digests or len(span) > session.upload.spec.extent_size:
        raise ProtocolError(f"Content-Digest on a range is taken as {ALGORITHM}, of one extent")
    return digests[0]


async def commit(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """Compare the sender's digests and publish. A repeated commit gets the same receipt."""
    length = exchange.headers("upload-length")
    if length is None:
        raise ProtocolError("a commit needs Upload-Length")
    found = await session_or_receipt(receiver, exchange, upload)
    body = await exchange.small_body(_most_digests(found) * DIGEST_SIZE)
    if len(body) % DIGEST_SIZE:
        raise ProtocolError(f"a commit's body is a run of {DIGEST_SIZE}-byte digests")
    digests = [body[at : at + DIGEST_SIZE] for at in range(0, len(body), DIGEST_SIZE)]
    check = exchange.headers("tdx-check")
    receipt, stages = await exchange.keep_posted(
        _commit(
            receiver,
            exchange,
            upload,
            digests,
            fields.parse_integer(length),
            claims_of(exchange, "repr-digest"),
            check_identical=check is not None and fields.parse_boolean(check),
        )
    )
    return receipt_response(receipt, stages=stages)


def _most_digests(found: Session | Receipt) -> int:
    """How many digests a commit may bring, as they are kept in memory: not many more than there are extents.
    Of an upload without a length those that came count, and some may turn out to be lost."""
    if isinstance(found, Receipt):
        return extent_count(found.size, MIN_EXTENT) + SPARE_DIGESTS
    length, size = found.upload.spec.length, found.upload.spec.extent_size
    return extent_count(found.upload.held.total() if length is None else length, size) + SPARE_DIGESTS


async def _commit(
    receiver: Receiver,
    exchange: Exchange,
    upload: UploadId,
    digests: list[bytes],
    length: int,
    claims: Sequence[Claim],
    *,
    check_identical: bool,
) -> tuple[Receipt, Stages | None]:
    """With the receipt, the seconds of the run that it ends; None where it has ended before."""
    owner, epoch = exchange.identity.owner, epoch_of(exchange)
    receipt = await receiver.sessions.receipt(upload, owner, epoch)
    if receipt is not None:
        return receipt, None
    try:
        async with receiver.sessions.alone(upload, owner) as session:
            session.check_epoch(epoch)
            session.heard(told_by(exchange))
            await exchange.still_permitted()
            # The policy may have been changed since the upload was created.
            exchange.grant.check_begun(session.upload.spec.name, session.upload.spec.conflict)
            try:
                receipt = await ending.commit(
                    session, digests, length, claims, check_identical=check_identical
                )
            except (Exists, VerificationFailed) as error:
                await receiver.sessions.discard(session, "failed", error)
                raise
            receiver.sessions.ended(session, receipt)
            receiver.published([receipt], exchange.identity)
            return receipt, session.brought.stages
    except NotFound:
        # Another commit has published it meanwhile, or opening it again finished an intent.
        receipt = await receiver.sessions.receipt(upload, owner, epoch)
        if receipt is None:
            raise
        return receipt, None


async def query(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """HEAD: offset and completeness (the draft); GET: the same as JSON, with the held ranges."""
    found = await session_or_receipt(receiver, exchange, upload)
    if isinstance(found, Session):
        if (stated := epoch_of(exchange)) is not None:
            found.check_epoch(stated)
        if exchange.head.method == "HEAD" and found.upload.spec.source_id is None:
            with found.in_use():
                found = await settled(receiver, exchange, upload, found)
                if isinstance(found, Session):
                    await found.at_length(found.upload.mark)
    if isinstance(found, Receipt):
        length: int | None = found.size
        offset, state, epoch, held = found.size, "published", None, [[0, found.size]] if found.size else []
        bounds = limit(exchange, ended=True)
    else:
        spec = found.upload.spec
        length, offset, state = spec.length, found.offset, found.machine.state.value
        epoch, held = found.upload.epoch, [[span.start, span.end] for span in found.upload.held]
        bounds = limit(exchange, spec)
    answer = [*standing(exchange, offset, done=isinstance(found, Receipt)), bounds, NO_STORE]
    if length is not None:
        answer.append(("Upload-Length", str(length)))
    if exchange.head.method == "HEAD":
        return Response(204, answer)
    document = {"id": upload, "state": state, "length": length, "epoch": epoch, "held": held}
    return json_response(200, document, answer)


async def cancel(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    async with receiver.sessions.alone(upload, exchange.identity.owner) as session:
        session.check_epoch(epoch_of(exchange))
        session.machine.handle(UploadEvent.CANCEL)
        await session.writers.cut_off(NotFound("the upload was cancelled"))
        await receiver.sessions.discard(session, "cancelled")
    return Response(204)
