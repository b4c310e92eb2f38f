"""The receiver's loop: accept, head, who is it, may they, answer, next."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
from typing import Final

from tdx.control.connection import Connection, endpoint_of
from tdx.control.messages import Exchange, Response, problem_response
from tdx.control.receiver import Receiver
from tdx.control.routes import label_of, route
from tdx.errors import (
    Busy,
    ConfigError,
    ConnectionLost,
    ExtentsDiffer,
    Forbidden,
    HeadTooLarge,
    ProtocolError,
    Stalled,
    TdxError,
    UnsupportedMedia,
)
from tdx.identity.port import Endpoint
from tdx.model import Identity
from tdx.policy import web
from tdx.proto.fields import parse_host
from tdx.proto.head import RequestHead, parse_request

log = logging.getLogger(__name__)

BACKLOG: Final = 512
HOUSEKEEPING_SECONDS: Final = 10.0
EXPIRY_SECONDS: Final = 3600.0
KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"})
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for every address of ``host``; ConfigError where one cannot be bound."""
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind, protocol)
            bound.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in bound:
            listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return bound


def _check_coding(head: RequestHead) -> None:
    """Bodies are stored as they come: one that is compressed would be published as it is."""
    codings = ",".join(head.headers.get_all("content-encoding")).lower().split(",")
    if any(coding.strip(" \t") not in ("", "identity") for coding in codings):
        raise UnsupportedMedia("no content coding is undone here; send the file as it is")


class Server:
    """Serves one :class:`Receiver` until :meth:`stop`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._machine = socket.gethostname()
        self._listeners: list[socket.socket] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._conversations: set[asyncio.Task[None]] = set()
        self._housekeeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.folder_gone = asyncio.Event()
        """Set once the folder that is received into has been removed: there is nothing left to serve."""
        self._numbers = itertools.count()

    async def start(self) -> list[Endpoint]:
        """Recover the store, then listen; the addresses listened on."""
        for receipt in await self._receiver.workers.on_disk(self._receiver.store.recover):
            log.info("finished publishing %s after an interruption", receipt.path)
        await self._receiver.sessions.discard_orphans()
        for host, port in self._receiver.config.listen:
            self._listeners.extend(listen(host, port))
        self._acceptors = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]
        self._housekeeper = asyncio.create_task(self._keep_house())
        return [endpoint_of(listener.getsockname()) for listener in self._listeners]

    async def stop(self) -> None:
        """Stop accepting, stop every body, keep every partial."""
        self._stopping = True
        tasks = [*self._acceptors, *([self._housekeeper] if self._housekeeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await self._receiver.sessions.close()
        conversations = list(self._conversations)
        for conversation in conversations:
            conversation.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await self._receiver.sessions.close()

    # --- background ----------------------------------------------------------

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        receiver, expired_at = self._receiver, -EXPIRY_SECONDS
        while True:
            try:
                if not await receiver.workers.on_disk(receiver.store.is_present):
                    self.folder_gone.set()
                    return
                await receiver.sessions.release_idle(loop.time())
                if loop.time() - expired_at >= EXPIRY_SECONDS:
                    expired_at = loop.time()
                    for partial in await receiver.workers.on_disk(receiver.expire):
                        log.info("removed the abandoned upload %s of %s", partial.upload, partial.spec.name)
            except Exception:  # whatever it was, the next round must come
                log.exception("housekeeping failed")
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    # --- connections ---------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in OUT_OF_DESCRIPTORS:
                    log.warning("cannot accept connections: %s", error.strerror)
                    await asyncio.sleep(0.1)
                continue
            conversation = asyncio.create_task(self._converse(sock))
            self._conversations.add(conversation)
            conversation.add_done_callback(self._conversations.discard)

    async def _converse(self, sock: socket.socket) -> None:
        receiver = self._receiver
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, receiver.workers.bodies)
        except OSError:  # gone before it was looked at
            sock.close()
            return
        receiver.metrics.connections_active.add(1)
        try:
            await self._admit(connection)
        except (ConnectionLost, Stalled) as error:
            log.debug("%s: %s", connection.link.remote.host, error)
        except Exception:
            log.exception("a connection from %s failed", connection.link.remote.host)
        finally:
            receiver.metrics.connections_active.add(-1)
            connection.close()

    async def _admit(self, connection: Connection) -> None:
        receiver, number = self._receiver, next(self._numbers)
        try:
            receiver.admission.connect(number)
            identity = await receiver.workers.on_disk(receiver.identities.identify, connection.link)
            if identity is not None:
                receiver.admission.identified(number, identity.owner)
            while await self._exchange(connection, identity):
                pass
        except Busy as error:
            await self._refuse(connection, error)
        finally:
            receiver.admission.leave(number)

    async def _exchange(self, connection: Connection, identity: Identity | None) -> bool:
        """Answer one request; whether another may follow on this connection."""
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
        exchange = Exchange(connection, head, identity, limits)
        response = await self._answer(exchange)
        self._count(head, response.status)
        keep_alive = head.keep_alive and exchange.body_done and not self._stopping
        answer = response.encode(keep_alive=keep_alive, to_head=head.method == "HEAD")
        await connection.send(answer, limits.stall_timeout)
        if not exchange.body_done:
            await connection.linger()
        return keep_alive

    async def _answer(self, exchange: Exchange) -> Response:
        try:
            self._check_permitted(exchange)
            _check_coding(exchange.head)
            handler = route(exchange.head.method, exchange.head.target)
            return await handler(self._receiver, exchange)
        except (ConnectionLost, asyncio.CancelledError):
            raise
        except ExtentsDiffer as error:
            return problem_response(error)  # a commit's ordinary answer, not a refusal
        except TdxError as error:
            self._receiver.metrics.refused.add(1, (error.code,))
            return problem_response(error)
        except Exception:
            log.exception("%s %s failed", exchange.head.method, label_of(exchange.head.target))
            return problem_response(TdxError("the receiver failed; its log says why"))

    def _check_permitted(self, exchange: Exchange) -> None:
        """Who it is, and that no web page made them do it, before anything else."""
        receiver, head, link = self._receiver, exchange.head, exchange.connection.link
        exchange.grant = receiver.policy.decide(exchange.caller)
        get = head.headers.get
        if not web.origin_allowed(get("origin"), get("referer"), receiver.config.allowed_origins):
            raise Forbidden("requests from web pages are refused; see allowed_origins in the configuration")
        host = get("host")
        if host is not None:
            name, _ = parse_host(host)  # a malformed one is a bad request, not a foreign one
            if not web.host_allowed(name, link.local.host, receiver.config.names, self._machine):
                raise Forbidden(f"this receiver is not {name}; see names in the configuration")

    async def _refuse(self, connection: Connection, error: TdxError) -> None:
        """Answer what could not be read as a request, and part."""
        self._receiver.metrics.refused.add(1, (error.code,))
        response = problem_response(error)
        self._receiver.metrics.requests.add(1, ("none", "none", str(response.status)))
        await connection.send(response.encode(keep_alive=False), self._receiver.limits.head_timeout)
        await connection.linger()

    def _count(self, head: RequestHead, status: int) -> None:
        method = head.method if head.method in KNOWN_METHODS else "other"
        self._receiver.metrics.requests.add(1, (method, label_of(head.target), str(status)))
