"""From a peer's name to a connection to the right machine."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from dataclasses import dataclass
from typing import Final

from tdx.config import DEFAULT_PORT
from tdx.control.connection import Connection, endpoint_of
from tdx.control.workers import Workers
from tdx.data.sockets import readable
from tdx.errors import Forbidden, UnknownPeer, Unreachable, UsageError
from tdx.identity.port import Endpoint
from tdx.identity.registry import Identities
from tdx.model import Identity

CONNECT_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A receiver as the caller named it."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Peer:
        """``HOST``, ``HOST:PORT`` or ``[V6]:PORT``; a trailing ``:`` is accepted."""
        given = text.removesuffix(":")
        if given.startswith("["):
            host, closed, rest = given[1:].partition("]")
            port = rest.removeprefix(":")
            if not closed or (rest and not rest.startswith(":")):
                raise UsageError(f"not a peer: {text!r} (an IPv6 address is written [ADDRESS]:PORT)")
        elif given.count(":") > 1:
            host, port = given, ""
        else:
            host, _, port = given.partition(":")
        if not host or any(c.isspace() or c == "/" for c in host):
            raise UsageError(f"not a peer: {text!r} (a peer is HOST or HOST:PORT)")
        if not port:
            return cls(host)
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise UsageError(f"not a port: {port!r} in {text!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Dialer:
    """Connects to one peer, and makes sure that it is that peer before anything is sent."""

    def __init__(self, peer: Peer, identities: Identities, workers: Workers) -> None:
        self.peer = peer
        self._identities = identities
        self._workers = workers
        self.round_trip = math.inf
        """Seconds that the quickest connection took to be made: one round trip and little more."""

    async def dial(self) -> Connection:
        """A connection on which a file may be sent in plain HTTP.

        UnknownPeer, Unreachable, or Forbidden where no provider confirms who listens there.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.peer.host, self.peer.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno == socket.EAI_AGAIN:
                raise Unreachable(f"cannot look up {self.peer.host} now: {error.strerror}") from None
            reason = error.strerror if isinstance(error, OSError) else "not a host name"
            raise UnknownPeer(f"no peer is called {self.peer.host}: {reason}") from None
        failures: list[str] = []
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                started = loop.time()
                await _connect(sock, address)
                self.round_trip = min(self.round_trip, loop.time() - started)
                identity = await self._who(address)
                if identity is None:
                    # A receiver that has just ended listens no more: then another connection fails.
                    with socket.socket(family, kind, protocol) as again:
                        await _connect(again, address)
                        identity = await self._who(address)
                self._confirm(identity, endpoint_of(address))
                return Connection(sock, self._workers.bodies)
            except TimeoutError:
                failures.append("no answer")
            except OSError as error:
                failures.append(os.strerror(error.errno).lower() if error.errno else str(error))
            except BaseException:
                sock.close()
                raise
            sock.close()
        raise Unreachable(
            f"cannot reach {self.peer}: {'; '.join(dict.fromkeys(failures))}; is `tdx serve` running there?"
        )

    async def _who(self, address: tuple[object, ...]) -> Identity | None:
        return await self._workers.on_disk(self._identities.confirm, endpoint_of(address))

    def _confirm(self, identity: Identity | None, destination: Endpoint) -> None:
        if identity is None:
            raise Forbidden(
                f"nothing vouches for who listens at {destination.host} port {destination.port}; "
                "plain HTTP goes only to receivers of this machine"
            )
        if not identity.own:
            raise Forbidden(
                f"the receiver at {self.peer} belongs to {identity.user}, not to you; nothing was sent"
            )


async def _connect(sock: socket.socket, address: tuple[object, ...]) -> None:
    sock.setblocking(False)
    async with asyncio.timeout(CONNECT_TIMEOUT):
        await asyncio.get_running_loop().sock_connect(sock, address)


class ConnectionPool:
    """Kept-alive connections to one peer, each used by one request at a time."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: list[Connection] = []
        self.met = False
        """Whether the peer has been reached once: from then on, not reaching it is temporary."""

    async def acquire(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not readable(connection.sock):
                return connection
            connection.close()  # the other end has closed it meanwhile, or sent what nobody asked for
        connection = await self._dialer.dial()
        self.met = True
        return connection

    def release(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            with contextlib.suppress(OSError):
                self._idle.pop().close()
