"""A connection to the right machine, or none."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tdx.control.connection import Connection, endpoint_of, link_of
from tdx.control.resolve import Peer, Resolver, Route
from tdx.control.wire import PlainWire, TlsWire, failure
from tdx.control.workers import Workers
from tdx.data.sockets import readable, unpaced
from tdx.errors import Forbidden, Stalled, TdxError, UnknownPeer, Unreachable
from tdx.identity.local import NAME as LOCAL
from tdx.identity.local import is_address_of_this_machine
from tdx.identity.registry import Identities
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted
from tdx.model import Identity

if TYPE_CHECKING:
    from tdx.control.resolve import Find

CONNECT_TIMEOUT: Final = 10.0
ELSEWHERE_TIMEOUT: Final = 3.0
"""Where the local network can be asked next: a machine that is there answers the second SYN by then."""

_RTT_END: Final = 72
"""Where ``tcpi_rtt`` ends in ``struct tcp_info``, whose first fields never move."""


class Dialer:
    """Connects to one peer, and makes sure that it is that peer before anything is sent."""

    def __init__(
        self,
        peer: Peer,
        identities: Identities,
        devices: TlsIdentities,
        workers: Workers,
        *,
        find: Find | None = None,
        routes: Iterable[Route] | None = None,
    ) -> None:
        """``find``: as for :class:`Resolver`; ``routes``: where to try, instead of what it finds."""
        self.peer = peer
        self._identities = identities
        self._devices = devices
        self._resolver = Resolver(identities, devices, workers, find)
        self._patience = CONNECT_TIMEOUT if find is None else ELSEWHERE_TIMEOUT
        self._found: list[Route] = []
        """Where an announcement has led to the peer before."""
        self._routes = None if routes is None else tuple(routes)
        self._workers = workers
        self.round_trip = math.inf
        """Seconds of a round trip to the peer, the shortest of those of its connections."""
        self.congestion_control = ""
        """What the kernel uses on the way to the peer, as the newest connection says."""

    async def dial(self) -> Connection:
        """A connection on which a file may be sent.

        UnknownPeer, Unreachable, IdentityUnavailable, or Forbidden where somebody else than the
        peer listens there, or nobody can tell who it is.
        """
        if self._routes is not None:
            return await self._try(self._routes)
        try:
            return await self._try([*self._found, *await self._resolver.routes(self.peer)])
        except TdxError as error:
            failed = error
            # Whoever it was at the old addresses: the key shows who is at a new one.
            for route in await self._resolver.announced(self.peer):
                try:
                    connection = await self._try([route])
                    self._found = [route]
                    return connection
                except TdxError as other:
                    # Of what anybody may announce, nothing makes a temporary failure a lasting one.
                    failed = other if isinstance(failed, UnknownPeer) else failed
            raise failed from None

    async def _try(self, routes: Iterable[Route]) -> Connection:
        """The first of the routes that leads to the peer. Where none does, a refusal at one counts for
        more than silence at another."""
        failures: list[str] = []
        refusals: list[TdxError] = []
        for route in routes:
            sock = socket.socket(route.family, socket.SOCK_STREAM)
            try:
                await self._connect(sock, route)
                if route.trusted is not None:
                    return await self._secure(sock, route, route.trusted)
                await self._confirm(sock, route)
                return Connection(PlainWire(sock), self._workers.bodies, route.authority)
            except OSError as error:  # TimeoutError among them
                failures.append(reason_of(error))
            except TdxError as error:
                refusals.append(error)
            except BaseException:
                sock.close()
                raise
            sock.close()
        if refusals:
            raise next((each for each in refusals if each.permanent), refusals[0])
        reasons = "; ".join(dict.fromkeys(failures))
        # Who refuses is there; of the others, not even that is known.
        hint = "is `tdx serve` running there?" if "refused" in reasons else "is it on, and its network up?"
        raise Unreachable(f"cannot reach {self.peer}: {reasons}; {hint}")

    async def _connect(self, sock: socket.socket, route: Route) -> None:
        loop = asyncio.get_running_loop()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_address_of_this_machine(endpoint_of(route.address).host):
            unpaced(sock)
        started = loop.time()
        await connect(sock, route, self._patience)
        took = loop.time() - started
        self.round_trip = min(self.round_trip, took, first_round_trip(sock) or took)
        self.congestion_control = congestion_control(sock)

    async def _secure(self, sock: socket.socket, route: Route, trusted: Trusted) -> Connection:
        """TLS with that one device. Its own refusal of this one shows at the first read only."""
        where = endpoint_of(route.address)
        peer = f"{trusted.name} ({where.host} port {where.port})"
        context = await self._workers.on_disk(self._devices.client_context, trusted)
        wrapped = context.wrap_socket(sock, do_handshake_on_connect=False)
        wire = TlsWire(wrapped)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await wire.handshake()
            identity = await self._workers.asked(self._devices.whois, wire.certificate)
            if identity is None or identity.node != trusted.name:
                raise Forbidden(f"{peer} shows the key of another device; nothing was sent")
            return Connection(wire, self._workers.bodies, route.authority)
        except BaseException as error:
            wrapped.close()
            if isinstance(error, TimeoutError):
                raise Stalled(f"{peer} does not finish its TLS handshake") from None
            if isinstance(error, OSError):
                raise failure(error, peer) from None
            raise

    async def _confirm(self, sock: socket.socket, route: Route) -> None:
        """Forbidden unless the one who listens there is the peer; plain HTTP proves nothing itself."""
        identity = await self._who(route)
        if identity is None:
            # A receiver that has just ended listens no more: then another connection fails.
            with socket.socket(route.family, socket.SOCK_STREAM) as again:
                await connect(again, route, self._patience)
                identity = await self._who(route)
        destination = endpoint_of(route.address)
        if identity is None:
            if route.silent is not None:
                raise route.silent
            raise Forbidden(
                f"nothing vouches for who listens at {destination.host} port {destination.port}; plain HTTP"
                " goes only to receivers of this machine and of its meshes; pair the two with `tdx pair`"
            )
        if identity.provider == LOCAL:
            # Another user may have accepted this connection, and left the port to our own receiver since.
            holder = await self._workers.asked(self._identities.accepted, link_of(sock)) or identity
            if not (identity.own and holder.own):
                whose = (identity if holder.own else holder).user
                raise Forbidden(
                    f"the receiver at {self.peer} belongs to {whose}, not to you; nothing was sent"
                )
        elif route.interface is None:
            raise Forbidden(
                f"{destination.host} is {identity}, but that mesh has no interface here to bind to, so that "
                "another machine could answer in its place; nothing was sent"
            )
        elif route.owner is None and not self.peer.is_address:
            raise Forbidden(
                f"{self.peer.host} leads to {destination.host}, which is {identity}: that is no name of its; "
                "nothing was sent; call it by its name there, or by its address"
            )
        elif route.owner not in (None, identity.owner):
            raise Forbidden(f"{destination.host} is {identity}, not {self.peer.host}; nothing was sent")

    async def _who(self, route: Route) -> Identity | None:
        return await self._workers.asked(self._identities.confirm, endpoint_of(route.address))


async def connect(sock: socket.socket, route: Route, timeout: float = CONNECT_TIMEOUT) -> None:
    """Connect by the route's interface, if it has one. OSError, TimeoutError."""
    sock.setblocking(False)
    if route.interface is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, route.interface.encode() + b"\0")
    async with asyncio.timeout(timeout):
        await asyncio.get_running_loop().sock_connect(sock, route.address)


def congestion_control(sock: socket.socket) -> str:
    """The name of a connection's congestion control; empty where the system does not tell (tcp(7))."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    except (OSError, AttributeError):
        return ""


def first_round_trip(sock: socket.socket) -> float:
    """Seconds that the kernel saw the handshake of a new connection take; 0 where it does not tell.

    What a clock of ours shows has the wait for a core in it, which on a busy machine makes a near peer
    look far. ``tcpi_rtt`` of Linux's ``struct tcp_info`` (tcp(7)), in microseconds.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_END)
    except (OSError, AttributeError):
        return 0.0
    return int.from_bytes(info[_RTT_END - 4 :], sys.byteorder) / 1e6 if len(info) == _RTT_END else 0.0


def reason_of(error: OSError) -> str:
    """Why a connection was not made, for people."""
    if isinstance(error, TimeoutError):
        return "no answer"
    return os.strerror(error.errno).lower() if error.errno else str(error)


class ConnectionPool:
    """Kept-alive connections to one peer, each used by one request at a time."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._idle: list[Connection] = []
        self.reached = asyncio.Event()
        """Set once the peer has been reached: from then on, not reaching it is temporary."""

    async def acquire(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not readable(connection.sock):
                return connection
            connection.close()  # the other end has closed it meanwhile, or sent what nobody asked for
        connection = await self._dialer.dial()
        self.reached.set()
        return connection

    def release(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            with contextlib.suppress(OSError):
                self._idle.pop().close()
