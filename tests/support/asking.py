"""Asking a receiver by its local API, without help from tdx."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.receiving import RunningReceiver
from support.schemas import conform
from support.wire import Answer
from tdx.control.local_api import listen_locally
from tdx.identity.port import Endpoint

PATIENCE = 30.0


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(True)  # with a time limit, the kernel would not wait for room in the queue
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    sock.settimeout(PATIENCE)
    return sock


def ask(path: Path, method: str = "GET", target: str = "/v1/status") -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("localhost")
    try:
        connection.sock = connected(path)
        connection.request(method, target)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def status_at(path: Path) -> dict[str, Any]:
    """What the receiver is doing, which is as docs/schema has it."""
    reply = ask(path)
    assert reply.status == 200, reply
    conform("status", [{"event": "status", **reply.document}])
    return reply.document


@contextmanager
def answering(receiver: RunningReceiver) -> Iterator[Path]:
    """The socket of its local API, which a receiver of a test has none of by itself."""
    loop = receiver._loop
    assert loop is not None

    async def begin() -> Any:
        return await listen_locally(receiver.running, lambda: [Endpoint("127.0.0.1", receiver.port)], None)

    local = asyncio.run_coroutine_threadsafe(begin(), loop).result(PATIENCE)
    assert local is not None
    try:
        yield receiver.state / "receiver.sock"
    finally:
        asyncio.run_coroutine_threadsafe(local.close(), loop).result(PATIENCE)
