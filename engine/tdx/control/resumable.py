"""Handlers of what Resumable Uploads for HTTP adds (draft-ietf-httpbis-resumable-upload): append, OPTIONS."""

from __future__ import annotations

from collections.abc import Iterable

from tdx.control.file_fields import check_size, check_stated_length
from tdx.control.files import complete
from tdx.control.messages import Exchange, Response
from tdx.control.receiver import Receiver
from tdx.control.session import Session
from tdx.control.upload_fields import NO_STORE, claims_of, epoch_of, limit, standing
from tdx.control.uploads import session_or_receipt, settled
from tdx.errors import NotFound, OffsetMismatch, Overrun, ProtocolError, TooLarge
from tdx.model import Receipt, UploadId
from tdx.policy import web
from tdx.proto.problem import COMPLETED_UPLOAD, INCONSISTENT_LENGTH
from tdx.proto.resumable import MEDIA_TYPE, is_partial_upload, parse_amount


async def append(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """PATCH: the next bytes in order."""
    found = await session_or_receipt(receiver, exchange, upload)
    if exchange.dialect.needs_type and not is_partial_upload(exchange.headers("content-type")):
        raise ProtocolError(f"an append has Content-Type: {MEDIA_TYPE}")
    start = parse_amount(exchange.headers, "upload-offset")
    last = exchange.dialect.complete(exchange.headers)
    if start is None or last is None:
        raise ProtocolError("an append needs Upload-Offset and Upload-Complete")
    if isinstance(found, Session):
        found.check_epoch(epoch_of(exchange))
        with found.in_use():
            now = await settled(receiver, exchange, upload, found)
            if isinstance(now, Session):
                now.check_epoch(epoch_of(exchange))
                with now.in_use():
                    await receiver.sessions.admit(now, exchange.grant)
                    return await _append_to(receiver, exchange, now, start, last=last)
            found = now
    return await _append_nothing(exchange, found, start, last=last)


async def _append_to(
    receiver: Receiver, exchange: Exchange, session: Session, start: int, *, last: bool
) -> Response:
    stood = session.offset
    check_stated_length(exchange, session.upload.spec.length)
    try:
        if start == stood and session.upload.spec.length is None:
            await _learn_length(receiver, exchange, session, last=last)
        await session.receive_onward(exchange, start, claims_of(exchange, "content-digest"))
        length = session.upload.spec.length
        if last or (exchange.dialect.ends_at_length and session.offset == length):
            claims = claims_of(exchange, "repr-digest")
            return await exchange.keep_posted(complete(receiver, exchange, session, claims))
    except OffsetMismatch as error:
        # Beyond where it stood when another append has come in between.
        if error.offset >= stood:
            exchange.always.append(exchange.dialect.completeness(done=False))
            raise
        # The draft forbids an offset to decrease.
        await receiver.sessions.discard(session, "failed", error)
        raise NotFound("bytes of this upload were lost; start a new one") from None
    except (Overrun, TooLarge) as error:
        await receiver.sessions.discard(session, "failed", error)
        raise
    # An offset that is told must not decrease, whatever happens to the machine.
    await session.at_length(session.upload.mark)
    return Response(exchange.dialect.appended, [*standing(exchange, session.offset, done=False), NO_STORE])


async def _learn_length(receiver: Receiver, exchange: Exchange, session: Session, *, last: bool) -> None:
    """Note the length of an upload that had none, once it can be known."""
    size, offset = exchange.head.framing.length, session.offset
    rest = offset + size if last and size is not None else None
    stated = parse_amount(exchange.headers, "upload-length")
    length = rest if stated is None else stated
    if length is None:
        return
    if rest not in (None, length) or length < offset:
        raise ProtocolError(
            f"Upload-Length is {stated} where the body ends at {rest if rest is not None else offset}",
            type=INCONSISTENT_LENGTH,
        )
    check_size(exchange, length)
    await receiver.sessions.fix_length(session, length, exchange.grant)


async def _append_nothing(exchange: Exchange, receipt: Receipt, start: int, *, last: bool) -> Response:
    """The answer to an append to an upload that has ended."""
    exchange.always.append(exchange.dialect.completeness(done=True))
    if start != receipt.size:
        raise OffsetMismatch(
            f"the upload is complete and ends at {receipt.size}", offset=receipt.size, provided=start
        )
    if exchange.head.framing.length != 0:
        raise ProtocolError(f"the upload is complete and ends at {receipt.size}", type=INCONSISTENT_LENGTH)
    if exchange.dialect.ends_at_length and last:
        # It ended before its client has said so.
        return Response(201, [("Upload-Offset", str(receipt.size)), NO_STORE])
    raise ProtocolError("the upload is complete", type=COMPLETED_UPLOAD)


async def options(exchange: Exchange, methods: Iterable[str], *, creates: bool) -> Response:
    """OPTIONS: what may be asked of a resource, by a page of an origin that may call as well; ``creates``:
    with limits, as uploads begin there or go on."""
    allow = ", ".join(sorted({*methods, "OPTIONS"}))
    fields = [("Allow", allow)]
    if creates:
        fields += [("Accept-Patch", MEDIA_TYPE), limit(exchange)]
    if "origin" in exchange.head.headers and "access-control-request-method" in exchange.head.headers:
        private = "access-control-request-private-network" in exchange.head.headers
        fields += web.preflight_fields(allow, private_network=private)
    return Response(204, fields)
