"""What comes to a receiver in a bad week, all at once: who makes it, and the count of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from support.processes import Processes, Receiver
from support.wire import Answer, head

PATIENCE: Final = 90.0
"""Seconds that one honest transfer may take on a machine that has other things to do."""

POOL: Final = random.Random(8390).randbytes(24 << 20)
"""What files are cut from."""

Act = Callable[["Traffic", random.Random, int], Awaitable[None]]
"""Something that one client does, from its connection to its end; the number is the client's own."""


class Line:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def end(self) -> None:
        """Nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def reset(self) -> None:
        self._writer.transport.abort()

    async def answer(self, *, to_head: bool = False) -> Answer:
        while True:
            block = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            start, *lines = block.rstrip().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            fields = {name.lower(): value.strip() for name, _, value in pairs}
            status = int(start.split()[1])
            if status >= 200:
                length = 0 if to_head else int(fields.get("content-length", 0))
                return Answer(status, fields, await self._reader.readexactly(length))

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | memoryview = b"",
        fields: Mapping[str, object] | None = None,
    ) -> Answer:
        await self.send(head(method, target, {"Content-Length": len(body), **(fields or {})}))
        await self.send(body)
        return await self.answer(to_head=method == "HEAD")

    async def rest(self) -> bytes:
        """Whatever comes until the other end closes."""
        return await self._reader.read()


@dataclass
class Traffic:
    """Runs clients against a receiver, and counts. ``wrong`` says what should not have been."""

    receiver: Receiver
    processes: Processes
    area: Path
    seed: int
    counts: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[int] = field(default_factory=Counter[int])
    """Answers to those who had no business here, by their status."""
    moved: int = 0
    """Bytes of files that arrived and were right."""
    wrong: list[str] = field(default_factory=list)
    over: bool = False
    held_up: float = 0.0
    """Seconds that the clients themselves were kept from running at most, by the machine's other work."""
    _names: itertools.count[int] = field(default_factory=itertools.count)

    def new_name(self, kind: str) -> str:
        return f"{kind}-{next(self._names)}"

    @contextlib.asynccontextmanager
    async def line(self) -> AsyncGenerator[Line]:
        """A connection of its own, closed in the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.receiver.port)
        self.counts["connections"] += 1
        try:
            yield Line(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | memoryview = b"",
        fields: Mapping[str, object] | None = None,
    ) -> Answer:
        async with self.line() as line:
            return await line.request(method, target, body, fields)

    def denied(self, answer: Answer, *allowed: int) -> None:
        """Note a refusal, which must be one of these."""
        self.refused[answer.status] += 1
        if answer.status not in allowed:
            self.wrong.append(f"{answer.status} where one of {allowed} was due: {answer.body[:200]!r}")

    async def arrived(self, name: str, digest: str, size: int) -> None:
        """A transfer has ended well by its client's account: the file is there, and is what was sent."""
        path = self.receiver.folder / name
        found = await asyncio.to_thread(_digest_and_remove, path)
        if found != digest:
            self.wrong.append(f"{name}: arrived as {found}, was sent as {digest}")
        self.counts["transfers"] += 1
        self.moved += size

    async def run(self, seconds: float, honest: Mapping[Act, int], hostile: Mapping[Act, int]) -> None:
        """So many clients of each kind, each again and again until the time is over. Honest ones end what
        they have begun; hostile ones just go."""
        numbers = itertools.count()

        def started(
            kinds: Mapping[Act, int], live: Callable[[Act, int], Awaitable[None]]
        ) -> list[asyncio.Task[None]]:
            clients = [(act, next(numbers)) for act, count in kinds.items() for _ in range(count)]
            return [asyncio.ensure_future(live(*client)) for client in clients]

        wicked, good = started(hostile, self._be_hostile), started(honest, self._be_honest)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (now := loop.time()) < end:
            await asyncio.sleep(0.1)
            self.held_up = max(self.held_up, loop.time() - now - 0.1)
        self.over = True
        await asyncio.gather(*good)
        for task in wicked:
            task.cancel()
        await asyncio.gather(*wicked, return_exceptions=True)

    async def _be_honest(self, act: Act, number: int) -> None:
        chance, loop = random.Random(self.seed + number), asyncio.get_running_loop()
        while not self.over:
            begun = loop.time()
            try:
                async with asyncio.timeout(PATIENCE):
                    await act(self, chance, number)
            except Exception as error:  # whatever it is, an honest client should not have met it
                self.wrong.append(f"{act.__name__}, after {loop.time() - begun:.1f} s: {error!r}")
            self.counts["honest acts"] += 1

    async def _be_hostile(self, act: Act, number: int) -> None:
        chance = random.Random(self.seed + number)
        while not self.over:
            # Whoever sends nonsense is cut off, and learns it one way or the other.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await act(self, chance, number)
            self.counts["hostile acts"] += 1
            await asyncio.sleep(chance.uniform(0.02, 0.2))


def _digest_and_remove(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.unlink()
    return digest


def content(chance: random.Random, least: int, most: int) -> tuple[memoryview, str]:
    """Bytes that no other file has, and their SHA-256."""
    size = chance.randint(least, most)
    start = chance.randint(0, len(POOL) - size)
    data = memoryview(POOL)[start : start + size]
    return data, hashlib.sha256(data).hexdigest()


def sha256_field(digest: str) -> str:
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
