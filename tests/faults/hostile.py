"""Clients who mean harm, or know no better: none of them gets anything, or costs anybody else anything."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from faults.traffic import POOL, Act, Line, Traffic
from support.wire import head

KIB, MIB = 1 << 10, 1 << 20

SIZE: Final = 9 * MIB
"""Of every file that is never sent whole: more than two extents."""

BEAT: Final = 0.25
"""Seconds between the bytes of who trickles."""


async def _trickle(line: Line, data: bytes) -> None:
    """A byte at a time, until the other end has had enough."""
    rest = asyncio.ensure_future(line.rest())
    try:
        for at in range(len(data)):
            await line.send(data[at : at + 1])
            done, _ = await asyncio.wait([rest], timeout=BEAT)
            if done:
                return
    finally:
        rest.cancel()


async def a_head_that_trickles(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        await _trickle(line, head("GET", "/v1/hello", {"X-Padding": "x" * 4000}))
    traffic.counts["slow heads"] += 1


async def a_body_that_trickles(traffic: Traffic, chance: random.Random, number: int) -> None:
    async with traffic.line() as line:
        await line.send(head("PUT", left(number), {"Content-Length": SIZE}))
        await line.send(POOL[: chance.randint(0, 2 * MIB)])
        await _trickle(line, POOL[:10_000])
    traffic.counts["slow bodies"] += 1


async def a_body_that_stops(traffic: Traffic, chance: random.Random, number: int) -> None:
    async with traffic.line() as line:
        await line.send(head("PUT", left(number), {"Content-Length": SIZE}) + POOL[: chance.randint(0, MIB)])
        traffic.denied(await line.answer(), 408)


async def nothing_at_all(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        await line.rest()
    traffic.counts["silent ones"] += 1


async def answers_never_read(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        many = head("GET", "/v1/hello") * 200
        while True:
            # Ends when the receiver has cut the connection off, for it cannot write any more.
            await line.send(many)
            traffic.counts["answers never read"] += 200


async def a_head_that_ends_halfway(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        whole = head("PUT", "/files/never", {"Content-Length": SIZE})
        await line.send(whole[: chance.randint(1, len(whole) - 1)])
        line.end()
        await line.rest()
    traffic.counts["half-open heads"] += 1


def some_of_a_body(chance: random.Random, number: int) -> bytes:
    return head("PUT", left(number), {"Content-Length": SIZE}) + POOL[: chance.randint(0, 6 * MIB)]


async def a_body_that_ends_halfway(traffic: Traffic, chance: random.Random, number: int) -> None:
    async with traffic.line() as line:
        await line.send(some_of_a_body(chance, number))
        line.end()
        await line.rest()
    traffic.counts["half-open bodies"] += 1


async def a_reset_in_a_body(traffic: Traffic, chance: random.Random, number: int) -> None:
    async with traffic.line() as line:
        await line.send(some_of_a_body(chance, number))
        line.reset()
    traffic.counts["resets"] += 1


async def garbage(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        # Whatever it is, it is no head, and not the beginning of TLS.
        await line.send(b"\0" + chance.randbytes(chance.randint(1, 8 * KIB)) + b"\r\n\r\n")
        traffic.denied(await line.answer(), 400)


async def garbage_that_begins_like_tls(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        await line.send(b"\x16" + chance.randbytes(chance.randint(1, 8 * KIB)))
        line.end()
        await line.rest()
    traffic.counts["TLS garbage"] += 1


async def a_handshake_never_ended(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        await line.send(b"\x16\x03\x01\x02\x00\x01")
        await line.rest()
    traffic.counts["TLS hangs"] += 1


async def a_head_too_large(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        fields = chance.choice([b"X: " + b"y" * 70_000, b"X: y\r\n" * 20_000])
        await line.send(b"GET /v1/hello HTTP/1.1\r\nHost: localhost\r\n" + fields)
        traffic.denied(await line.answer(), 431)


async def an_upload_left_behind(traffic: Traffic, chance: random.Random, number: int) -> None:
    target, epoch = await create(traffic, number)
    fields = {"Tdx-Epoch": epoch, "Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}", "Content-Length": SIZE}
    async with traffic.line() as line:
        await line.send(head("PUT", target, fields) + POOL[: chance.randint(0, 6 * MIB)])
        if chance.random() < 0.5:
            line.reset()
    traffic.counts["uploads left"] += 1


async def a_cancel_in_the_middle(traffic: Traffic, chance: random.Random, number: int) -> None:
    target, epoch = await create(traffic, number)
    fields = {"Tdx-Epoch": epoch, "Content-Range": f"bytes 0-{SIZE - 1}/{SIZE}", "Content-Length": SIZE}
    async with traffic.line() as line:
        await line.send(head("PUT", target, fields) + POOL[: chance.randint(0, 6 * MIB)])
        answer = await traffic.ask("DELETE", target, b"", {"Tdx-Epoch": epoch})
        if answer.status != 204:
            traffic.wrong.append(f"a cancel was answered {answer.status}: {answer.body!r}")
        await line.rest()
    traffic.counts["cancels"] += 1


async def create(traffic: Traffic, number: int) -> tuple[str, object]:
    """A new upload of this client, which takes the place of its last one: its target and epoch."""
    fields = {"Upload-Complete": "?0", "Upload-Length": SIZE, "Tdx-Source": f"source-{number}"}
    answer = await traffic.ask("POST", left(number), b"", fields)
    if answer.status != 201:
        traffic.wrong.append(f"a creation was answered {answer.status}: {answer.body!r}")
        raise ConnectionAbortedError
    return answer.headers["location"], answer.document["epoch"]


async def uploads_that_do_not_exist(traffic: Traffic, chance: random.Random, _: int) -> None:
    async with traffic.line() as line:
        for _ in range(20):
            method = chance.choice(["HEAD", "GET"])
            upload = chance.choice([f"{chance.getrandbits(128):032x}", "x", "0", ".."])
            traffic.denied(await line.request(method, f"/uploads/{upload}"), 404)


async def from_a_web_page(traffic: Traffic, chance: random.Random, number: int) -> None:
    """Refused before its body, which nobody reads."""
    fields = chance.choice([{"Origin": "https://evil.example"}, {"Host": "evil.example"}])
    async with traffic.line() as line:
        await line.send(head("PUT", left(number), {"Content-Length": SIZE, **fields}) + POOL[: 64 * KIB])
        traffic.denied(await line.answer(), 403)


def left(number: int) -> str:
    """Where a client leaves what it never sends whole: always the same, so that it is not ever more."""
    return f"/files/left-{number}"


HOSTILE: dict[Act, int] = {
    a_head_that_trickles: 30,
    a_body_that_trickles: 50,
    a_body_that_stops: 15,
    nothing_at_all: 60,
    answers_never_read: 10,
    a_head_that_ends_halfway: 3,
    a_body_that_ends_halfway: 4,
    a_reset_in_a_body: 4,
    garbage: 4,
    garbage_that_begins_like_tls: 4,
    a_handshake_never_ended: 20,
    a_head_too_large: 3,
    an_upload_left_behind: 6,
    a_cancel_in_the_middle: 4,
    uploads_that_do_not_exist: 4,
    from_a_web_page: 4,
}
"""How many of each there are at a time: with the honest ones somewhat more than 200 connections."""
