"""Requests as handlers see them, and the answers they return."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final, TypeVar

from tdx.control.connection import Connection
from tdx.control.throttle import BodyBrake, Throttle
from tdx.data.body import ChunkedBody, IdentityBody
from tdx.data.port import Cancel
from tdx.data.seal import SealedBody, sealed_size
from tdx.data.tls import TlsBody
from tdx.errors import (
    ConnectionLost,
    DigestMismatch,
    Forbidden,
    MethodNotAllowed,
    OffsetMismatch,
    ProtocolError,
    Stalled,
    TdxError,
)
from tdx.model import Identity
from tdx.policy.admission import Limits
from tdx.policy.rules import NOTHING_GRANTED, Grant
from tdx.proto import bundle, problem, tree
from tdx.proto.chunked import ChunkedDecoder
from tdx.proto.fields import SEALED_AT_MOST, format_digest, parse_seal
from tdx.proto.head import PROCESSING, RequestHead, format_response
from tdx.proto.resumable import VERSION_FIELD, Dialect, dialect_of

JSON_TYPE: Final = "application/json"
PROCESSING_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 0.5
"""How long an answer about who is calling is good for."""

SKIPPED_AT_MOST: Final = 65536

T = TypeVar("T")

FileBody = IdentityBody | TlsBody | ChunkedBody | SealedBody


@dataclass(slots=True)
class Response:
    """One answer: a status, its fields (Content-Length and Date are added), and a body."""

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    body: bytes = b""

    def encode(self, *, keep_alive: bool, to_head: bool = False) -> bytes:
        fields = [("Date", formatdate(usegmt=True)), *self.fields]
        if self.status != 204:
            fields.append(("Content-Length", str(len(self.body))))
        if not keep_alive:
            fields.append(("Connection", "close"))
        return format_response(self.status, fields) + (b"" if to_head else self.body)


def json_response(status: int, document: object, fields: Iterable[tuple[str, str]] = ()) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    return Response(status, [("Content-Type", JSON_TYPE), *fields], body)


def problem_response(error: TdxError) -> Response:
    status, body = problem.render(error)
    fields = [("Content-Type", problem.MEDIA_TYPE)]
    if isinstance(error, OffsetMismatch):
        fields.append(("Upload-Offset", str(error.offset)))
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        fields.append(("Allow", str(error.details["allow"])))
    return Response(status, fields, body)


def digests_differ(algorithm: str, provided: bytes) -> DigestMismatch:
    """What to say of bytes that lack the digest they came with: never the one they have."""
    stated = format_digest(algorithm, provided).removeprefix(f"{algorithm}=")
    mismatched = [{"algorithm": algorithm, "provided-digest": stated}]
    return DigestMismatch(
        f"the content does not have the {algorithm} digest that came with it",
        **{"mismatched-digests": mismatched},
    )


class Exchange:
    """One request and the connection it came on.

    The body is read through this object, once; :attr:`body_done` tells whether the
    connection stands at the next request.
    """

    def __init__(
        self, connection: Connection, head: RequestHead, caller: Identity | None, limits: Limits
    ) -> None:
        self.connection = connection
        self.head = head
        self.caller = caller
        self._begun = asyncio.get_running_loop().time()
        self.permit_again: Callable[[], Awaitable[Grant]] | None = None
        """Asks who is calling now, and what they may; set where that can have changed meanwhile."""
        self.grant = NOTHING_GRANTED
        """What the policy lets the caller do, once it has let it in."""
        self.limits = limits
        self.always: list[tuple[str, str]] = []
        """Fields that go with whatever final answer this request gets."""
        framing = head.framing
        self.body_done = not framing.chunked and framing.length == 0
        self.throttle: Throttle | None = None
        """What holds its body back."""
        self._seal: bytes | None = None
        self._content = 0
        expects = (head.headers.get("expect") or "").lower() == "100-continue"
        self._expects_continue = expects and head.takes_interim

    @property
    def identity(self) -> Identity:
        """The caller, once the policy has let it in."""
        if self.caller is None:
            raise Forbidden("nobody vouches for this connection")
        return self.caller

    async def still_permitted(self) -> None:
        """Ask again, before what a caller has sent is published, who it is and whether it may; the
        grant is as it is now. Forbidden. A request that has just begun was asked about just now."""
        long_ago = asyncio.get_running_loop().time() - self._begun >= FRESH_SECONDS
        if long_ago and self.permit_again is not None:
            self.grant = await self.permit_again()

    @property
    def headers(self) -> Callable[[str], str | None]:
        return self.head.headers.get

    @property
    def speaks_tdx(self) -> bool:
        """Whether the sender is tdx's own and so understands 102 (Processing)."""
        headers = self.head.headers
        own = any(name in headers for name in ("tdx-epoch", "tdx-upload-key", "tdx-source"))
        return own or headers.get("content-type") == bundle.MEDIA_TYPE or self.head.target == tree.TARGET

    @property
    def dialect(self) -> Dialect:
        return dialect_of(self.headers(VERSION_FIELD))

    @property
    def resumable(self) -> bool:
        """Whether the client knows of Resumable Uploads for HTTP."""
        return self.dialect.version is not None or self.dialect.complete(self.headers) is not None

    @property
    def may_announce(self) -> bool:
        """Whether the client is told by a 104 where to go on, before its body is read."""
        return self.dialect.version is not None and self.head.takes_interim

    async def announce(self, fields: Iterable[tuple[str, str]]) -> None:
        """104 (Upload Resumption Supported), for a client that knows what it means."""
        if self.may_announce:
            stated = (VERSION_FIELD, str(self.dialect.version))
            await self.connection.send(format_response(104, [stated, *fields]), self.limits.head_timeout)

    @property
    def protocol(self) -> str:
        """The label of metrics: ``tdx`` for its own senders, ``http`` for everybody else."""
        return "tdx" if self.speaks_tdx else "http"

    async def _continue(self) -> None:
        if self._expects_continue and not self.body_done and not self.connection.has_ahead:
            await self.connection.send(format_response(100, []), self.limits.head_timeout)
        self._expects_continue = False

    async def keep_posted(self, work: Coroutine[object, object, T]) -> T:
        """Await a long step; a tdx sender is told meanwhile that it goes on, with
        102 (Processing, RFC 2518 section 10.1). The step is finished even when the
        sender has gone: what it publishes must get its receipt."""
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait([task], timeout=PROCESSING_SECONDS))[0]:
            if self.speaks_tdx:
                with contextlib.suppress(ConnectionLost, Stalled):
                    await self.connection.send(PROCESSING, self.limits.head_timeout)
        return task.result()

    async def small_body(self, limit: int) -> bytes:
        await self._continue()
        body = await self.connection.read_body(self.head.framing, limit, self.limits.stall_timeout)
        self.body_done = True
        return body

    def unseal(self, length: int) -> int:
        """The bytes that a body with ``length`` bytes of content has on its way: more than those where its
        head says that it is sealed, and with what key, for :meth:`file_body`."""
        seal, tls = self.headers("tdx-seal"), self.connection.tls
        if seal is None:
            return length
        if tls is None:
            raise ProtocolError("a body is sealed only beneath TLS, where nobody else reads the key")
        self._seal = parse_seal(seal)
        if length > SEALED_AT_MOST:
            raise ProtocolError(f"at most {SEALED_AT_MOST} bytes are sealed under one key")
        if self.connection.has_ahead or tls.sock.pending():
            raise ProtocolError("a sealed body begins after the TLS record that its head ends")
        self._content = length
        return sealed_size(length)

    async def file_body(self, cancel: Cancel) -> FileBody:
        """The body as a blocking reader for a pump; call :meth:`file_body_ended` after it."""
        await self._continue()
        body = self._body(cancel)
        if self.throttle is not None:
            told = self.connection.sock if self.speaks_tdx else None
            body.brake = BodyBrake(self.throttle, self.identity.owner, cancel, told)
        return body

    def _body(self, cancel: Cancel) -> FileBody:
        framing, connection = self.head.framing, self.connection
        stall, rate = self.limits.stall_timeout, self.limits.min_body_rate
        if framing.chunked:
            ahead = connection.take_ahead()
            return ChunkedBody(connection.sock, ahead, cancel, stall, ChunkedDecoder(), min_rate=rate)
        if framing.length is None:
            raise ProtocolError("a request body needs Content-Length or chunked coding")
        if self._seal is not None and connection.tls is not None:
            return SealedBody(connection.tls.sock, self._seal, self._content, cancel, stall, min_rate=rate)
        ahead = connection.take_ahead(framing.length)
        if connection.tls is not None:
            return TlsBody(connection.tls.sock, ahead, framing.length, cancel, stall, min_rate=rate)
        return IdentityBody(connection.sock, ahead, framing.length, cancel, stall, min_rate=rate)

    def file_body_ended(self, body: FileBody) -> None:
        """The pump is done with ``body``."""
        if not body.ended:
            return
        if isinstance(body, ChunkedBody):
            self.connection.give_back(body.leftover)
        self.body_done = True

    async def skip_small_body(self) -> int:
        """Read and drop a body that is sure to come and costs less than a new connection; how many bytes."""
        length = self.head.framing.length
        if length is not None and length <= SKIPPED_AT_MOST and not self._expects_continue:
            return len(await self.small_body(SKIPPED_AT_MOST))
        return 0
