"""A receiver's local API: HTTP/1.1 on a Unix socket, for its own user and root, answered on the loop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from tdx.config import local_socket
from tdx.control.acceptor import Acceptor
from tdx.control.messages import JSON_TYPE, Response, problem_response
from tdx.control.receiver import Receiver
from tdx.control.status import Listening, Status
from tdx.control.unix_socket import UnixListener, uid_of
from tdx.errors import ConfigError, Forbidden, MethodNotAllowed, NotFound, ProtocolError, TdxError
from tdx.identity.port import Endpoint
from tdx.proto.head import head_end, parse_request

log = logging.getLogger(__name__)

STATUS: Final = "/v1/status"
MOST_AT_ONCE: Final = 128
"""Connections that are open."""

SECONDS: Final = 10.0
"""How long one may take from its beginning to its end."""

READ_SIZE: Final = 16384
ROOT: Final = 0

Document = Callable[[], Awaitable[dict[str, object]]]


async def listen_locally(receiver: Receiver, listening: Listening, metrics: Endpoint | None) -> Local | None:
    """The local API of a receiver, if there can be one; for the arguments see :class:`Status`.

    ConfigError where a place was asked for and it cannot be there. That there is none at the usual place is
    no reason not to receive.
    """
    asked = receiver.config.socket
    try:
        path = (asked or local_socket(receiver.config.state)).absolute()
        listener = await receiver.workers.on_disk(UnixListener, path)
    except ConfigError as error:
        if asked is not None:
            raise
        log.warning("no `tdx status` for this receiver: %s", error.message)
        return None
    return Local(receiver, Status(receiver, listening, metrics), listener)


class Local:
    """The API, what it tells, and the socket."""

    def __init__(self, receiver: Receiver, status: Status, listener: UnixListener) -> None:
        self._receiver = receiver
        self._status = status
        self._listener = listener
        self._looking = asyncio.create_task(status.run())
        self._api = LocalApi(listener.sock, status.document)

    async def close(self) -> None:
        self._looking.cancel()
        await asyncio.wait([self._looking])
        await self._api.close()
        await self._receiver.workers.on_disk(self._listener.close)
        await self._receiver.workers.at_length(self._status.close)


class LocalApi:
    """Answers, until :meth:`close`, one request on each connection that ``listener`` takes."""

    def __init__(self, listener: socket.socket, status: Document) -> None:
        self._status = status
        self._acceptor = Acceptor(self._hold, MOST_AT_ONCE)
        self._acceptor.listen(listener)

    async def close(self) -> None:
        """Answer nobody any more; the listener stays open."""
        await self._acceptor.close()

    async def _hold(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SECONDS):
                response, to_head = await self._answer(sock)
                if response is not None:
                    await loop.sock_sendall(sock, response.encode(keep_alive=False, to_head=to_head))
        except (OSError, TimeoutError) as error:  # gone, or silent
            log.debug("the local API: %s", error)
        except Exception:
            log.exception("the local API: a request failed")

    async def _answer(self, sock: socket.socket) -> tuple[Response | None, bool]:
        """The answer to the request that comes; None where none does. And whether it is one to HEAD."""
        try:
            raw = await _read_head(sock)
            if raw is None:
                return None, False
            _check_caller(sock)
            head = parse_request(raw)
        except TdxError as error:
            return problem_response(error), False
        try:
            if head.target != STATUS:
                raise NotFound(f"nothing is at {head.target}")
            if head.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(
                    f"{head.method} is not for this resource; GET, HEAD", allow="GET, HEAD"
                )
            # ASCII: the path of a folder need not be Unicode.
            body = json.dumps(await self._status()).encode("ascii") + b"\n"
            fields = [("Content-Type", JSON_TYPE), ("Cache-Control", "no-store")]
            return Response(200, fields, body), head.method == "HEAD"
        except TdxError as error:
            return problem_response(error), head.method == "HEAD"
        except Exception:
            log.exception("the local API: %s %s failed", head.method, head.target)
            failed = TdxError("the receiver failed; its log says why")
            return problem_response(failed), head.method == "HEAD"


def _check_caller(sock: socket.socket) -> None:
    """The file's mode keeps others out already, as long as nobody changes it."""
    uid = uid_of(sock)
    if uid not in (os.getuid(), ROOT):
        raise Forbidden(f"only the receiver's own user and root may ask; you are uid {uid}")


async def _read_head(sock: socket.socket) -> bytes | None:
    """One request's head; a body is not looked at. None where it ends before. ProtocolError, HeadTooLarge."""
    loop, buffer, scanned = asyncio.get_running_loop(), bytearray(), 0
    while (end := head_end(buffer, scanned)) is None:
        scanned = len(buffer)
        data = await loop.sock_recv(sock, READ_SIZE)
        if not data:
            if buffer:
                raise ProtocolError("the request ends inside its head")
            return None
        buffer += data
    return bytes(buffer[:end])
