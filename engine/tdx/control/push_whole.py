"""Pushing what fits in one extent: a single PUT that carries its digest."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import partial
from typing import Final

from tdx.control.client import Answer, Client, Fields
from tdx.control.pace import Pace
from tdx.control.progress import Tally
from tdx.data.port import Cancel, SendHooks
from tdx.data.send import send_buffer
from tdx.errors import ProtocolError
from tdx.integrity import ALGORITHM
from tdx.model import Span
from tdx.proto.fields import format_digest

AT_ONCE: Final = 65536
"""Bodies up to this size go out in one write with their head; for larger ones the receiver
is asked first."""


async def put_whole(
    client: Client,
    target: str,
    content: memoryview,
    digest: bytes,
    meta: Fields,
    pace: Pace,
    tally: Tally,
) -> Answer:
    """PUT ``content``, whose XXH3-128 is ``digest``, and return the receiver's receipt.

    The random key makes a repetition safe: a receiver that had published before its
    answer was lost answers again instead of storing a second copy.
    """
    sent_fields = [
        *meta,
        ("Tdx-Upload-Key", os.urandom(16).hex()),
        ("Content-Digest", format_digest(ALGORITHM, digest)),
    ]

    async def attempt() -> Answer:
        if len(content) <= AT_ONCE:
            left = len(content)
            while left:
                # In pieces, as the limit may become another one meanwhile.
                left -= (piece := pace.most(left))
                if (delay := pace.wait_for(piece)) > 0:
                    await asyncio.sleep(delay)
            answer = await client.request("PUT", target, sent_fields, bytes(content))
            tally.add_sent(len(content))
            tally.hear_all(answer.headers)
            return answer
        # What the receiver has already, or refuses, need not travel.
        return await put_buffer(client, target, sent_fields, content, pace, tally, ask_first=True)

    return await client.persist(attempt, tally)


async def put_buffer(
    client: Client,
    target: str,
    fields: Fields,
    content: memoryview,
    pace: Pace,
    tally: Tally,
    *,
    ask_first: bool = False,
    seals: bool = False,
) -> Answer:
    """One PUT whose body is in memory, written by a worker thread; ``seals``: the peer opens sealed ones."""
    cancel = Cancel()
    told = [*fields, *tally.told()]
    with tally.under_way() as stages:
        hooks = SendHooks(
            sent=tally.add_sent, hashed=_known_already, pace=pace.wait_for, most=pace.most, stages=stages
        )

        def pump(sock: socket.socket, seal: bytes | None = None) -> None:
            send_buffer(sock, content, hooks, cancel, client.stall_timeout, seal)

        answer, whole = await client.upload(
            "PUT",
            target,
            told,
            len(content),
            pump,
            cancel,
            ask_first=ask_first,
            sealed=(lambda key: partial(pump, seal=key)) if seals else None,
        )
    if not whole and answer.status == 201:
        raise ProtocolError("the peer answered before it had the whole body")
    if answer.status == 200:
        tally.hear(answer.document().get("stages"))  # of a range
    tally.hear_all(answer.headers)
    return answer


def _known_already(_span: Span, _digest: bytes) -> None:
    """The digest of what is in memory was taken before."""
