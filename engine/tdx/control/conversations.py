"""What is said on one connection of a receiver: who is it, may they, answer, next."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from dataclasses import dataclass
from typing import Final

from tdx.control import events
from tdx.control.callers import Callers
from tdx.control.connection import Connection, endpoint_of
from tdx.control.messages import Exchange, Response, problem_response
from tdx.control.receiver import Receiver
from tdx.control.routes import label_of, route
from tdx.control.upload_fields import limit
from tdx.control.wire import TLS_HANDSHAKE, PlainWire, first_byte
from tdx.errors import (
    Busy,
    ConnectionLost,
    ExtentsDiffer,
    Forbidden,
    HeadTooLarge,
    ProtocolError,
    SealBroken,
    Stalled,
    TdxError,
    TooLarge,
    UnsupportedMedia,
)
from tdx.model import Identity
from tdx.policy import web
from tdx.proto.fields import parse_host
from tdx.proto.head import RequestHead, parse_request

log = logging.getLogger(__name__)

FIRST_BYTE_SECONDS: Final = 1.0
"""How long somebody who is turned away may take to show whether it speaks TLS."""

TURNED_AWAY_AT_ONCE: Final = 64
"""Answers to those for whom there is no room that may be under way; more such connections just end."""

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"})


def _check_coding(head: RequestHead) -> None:
    """Bodies are stored as they come: one that is compressed would be published as it is."""
    codings = ",".join(head.headers.get_all("content-encoding")).lower().split(",")
    if any(coding.strip(" \t") not in ("", "identity") for coding in codings):
        raise UnsupportedMedia("no content coding is undone here; send the file as it is")


def _check_seal(head: RequestHead) -> None:
    """Bare bytes of the connection must never be read as what TLS carries."""
    if head.headers.get("tdx-seal") is not None and (head.method, label_of(head.target)) != ("PUT", "upload"):
        raise ProtocolError("only the body of a range of an upload can be sealed")


@dataclass(slots=True)
class Caller:
    """Who is at the other end of the connection of that number, as was last known."""

    number: int
    identity: Identity | None


class Conversations:
    """Those that one :class:`Receiver` has at a time."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._machine = socket.gethostname()
        self._callers = Callers(receiver)
        self._numbers = itertools.count()
        self._turned_away = 0
        self.stopping = False
        """Whether each ends with the answer that it has come to."""

    async def hold(self, sock: socket.socket) -> None:
        """Answer what comes on one connection until it ends; ``sock`` is closed then. Raises nothing."""
        receiver, number = self._receiver, next(self._numbers)
        remote = "a caller that has gone"
        receiver.metrics.connections_active.add(1)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote = endpoint_of(sock.getpeername()).host
            await self._admit(sock, number)
        except (ConnectionLost, Stalled) as error:
            log.debug("%s: %s", remote, error)
        except TdxError as error:  # of a handshake, which was answered with an alert
            self._callers.refused(remote, "a TLS connection", error)
        except OSError as error:  # gone before it was looked at
            log.debug("%s: %s", remote, error)
        except Exception:
            log.exception("a connection from %s failed", remote)
        finally:
            receiver.metrics.connections_active.add(-1)
            receiver.admission.leave(number)
            sock.close()

    async def _admit(self, sock: socket.socket, number: int) -> None:
        receiver = self._receiver
        connection = Connection(PlainWire(sock), receiver.workers.bodies)
        try:
            receiver.admission.connect(number)
            # At once: whoever closes its side early can be told from nobody only until then.
            identity = await receiver.workers.asked(receiver.identities.identify, connection.link)
            caller = Caller(number, identity)
            self._count_in(caller)
            limits, patience = receiver.limits, receiver.limits.idle_timeout
            if not receiver.policy.allows(identity):
                receiver.admission.unwelcome(number)
                patience = limits.head_timeout
            connection = await self._callers.welcome(sock, patience)
            while await self._exchange(connection, caller):
                pass
        except Busy as error:
            # Whoever is shown out must not hold a place meanwhile.
            receiver.admission.leave(number)
            await self._turn_away(connection, error)
        finally:
            connection.close()

    def _count_in(self, caller: Caller) -> None:
        """Busy where this owner has too many connections."""
        if caller.identity is not None:
            self._receiver.admission.identified(caller.number, caller.identity.owner)

    async def _exchange(self, connection: Connection, caller: Caller) -> bool:
        """Answer one request; whether another may follow on this connection. Busy: its owner has too many."""
        limits = self._receiver.limits
        try:
            raw = await connection.read_head(limits.head_timeout, limits.idle_timeout)
            if raw is None:
                return False
            head = parse_request(raw)
        except (ProtocolError, HeadTooLarge) as error:
            await self._refuse(connection, error)
            return False
        except Stalled as error:
            if connection.has_ahead:
                await self._refuse(connection, error)
            return False
        caller.identity = await self._callers.identify(connection, caller.identity)
        self._count_in(caller)
        events.CALLER.set(caller.identity)
        exchange = Exchange(connection, head, caller.identity, limits)
        response = await self._answer(exchange)
        response.fields += exchange.always
        self._count(head, response.status)
        keep_alive = head.keep_alive and exchange.body_done and not self.stopping
        answer = response.encode(keep_alive=keep_alive, to_head=head.method == "HEAD")
        await connection.send(answer, limits.stall_timeout)
        if not exchange.body_done:
            await connection.linger()
        return keep_alive

    async def _answer(self, exchange: Exchange) -> Response:
        try:
            self._check_permitted(exchange)
            _check_coding(exchange.head)
            _check_seal(exchange.head)
            handler = route(exchange.head.method, exchange.head.target)
            return await self._callers.watched(exchange, handler(self._receiver, exchange))
        except SealBroken as error:
            # Only what came beneath TLS is spoilt: this end's own records still reach the sender.
            self._receiver.metrics.digest_failures.add(1)
            log.warning("%s: %s", exchange.connection.link.remote.host, error)
            return problem_response(error)
        except (ConnectionLost, asyncio.CancelledError):
            raise
        except ExtentsDiffer as error:
            return problem_response(error)  # a commit's ordinary answer, not a refusal
        except TdxError as error:
            what = f"{exchange.head.method} {exchange.head.target}"
            tell = self._callers.refused if isinstance(error, Forbidden) else self._callers.turned_down
            tell(exchange.connection.link.remote.host, what, error)
            if isinstance(error, TooLarge):
                exchange.always.append(limit(exchange))
            return problem_response(error)
        except MemoryError:
            log.warning("no memory for %s %s", exchange.head.method, label_of(exchange.head.target))
            busy = Busy("the receiver is out of memory; try again later")
            self._receiver.metrics.refused.add(1, (busy.code,))
            return problem_response(busy)
        except Exception:
            log.exception("%s %s failed", exchange.head.method, label_of(exchange.head.target))
            return problem_response(TdxError("the receiver failed; its log says why"))

    def _check_permitted(self, exchange: Exchange) -> None:
        """Who it is, and that no web page made them do it, before anything else. A page has no
        device key, so over TLS a receiver may be called by whatever name its peer gave it."""
        receiver, head, link = self._receiver, exchange.head, exchange.connection.link
        exchange.grant = self._callers.permit(exchange.connection, exchange.caller)
        get = head.headers.get
        origin, allowed = get("origin"), receiver.config.allowed_origins
        if not web.origin_allowed(origin, get("referer"), allowed):
            raise Forbidden("requests from web pages are refused; see allowed_origins in the configuration")
        exchange.always += web.answer_fields(origin, allowed)
        host = get("host")
        if host is not None and exchange.connection.tls is None:
            names = receiver.config.names | receiver.names
            name, _ = parse_host(host)  # a malformed one is a bad request, not a foreign one
            if not web.host_allowed(name, link.local.host, names, self._machine):
                raise Forbidden(f"this receiver is not {name}; see names in the configuration")

    async def _turn_away(self, connection: Connection, error: Busy) -> None:
        """Answer somebody for whom there is no room. Who begins a handshake would take an answer in
        plain for another protocol, and give up for good; a connection that ends is tried again."""
        if self._turned_away >= TURNED_AWAY_AT_ONCE:
            self._callers.turned_down(connection.link.remote.host, "a connection", error)
            return
        self._turned_away += 1
        try:
            if connection.tls is None and await self._begins_tls(connection):
                self._callers.turned_down(connection.link.remote.host, "a TLS connection", error)
                return
            await self._refuse(connection, error)
        finally:
            self._turned_away -= 1

    async def _begins_tls(self, connection: Connection) -> bool:
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(FIRST_BYTE_SECONDS):
                return await first_byte(connection.sock) == TLS_HANDSHAKE
        return False

    async def _refuse(self, connection: Connection, error: TdxError) -> None:
        """Answer what could not be read as a request, and part."""
        self._callers.turned_down(connection.link.remote.host, "a connection", error)
        response = problem_response(error)
        self._receiver.metrics.requests.add(1, ("none", "none", str(response.status)))
        await connection.send(response.encode(keep_alive=False), self._receiver.limits.head_timeout)
        await connection.linger()

    def _count(self, head: RequestHead, status: int) -> None:
        method = head.method if head.method in KNOWN_METHODS else "other"
        self._receiver.metrics.requests.add(1, (method, label_of(head.target), str(status)))
