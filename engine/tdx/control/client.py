"""The sender's requests: one peer, kept-alive connections, answers with their errors."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from tdx.control.connection import Connection
from tdx.control.dial import ConnectionPool, Dialer
from tdx.control.progress import Tally
from tdx.control.workers import Workers
from tdx.data.port import Cancel, EarlyAnswer
from tdx.errors import (
    ConnectionLost,
    DigestMismatch,
    ExtentsDiffer,
    IdentityUnavailable,
    Interrupted,
    NotFound,
    ProtocolError,
    Stalled,
    TdxError,
    TooLarge,
    Unreachable,
    VerificationFailed,
)
from tdx.metrics import Metrics
from tdx.model import MAX_REPAIR_ROUNDS
from tdx.policy.retry import Retrier, RetryPolicy
from tdx.proto import problem
from tdx.proto.fields import SEAL_KEY, SEALED_AT_MOST, format_seal
from tdx.proto.head import Headers, format_request, parse_response

ANSWER_LIMIT: Final = 64 << 20
"""Most bytes of an answer: the list of every extent of the largest commit fits."""

HELLO_LIMIT: Final = 64 << 10
"""Most bytes of what a receiver says of itself, also to somebody whom it does not know."""

INTERIM_AT_ONCE: Final = 100
"""Interim answers that may come at any pace; more may come at one a second."""

HELLO: Final = "/v1/hello"

_BEGIN: Final = b"HTTP/"

T = TypeVar("T")
Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Headers
    body: bytes

    def document(self) -> dict[str, object]:
        """The JSON object of the body; ProtocolError for anything else."""
        try:
            parsed: object = json.loads(self.body)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise ProtocolError("the peer's answer is not a JSON object; is it a tdx receiver?")
        return cast("dict[str, object]", parsed)


class Client:
    """Talks to one peer. Used by the loop's thread only."""

    def __init__(
        self, dialer: Dialer, workers: Workers, metrics: Metrics, policy: RetryPolicy, stall_timeout: float
    ) -> None:
        self.peer = dialer.peer
        self.workers = workers
        self.metrics = metrics
        self.stall_timeout = stall_timeout
        self._dialer = dialer
        self._pool = ConnectionPool(dialer)
        self._policy = policy
        self.gone: ConnectionLost | None = None
        """What says that the peer, which was there before, could not be reached again, however often it was
        tried; None as soon as it answers."""

    def close(self) -> None:
        self._pool.close()

    @property
    def met(self) -> bool:
        """Whether the peer has been reached."""
        return self._pool.reached.is_set()

    async def reached(self) -> None:
        """Wait until the peer has been reached."""
        await self._pool.reached.wait()

    @property
    def round_trip(self) -> float:
        """Seconds to the peer and back, as its connections were made."""
        return self._dialer.round_trip

    @property
    def congestion_control(self) -> str:
        """What the kernel uses on the way there; empty where it does not tell."""
        return self._dialer.congestion_control

    async def request(self, method: str, target: str, fields: Fields = (), body: bytes = b"") -> Answer:
        """One exchange with a body that is at hand. A status of 400 and more raises what
        the problem document says."""

        sized = [*fields, ("Content-Length", str(len(body)))]

        async def write(connection: Connection) -> bool:
            head = _head(connection, method, target, sized)
            await connection.send(head + body, self.stall_timeout)
            return True

        return await self._exchange(method, write, brief=not body)

    async def hello(self) -> Answer:
        """What the peer says of itself, as :meth:`request`. It is short and comes at once, or not at
        all: whoever is asked need not be anybody that this machine trusts."""

        async def write(connection: Connection) -> bool:
            head = _head(connection, "GET", HELLO, [("Content-Length", "0")])
            await connection.send(head, self.stall_timeout)
            return True

        return await self._exchange("GET", write, brief=True, hello=True)

    async def upload(
        self,
        method: str,
        target: str,
        fields: Fields,
        length: int | None,
        pump: Callable[[socket.socket], None],
        cancel: Cancel,
        *,
        ask_first: bool = False,
        written: Callable[[], None] = lambda: None,
        sealed: Callable[[bytes], Callable[[socket.socket], None]] | None = None,
    ) -> tuple[Answer, bool]:
        """One exchange whose body of ``length`` bytes ``pump(socket)`` writes in a worker; None: it
        writes the chunked coding itself.

        Besides the answer: whether the body was written to its end, and not answered before.
        ``ask_first`` waits for the peer's go before the first byte of the body
        (``Expect: 100-continue``, RFC 9110 section 10.1.1). ``written()`` is called when the
        body has been written and the answer is still to come. ``sealed(key)`` is the pump to use where the
        body can be sealed beneath TLS, which the peer must have offered; each try has a key of its own.
        """
        whole = False
        expect = [("Expect", "100-continue")] if ask_first else []

        async def write(connection: Connection) -> bool:
            nonlocal whole
            framing, lent = [*fields, *expect], pump
            if length is None:
                framing.append(("Transfer-Encoding", "chunked"))
            elif sealed is not None and length <= SEALED_AT_MOST and connection.may_seal:
                from tdx.data.seal import sealed_size

                key = os.urandom(SEAL_KEY)
                lent = sealed(key)
                framing += [("Tdx-Seal", format_seal(key)), ("Content-Length", str(sealed_size(length)))]
            else:
                framing.append(("Content-Length", str(length)))
            await connection.send(_head(connection, method, target, framing), self.stall_timeout)
            if ask_first and not await self._may_go_on(connection):
                return False
            try:
                await connection.lend(lent, cancel)
            except EarlyAnswer as answer:
                connection.give_back(answer.begun)
                return False
            whole = True
            written()
            return True

        return await self._exchange(method, write), whole

    async def _may_go_on(self, connection: Connection) -> bool:
        """Whether the peer asks for the body; its final answer is left to be read."""
        raw = await connection.read_head(self.stall_timeout)
        if raw is None:
            raise ConnectionLost(f"{self.peer} closed the connection without an answer")
        if parse_response(raw).status < 200:
            return True
        connection.give_back(raw)
        return False

    async def _exchange(
        self,
        method: str,
        write: Callable[[Connection], Awaitable[bool]],
        *,
        brief: bool = False,
        hello: bool = False,
    ) -> Answer:
        """``write(connection)`` writes the request and says whether it wrote all of it:
        only then can the connection carry another. ``brief``: it is a head and no more."""
        connection = await (self._pool.acquire() if brief else self._connection())
        reusable = False
        try:
            written = await write(connection)
            if hello:
                answer, keep_alive = await self._read_hello(connection)
            else:
                answer, keep_alive = await self._read_answer(connection, to_head=method == "HEAD")
            reusable = written and keep_alive
            connection.answered = True
            self.gone = None
        finally:
            if reusable:
                self._pool.release(connection)
            else:
                connection.close()
        if answer.status >= 400:
            raise problem.parse(answer.status, answer.headers.get("content-type"), answer.body)
        return answer

    async def _connection(self) -> Connection:
        """A connection whose other end is known to listen: a device that refuses this one says so
        only after the handshake, and the answer to it must not be lost among a file's bytes."""
        connection = await self._pool.acquire()
        if connection.tls is None or connection.answered:
            return connection
        try:
            await connection.send(_head(connection, "GET", HELLO, []), self.stall_timeout)
            answer, _ = await self._read_hello(connection)
            if answer.status >= 400:
                raise problem.parse(answer.status, answer.headers.get("content-type"), answer.body)
            connection.answered = True
        except BaseException:
            connection.close()
            raise
        return connection

    async def _read_hello(self, connection: Connection) -> tuple[Answer, bool]:
        try:
            async with asyncio.timeout(self.stall_timeout):
                return await self._read_answer(connection, to_head=False, limit=HELLO_LIMIT)
        except TimeoutError:
            raise Stalled(f"{self.peer} does not finish its answer") from None

    async def _read_answer(
        self, connection: Connection, *, to_head: bool, limit: int = ANSWER_LIMIT
    ) -> tuple[Answer, bool]:
        loop = asyncio.get_running_loop()
        started, interim = loop.time(), 0
        while True:
            if not await connection.begins(_BEGIN, self.stall_timeout):
                raise ProtocolError(f"{self.peer} speaks no HTTP; is it a tdx receiver?")
            raw = await connection.read_head(self.stall_timeout)
            if raw is None:
                raise ConnectionLost(f"{self.peer} closed the connection without an answer")
            head = parse_response(raw, to_head=to_head)
            if head.status >= 200:
                break
            interim += 1
            # What has come already is read without the loop's turning: a flood would stop all else.
            if interim > INTERIM_AT_ONCE + loop.time() - started:
                raise ProtocolError(f"{self.peer} answers on and on that it is not done yet")
        try:
            body = await connection.read_body(head.framing, limit, self.stall_timeout)
        except TooLarge as error:
            raise ProtocolError(f"{self.peer} answers with {error.message}") from None
        return Answer(head.status, head.headers, body), head.keep_alive

    def retrier(self) -> Retrier:
        return Retrier(self._policy, random)

    async def pause_after(self, error: TdxError, retrier: Retrier, tally: Tally) -> None:
        """Wait as the policy says after a failure that repeating can mend; raise where it cannot.

        Not reaching a peer that was reached before in this run counts as a dropped connection.
        """
        if isinstance(error, NotFound):
            raise Interrupted(f"{self.peer} no longer has this upload; run the push again") from error
        if isinstance(error, Unreachable | IdentityUnavailable) and not self.met:
            raise error
        wait = retrier.failed(error)
        if wait is None:
            if isinstance(error, Unreachable):
                self.gone = ConnectionLost(f"{error.message}; run the push again")
                raise self.gone from error
            raise error
        self.count_retry(error, tally)
        await asyncio.sleep(wait)

    def count_retry(self, error: TdxError, tally: Tally) -> None:
        """Something is sent again because of ``error``."""
        tally.retries += 1
        self.metrics.retries.add(1, (error.code,))

    async def persist(self, work: Callable[[], Awaitable[T]], tally: Tally) -> T:
        """Repeat an idempotent exchange until it succeeds or the policy gives up; bytes
        that arrived corrupt are sent again at once, a bounded number of times. ExtentsDiffer
        is an answer: what it asks for is the caller's to send."""
        retrier = self.retrier()
        repairs = 0
        while True:
            try:
                return await work()
            except ExtentsDiffer:
                raise
            except DigestMismatch as error:
                if repairs == MAX_REPAIR_ROUNDS:
                    raise VerificationFailed(f"{error.message}, also after {repairs} repairs") from error
                repairs += 1
                self.count_retry(error, tally)
            except TdxError as error:
                await self.pause_after(error, retrier, tally)


def _head(connection: Connection, method: str, target: str, fields: Fields) -> bytes:
    return format_request(method, target, [("Host", connection.authority), *fields])
