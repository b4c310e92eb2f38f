"""Handlers of what makes a file from the one it replaces: ``/uploads/ID/base``, ``blocks``, ``patch``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tdx.control.messages import Exchange, Response, json_response
from tdx.control.receiver import Receiver
from tdx.control.reuse import Alike, PatchArrival, differing_blocks_in, span_in
from tdx.control.session import Session
from tdx.control.upload_fields import told_by
from tdx.control.uploads import session_of
from tdx.data.patch import PatchReceive
from tdx.data.port import ReceiveHooks
from tdx.errors import LengthRequired, ProtocolError, RangeNotSatisfiable
from tdx.integrity import extents_of
from tdx.model import Conflict, Span, UploadId, UploadSpec
from tdx.proto import fields
from tdx.proto import patch as wire
from tdx.proto.patch import Listed
from tdx.ranges import RangeSet


async def take(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """Which of these extents the file that is there has, too; with that, they are taken from it. With
    Tdx-Check nothing is taken."""
    session = await session_of(receiver, exchange, upload)
    body = await exchange.small_body(wire.LIST_LIMIT)
    listed = wire.parse_list(body, *_cut(session.upload.spec))
    check = exchange.headers("tdx-check")
    if check is not None and fields.parse_boolean(check):
        same = await exchange.keep_posted(_compare(receiver, exchange, upload, listed))
    else:
        await receiver.sessions.admit(session, exchange.grant)
        same = await exchange.keep_posted(_take(receiver, exchange, upload, listed))
    return json_response(200, {"same": _pairs(same)})


def _cut(spec: UploadSpec) -> tuple[int, int]:
    """The length and the size of extents, of an upload that may be made from another file."""
    if spec.length is None:
        raise ProtocolError("a file whose length is unknown is not made from another one")
    return spec.length, spec.extent_size


async def _replacing(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Session:
    """The upload, for a request that may read the file it is to replace."""
    session = await session_of(receiver, exchange, upload)
    spec = session.upload.spec
    if spec.conflict is not Conflict.OVERWRITE:
        raise ProtocolError("only a file that is to be overwritten is made from the one that is there")
    exchange.grant.check_begun(spec.name, spec.conflict)
    return session


async def _compare(
    receiver: Receiver, exchange: Exchange, upload: UploadId, listed: list[Listed]
) -> list[Span]:
    session = await _replacing(receiver, exchange, upload)
    with session.in_use():
        found = await session.at_length(Alike(receiver.store, session.upload, listed).compare)
    return _learnt(session, found)


async def _take(receiver: Receiver, exchange: Exchange, upload: UploadId, listed: list[Listed]) -> list[Span]:
    session = await _replacing(receiver, exchange, upload)
    spans = [span_in(session.upload.spec, index) for index, _ in listed]
    extents = _runs([index for index, _ in listed])
    whole = Span(spans[0].start, spans[-1].end)
    with session.in_use(), session.writing(exchange, whole, extents) as writer:
        session.forget_parts(extents)
        await session.drop_beginnings({index for index, _ in listed})
        alike = Alike(receiver.store, session.upload, listed, writer.cancel.check)
        try:
            return _learnt(session, await session.at_length(alike.take))
        finally:
            receiver.metrics.reused_bytes.add(alike.taken)


def _learnt(session: Session, alike: Alike) -> list[Span]:
    """What of it is the same; where the rest is not, the two files differ."""
    if alike.size == session.upload.spec.length and len(alike.same) < len(alike.listed):
        session.compared = True
    return alike.same


async def blocks(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """Which blocks of these extents differ from what is stored of them now; all of one where most do."""
    session = await session_of(receiver, exchange, upload)
    body = await exchange.small_body(wire.BLOCKS_LIMIT)
    listed = wire.parse_blocks(body, *_cut(session.upload.spec))
    needed = await exchange.keep_posted(_differing(receiver, exchange, upload, listed))
    return json_response(200, {"needed": _pairs(needed)})


async def _differing(
    receiver: Receiver, exchange: Exchange, upload: UploadId, listed: list[tuple[int, memoryview]]
) -> list[Span]:
    session = await _replacing(receiver, exchange, upload)
    with session.in_use():
        return await session.at_length(differing_blocks_in, session.upload, listed)


async def patch(receiver: Receiver, exchange: Exchange, upload: UploadId) -> Response:
    """Write the blocks that differ, and record the extents that are whole with that."""
    session = await _replacing(receiver, exchange, upload)
    span = _patched_span(exchange, session.upload.spec)
    await receiver.sessions.admit(session, exchange.grant)
    await session.writers.cut_off_silent(span)
    session = await _replacing(receiver, exchange, upload)
    with session.in_use(), session.writing(exchange, span) as writer:
        extents = extents_of(span, session.upload.spec.extent_size)
        session.forget_parts([extents])
        await session.drop_beginnings(extents)
        session.heard(told_by(exchange))
        body = writer.body = await exchange.file_body(writer.cancel)
        arrival = PatchArrival(receiver.metrics, session, writer.received, extents)
        hooks = ReceiveHooks(
            received=arrival.received,
            completed=lambda _span, _digest: None,
            broke_off=lambda _span, _digest: None,
            discarded=arrival.dropped,
            turn=lambda: session.workers.turns.turn(session.owner, writer.cancel),
            stages=arrival.came.stages,
        )
        reader = PatchReceive(body, session.upload, *_cut(session.upload.spec), hooks)
        with session.counted(writer):
            listed = await exchange.connection.lend(
                lambda _: reader.receive(arrival.kept, writer.cancel), writer.cancel
            )
            exchange.file_body_ended(body)
            same = await exchange.keep_posted(session.at_length(arrival.verify, listed, writer.cancel.check))
    return json_response(200, {"same": _pairs(same), "stages": arrival.came.stages.as_dict()})


def _patched_span(exchange: Exchange, spec: UploadSpec) -> Span:
    """The run of whole extents that a patch lies in."""
    length, size = _cut(spec)
    value = exchange.headers("content-range")
    if value is None:
        raise ProtocolError("a patch needs Content-Range: the extents that it lies in")
    wanted = fields.parse_content_range(value)
    span = wanted.span
    if wanted.length != length or span.start % size or (span.end % size and span.end != length):
        raise RangeNotSatisfiable(f"a patch lies in whole extents of {size} bytes, of a file of {length}")
    if exchange.head.framing.length is None:
        raise LengthRequired("a patch needs Content-Length")
    return span


def _runs(indices: Sequence[int]) -> list[range]:
    """Ascending indices as runs."""
    found: list[range] = []
    for index in indices:
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def _pairs(spans: Iterable[Span]) -> list[list[int]]:
    """For JSON, merged."""
    return [[span.start, span.end] for span in RangeSet(spans)]
