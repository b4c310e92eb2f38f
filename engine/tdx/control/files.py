"""Handlers of ``/files/NAME``: whole and partial PUT, creation, and where a partial stands."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace

from tdx.control import events
from tdx.control.ending import candidates, find_identical, finish
from tdx.control.file_fields import check_size, check_stated_length, only_new, spec_of
from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.control.reuse import base_size
from tdx.control.session import Session
from tdx.control.upload_fields import NO_STORE, PLAIN_EXPIRY, claims_of, limit, location, standing, told_by
from tdx.errors import (
    DigestMismatch,
    Exists,
    LengthRequired,
    NotFound,
    OffsetMismatch,
    Overrun,
    PreconditionFailed,
    ProtocolError,
    TooLarge,
)
from tdx.integrity import ALGORITHM, MAX_LENGTH, PART
from tdx.metrics import Discard
from tdx.model import Claim, Conflict, FileName, Outcome, Receipt, Stages, UploadSpec
from tdx.policy.rules import largest_file
from tdx.proto import fields
from tdx.proto.resumable import parse_amount
from tdx.proto.stages import FIELD, format_stages
from tdx.store.port import Existing


def receipt_document(receipt: Receipt) -> dict[str, object]:
    return {
        "outcome": receipt.outcome,
        "name": receipt.name,
        "path": receipt.path,
        "size": receipt.size,
        "root": receipt.root,
        "verified": receipt.verified,
    }


def receipt_response(receipt: Receipt, status: int = 200, stages: Stages | None = None) -> Response:
    """``stages`` are the receiver's seconds of the run that ended with this."""
    told = [] if stages is None else [(FIELD, format_stages(stages))]
    return json_response(status, receipt_document(receipt), told)


def left_alone(
    receiver: Receiver, exchange: Exchange, name: FileName, existing: Existing, outcome: Outcome
) -> Response:
    """The answer where nothing had to be stored, because of the file that is there."""
    receiver.metrics.uploads.add(1, (exchange.protocol, outcome))
    events.left_alone(name, existing, outcome)
    document = {
        "outcome": outcome,
        "name": name,
        "path": existing.path,
        "size": existing.size,
        "root": None,
        "verified": outcome is Outcome.IDENTICAL,
    }
    return json_response(200, document)


async def put_file(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """A whole file in one request; or, with Content-Range, the next part of one."""
    return await _put(receiver, exchange, exchange.grant.place(name))


async def _put(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """From here on a name is the one that the file shall have at this receiver."""
    if not exchange.head.framing.stated:
        # An empty file is published only where it is said to be empty.
        raise LengthRequired("a file needs Content-Length (0 for an empty one) or chunked coding")
    content_range = exchange.headers("content-range")
    if content_range is not None:
        return await _put_part(receiver, exchange, name, fields.parse_content_range(content_range))
    if exchange.dialect.complete(exchange.headers) is False:
        return await _open(receiver, exchange, name)
    key = exchange.headers("tdx-upload-key")
    if key is None:
        return await _put_whole(receiver, exchange, name)
    owner = exchange.identity.owner
    async with receiver.sessions.one_with_key(owner, key):
        receipt = await receiver.workers.on_disk(receiver.store.receipt_by_key, owner, key)
        if receipt is None:
            return await _put_whole(receiver, exchange, name)
    await _skip_small_body(receiver, exchange)
    return receipt_response(receipt)


async def _put_whole(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    length = exchange.head.framing.length
    said = exchange.dialect.complete(exchange.headers)
    if length is None and said:
        length = parse_amount(exchange.headers, "upload-length")
    check_size(exchange, length)
    check_stated_length(exchange, length)
    spec = spec_of(exchange, name, length, "content-digest", "repr-digest")  # no content coding is taken
    # What a plain client leaves can be continued where it was told of its upload, or with Content-Range if
    # its length is known. A tdx sender sends so small a file again as a whole.
    announced = spec.key is None and bool(said) and exchange.may_announce
    by_name = spec.key is None and length is not None and not announced
    spec = replace(spec, expires_after=PLAIN_EXPIRY, by_name=by_name)
    answer = await _settled_before_body(receiver, exchange, spec)
    if answer is not None:
        return answer
    with _precondition(exchange):
        session, _, _ = await receiver.sessions.open_for(spec, exchange.grant, resume=False)
        session.heard(told_by(exchange))
        with session.in_use():
            try:
                if announced:
                    await _announce(exchange, session)
                await session.receive_onward(exchange, 0)
                return await exchange.keep_posted(complete(receiver, exchange, session))
            except BaseException as error:
                if not (announced or by_name) or isinstance(error, Overrun | TooLarge):
                    await receiver.sessions.discard(session, "failed", error)
                raise


async def _announce(exchange: Exchange, session: Session) -> None:
    await exchange.announce([location(session.id), limit(exchange, session.upload.spec)])


@contextlib.contextmanager
def _precondition(exchange: Exchange) -> Generator[None]:
    """Where the name was to be free (RFC 9110 section 13.1.2), say so in that request's own words."""
    try:
        yield
    except Exists as error:
        if only_new(exchange):
            raise PreconditionFailed(error.message) from None
        raise


async def _settled_before_body(receiver: Receiver, exchange: Exchange, spec: UploadSpec) -> Response | None:
    """The answer where the file that is there decides it, the body unread or dropped."""
    existing = await receiver.workers.on_disk(receiver.store.existing, spec.name)
    if existing is None:
        return None
    if only_new(exchange):
        raise PreconditionFailed(f"{spec.name} exists")
    outcome = None
    if spec.conflict is Conflict.SKIP:
        outcome = Outcome.SKIPPED
    elif (path := await _find_there(receiver, spec)) is not None:
        # Whoever put it there may not have made it durable yet, and this answer says that it is.
        size = await receiver.workers.in_turn(spec.owner, receiver.store.make_durable, path)
        existing = Existing(path, size)
        outcome = Outcome.IDENTICAL
    elif spec.conflict is Conflict.ERROR:
        raise Exists(f"{spec.name} exists")
    if outcome is None:
        return None
    await _skip_small_body(receiver, exchange)
    return left_alone(receiver, exchange, spec.name, existing, outcome)


async def _skip_small_body(receiver: Receiver, exchange: Exchange) -> None:
    """Read and drop the content of a file that is here already."""
    came = await exchange.skip_small_body()
    receiver.metrics.received_bytes.add(came, (exchange.protocol,))
    receiver.metrics.discard(came, Discard.HELD)


async def _find_there(receiver: Receiver, spec: UploadSpec) -> str | None:
    """The published file of one extent that has the digest claimed for the new one."""
    claimed = {claim.digest for claim in spec.claims if claim.algorithm == ALGORITHM}
    if len(claimed) != 1 or spec.length is None or spec.length > spec.extent_size:
        return None
    digests = list(claimed) if spec.length else []
    return await receiver.workers.in_turn(spec.owner, find_identical, receiver.store, spec, digests)


async def _put_part(
    receiver: Receiver, exchange: Exchange, name: FileName, content_range: fields.ContentRange
) -> Response:
    """A partial PUT (RFC 9110 section 14.5): in order, one partial per owner, name and length."""
    span, length = content_range.span, content_range.length
    if length is None:
        raise ProtocolError("a partial PUT names the whole length: Content-Range: bytes a-b/N")
    if exchange.head.framing.length != len(span):
        raise ProtocolError(f"Content-Length does not fit Content-Range, which has {len(span)} bytes")
    check_size(exchange, length)
    if span.start == 0:
        spec = replace(spec_of(exchange, name, length), expires_after=PLAIN_EXPIRY, key=None, by_name=True)
        answer = await _settled_before_body(receiver, exchange, spec)
        if answer is not None:
            return answer
        with _precondition(exchange):
            session, _, _ = await receiver.sessions.open_for(spec, exchange.grant, resume=False)
    else:
        found = await _partial_of(receiver, exchange, name, length)
        if found is None:
            raise OffsetMismatch(f"nothing of {name} is here yet", offset=0)
        session = found
    with session.in_use(), _precondition(exchange):
        await receiver.sessions.admit(session, exchange.grant)
        await session.writers.cut_off_silent(span)
        await session.receive_onward(exchange, span.start)
        if session.offset < length:
            return Response(202, [("Upload-Offset", str(session.offset)), ("Upload-Complete", "?0")])
        # Content-Digest covers the part only, Repr-Digest still the whole file.
        return await exchange.keep_posted(
            complete(receiver, exchange, session, claims_of(exchange, "repr-digest"))
        )


async def _partial_of(
    receiver: Receiver, exchange: Exchange, name: FileName, length: int | None
) -> Session | None:
    """The caller's own partial of this name (and length), which has something left to send.

    One that is whole was about to be published when the receiver was killed, or when the disk failed. It
    gives up its last extent: curl takes an offset at the end of its file for the end of its work.
    """
    owner, sessions = exchange.identity.owner, receiver.sessions
    while True:
        found = await sessions.find_sequential(owner, name, length)
        if found is None or not found.offset or found.offset != found.upload.spec.length:
            return found
        await found.unused()  # it may be on its way to its name
        with contextlib.suppress(NotFound):
            async with sessions.alone(found.id, owner) as session:
                if session.offset == session.upload.spec.length:  # nobody else has asked meanwhile
                    last = (session.offset - 1) // session.upload.spec.extent_size
                    await receiver.workers.on_disk(session.upload.invalidate, [last])


async def complete(
    receiver: Receiver, exchange: Exchange, session: Session, claims: Sequence[Claim] = ()
) -> Response:
    """Verify what a plain client sent against its digests, and publish it: 201 once durable."""
    spec = session.upload.spec
    async with session.gate:
        await exchange.still_permitted()
        # The policy may have been changed since the upload was created.
        exchange.grant.check_begun(spec.name, spec.conflict)
        most = largest_file(exchange.limits, exchange.grant, MAX_LENGTH)
        try:
            receipt = await finish(session, claims, most)
        except (DigestMismatch, Exists, TooLarge) as error:
            if exchange.resumable:
                # It is not the upload that went wrong: there is nothing to be resumed.
                exchange.always.append(exchange.dialect.completeness(done=True))
            await receiver.sessions.discard(session, "failed", error)
            raise
        receiver.sessions.ended(session, receipt)
        receiver.published([receipt], exchange.identity)
    status = 201 if receipt.outcome is Outcome.PUBLISHED else 200
    response = receipt_response(receipt, status, session.brought.stages)
    if exchange.resumable:
        if exchange.head.method != "PATCH":
            response.fields.append(location(session.id))
        response.fields += [*standing(exchange, receipt.size, done=True), limit(exchange, ended=True)]
    return response


async def create(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """POST: an upload in parts, unless the request says that it is the whole."""
    name = exchange.grant.place(name)
    if exchange.dialect.complete(exchange.headers):
        return await _put(receiver, exchange, name)
    return await _open(receiver, exchange, name)


async def _open(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """Create an upload, or take over the one an earlier run of the same push left."""
    length = parse_amount(exchange.headers, "upload-length")
    check_size(exchange, length)
    spec = spec_of(exchange, name, length, "repr-digest")
    if spec.source_id is None:
        spec = replace(spec, expires_after=PLAIN_EXPIRY)
    existing = await receiver.workers.on_disk(receiver.store.existing, name)
    same_size = existing is not None and existing.size == length
    if existing is not None and spec.conflict is Conflict.SKIP:
        return left_alone(receiver, exchange, name, existing, Outcome.SKIPPED)
    if existing is not None and spec.conflict is Conflict.ERROR and not same_size:
        raise Exists(f"{name} exists with another size")
    wish = exchange.headers("tdx-resume")
    session, epoch, earlier = await receiver.sessions.open_for(
        spec,
        exchange.grant,
        resume=wish is not None and fields.parse_boolean(wish),
        compares=spec.source_id is not None
        and bool(await receiver.workers.on_disk(candidates, receiver.store, spec)),
    )
    # An earlier run may have published while this one waited for its end.
    same_size = bool(await receiver.workers.on_disk(candidates, receiver.store, spec))
    earlier_size = await base_size(receiver, exchange, spec)
    if earlier is not None:
        receiver.metrics.resumes.add(1)
        receiver.metrics.resumed_bytes.add(session.upload.held.total())
    with session.in_use():
        await _announce(exchange, session)
        if not exchange.body_done:
            try:
                await receiver.sessions.admit(session, exchange.grant)
                await session.receive_onward(exchange, 0, claims_of(exchange, "content-digest"))
            except (DigestMismatch, Overrun, TooLarge) as error:
                await receiver.sessions.discard(session, "failed", error)
                raise
            await session.at_length(session.upload.mark)
        if exchange.dialect.ends_at_length and session.offset == length:
            return await exchange.keep_posted(complete(receiver, exchange, session))
    document: dict[str, object] = {
        "id": session.id,
        "epoch": epoch,
        "extent_size": session.upload.spec.extent_size,
        "held": [[span.start, span.end] for span in session.upload.held],
        "part": PART,
        "streams": receiver.limits.streams_per_upload,
        "existing": same_size,
        "resumed": earlier is not None,
        "unchanged": earlier is not None and earlier.fingerprint == spec.fingerprint,
    }
    if earlier_size is not None:
        document["base"] = earlier_size
    if exchange.connection.tls is not None:
        document["seals"] = [fields.SEAL]
    return json_response(
        201,
        document,
        [
            location(session.id),
            *standing(exchange, session.offset, done=False),
            limit(exchange, session.upload.spec),
        ],
    )


async def stand(receiver: Receiver, exchange: Exchange, name: FileName) -> Response:
    """HEAD: how far the caller's own partial of this name has come."""
    name = exchange.grant.place(name)
    session = await _partial_of(receiver, exchange, name, None)
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
            NO_STORE,
        ],
    )
