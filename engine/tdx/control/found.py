"""Finding the upload that a request is about."""

from __future__ import annotations

from tdx.control.messages import Exchange
from tdx.control.receiver import Receiver
from tdx.control.session import Session
from tdx.errors import NotFound
from tdx.model import Receipt, UploadId
from tdx.proto import fields


def epoch_of(exchange: Exchange) -> int | None:
    epoch = exchange.headers("tdx-epoch")
    return None if epoch is None else fields.parse_integer(epoch)


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
    await session.end_appends()
    async with session.gate:
        pass
    return await session_or_receipt(receiver, exchange, upload)
