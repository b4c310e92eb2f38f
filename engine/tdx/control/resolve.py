"""From what a peer is called to the addresses to try, and what has to be shown there."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tdx.config import DEFAULT_PORT
from tdx.control.workers import Workers
from tdx.errors import IdentityUnavailable, UnknownPeer, Unreachable, UsageError
from tdx.identity.port import KnownPeer
from tdx.identity.registry import Identities
from tdx.identity.rows import pack
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted
from tdx.model import Owner

if TYPE_CHECKING:
    from tdx.control.discovery import Announcement

    Find = Callable[[str], Awaitable[Iterable[Announcement]]]
    """Looks on the local network for the device of that key."""

LOCALHOST: Final = "localhost"

AS_GIVEN: Final = "as it was given"
BY_SYSTEM: Final = "the system"
BY_PAIRING: Final = "the paired devices"
BY_NETWORK: Final = "the local network"
"""Sources of addresses, beside the names of providers."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A receiver as the caller named it; ``port`` None where that was left out."""

    host: str
    port: int | None = None

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

    @property
    def is_address(self) -> bool:
        """Whether it was named by a numeric address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def is_called(self, name: str) -> bool:
        """Whether it was named by this name, in whatever case."""
        return self.host.lower() == name.lower()

    @property
    def place(self) -> tuple[bytes | str, int]:
        """The same for whatever is written for one address and port, or one name and port."""
        return pack(self.host) or self.host.lower(), self.port or DEFAULT_PORT

    def __str__(self) -> str:
        port = self.port or DEFAULT_PORT
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass(frozen=True, slots=True)
class Route:
    """One address to try.

    In TLS with ``trusted`` where there is one, and in plain otherwise: then the address's own
    provider has to confirm who listens, and it has to be ``owner`` unless that is None.
    ``interface`` is the only one to connect by. ``authority`` is the value of Host.
    ``silent`` is why a provider that might have known better did not say. ``source`` says for people
    who gave the address.
    """

    family: int
    address: tuple[object, ...]
    authority: str
    interface: str | None = None
    trusted: Trusted | None = None
    owner: Owner | None = None
    silent: IdentityUnavailable | None = None
    source: str = ""


class Resolver:
    """Knows where a peer may be. A paired device is found by its name or by one of its addresses,
    and only ever spoken to in TLS; then come the members of meshes, then DNS.

    ``find`` None: nobody is looked for on the local network.
    """

    def __init__(
        self, identities: Identities, devices: TlsIdentities, workers: Workers, find: Find | None = None
    ) -> None:
        self._identities = identities
        self._devices = devices
        self._workers = workers
        self._find = find

    async def routes(self, peer: Peer) -> list[Route]:
        """Where to try, the best first. UnknownPeer, Unreachable, ConfigError."""
        trusted = await self._workers.on_disk(self.paired, peer)
        if trusted is not None:
            return await self.to_device(peer, trusted)
        known: KnownPeer | None = None
        silent: IdentityUnavailable | None = None
        if not peer.is_address and peer.host.lower() != LOCALHOST:
            try:
                known = await self._workers.asked(self._identities.find, peer.host)
            except IdentityUnavailable as error:
                silent = error
        if known is not None:
            return await self.to_member(peer, known)
        try:
            found = await _look_up(peer, str(peer), AS_GIVEN if peer.is_address else BY_SYSTEM)
        except (UnknownPeer, Unreachable):
            if silent is not None:
                raise silent from None
            raise
        return [replace(route, silent=silent) for route in await self._by_interface(found)]

    async def announced(self, peer: Peer) -> list[Route]:
        """Where else to try, once :meth:`routes` have led nowhere: where the local network says that
        a paired device is now. Takes a while."""
        if self._find is None:
            return []
        trusted = await self._workers.on_disk(self.paired, peer)
        if trusted is None or not peer.is_called(trusted.name):
            return []
        return await self.to_announced(peer, trusted, await self._find(trusted.key))

    async def to_announced(
        self, peer: Peer, trusted: Trusted, announced: Iterable[Announcement]
    ) -> list[Route]:
        """The ways to a paired device that was announced; a port of ``peer`` itself is kept to."""
        found: list[Route] = []
        for each in announced:
            if each.names(trusted.key) and peer.port in (None, each.port):
                for address in each.addresses:
                    found += await _look_up(Peer(address, each.port), str(peer), BY_NETWORK)
        return [replace(route, trusted=trusted) for route in found]

    def paired(self, peer: Peer) -> Trusted | None:
        """The trusted device of that name, or that is known to listen at that address."""
        for trusted in self._devices.trust.entries():
            if peer.is_called(trusted.name):
                return trusted
        for trusted in self._devices.trust.entries():
            for address in trusted.addresses:
                if Peer.parse(address).place == peer.place:
                    return trusted
        return None

    async def to_device(self, peer: Peer, trusted: Trusted) -> list[Route]:
        """The ways to a paired device, at its stored addresses. UnknownPeer, Unreachable."""
        named = peer.is_called(trusted.name)
        places = [Peer.parse(address) for address in trusted.addresses] if named else [peer]
        if named and peer.port is not None:
            places = [replace(place, port=peer.port) for place in places]
        found: list[Route] = []
        failure: UnknownPeer | Unreachable | None = None
        for place in places or [peer]:
            try:
                routes = await _look_up(place, str(peer), BY_PAIRING)
                found += [replace(route, trusted=trusted) for route in routes]
            except (UnknownPeer, Unreachable) as error:
                failure = error
        if not found and failure is not None:
            raise failure
        return found

    async def to_member(self, peer: Peer, known: KnownPeer) -> list[Route]:
        """The ways to a member of a mesh. Unreachable, IdentityUnavailable."""
        found: list[Route] = []
        for address in known.addresses:
            place = Peer(address, peer.port)
            # The receiver need not know what it is called here, but it knows its address.
            found += await _look_up(place, str(place), known.identity.provider)
        if not found:
            raise Unreachable(f"{peer.host} has no address of its own to connect to")
        return [replace(route, owner=known.identity.owner) for route in await self._by_interface(found)]

    async def _by_interface(self, routes: Iterable[Route]) -> list[Route]:
        return [
            replace(
                route,
                interface=await self._workers.asked(self._identities.interface, str(route.address[0])),
            )
            for route in routes
        ]


async def _look_up(peer: Peer, authority: str, source: str) -> list[Route]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(peer.host, peer.port or DEFAULT_PORT, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise lookup_failure(peer.host, error) from None
    return [Route(family, address, authority, source=source) for family, _, _, _, address in found]


def lookup_failure(host: str, error: socket.gaierror | UnicodeError) -> Unreachable | UnknownPeer:
    """What it means that the system gives no address for ``host``."""
    if isinstance(error, UnicodeError):
        return UnknownPeer(f"no machine is called {host}: not a host name")
    if error.errno == socket.EAI_AGAIN:
        return Unreachable(f"cannot look up {host} now: {error.strerror}")
    return UnknownPeer(f"no machine is called {host}: {error.strerror}")
