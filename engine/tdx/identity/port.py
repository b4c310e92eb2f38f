"""The identity port: who is at the other end of a connection.

Providers vouch; the policy decides. A provider that cannot say (its service is
absent, slow or talks garbage) answers None or raises, and never lets anyone in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tdx.model import Identity


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection. IPv4-mapped IPv6 addresses are written as IPv4."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Link:
    """A connection as the receiver sees it.

    ``interface`` is the network interface that the connection is bound to
    (SO_BINDTODEVICE), so that it cannot have come in by another; None where it is bound
    to none.
    """

    local: Endpoint
    remote: Endpoint
    interface: str | None = None


class Provider(Protocol):
    """One way of knowing who is calling. Methods block briefly; called from worker threads."""

    @property
    def name(self) -> str: ...

    def covers(self, address: str) -> bool:
        """Whether this provider is the one to ask about ``address``. Asks no service."""
        ...

    def whois(self, link: Link) -> Identity | None:
        """The identity at ``link.remote``, or None."""
        ...

    def confirms(self, destination: Endpoint) -> Identity | None:
        """For a sender, after connecting and before any byte of a file: the identity that
        listens at ``destination``, or None where this cannot be vouched for."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """An address of this machine on a mesh, and the interface that carries the mesh."""

    host: str
    interface: str


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """A machine that a provider knows by name.

    ``names`` are all that it goes by, in lower case, without a final dot, the one to show
    first; ``addresses`` are numeric, the best first. ``online`` None: the provider cannot
    tell. ``path`` says how packets travel ("direct 192.0.2.1:41641", "relay fra"), empty
    where that is not known.
    """

    names: tuple[str, ...]
    identity: Identity
    addresses: tuple[str, ...]
    online: bool | None = None
    path: str = ""


class Mesh(Provider, Protocol):
    """A provider that is a network of its own, with members, names and an interface."""

    def places(self) -> Sequence[Place]:
        """This machine's own addresses on the mesh, as far as it is up."""
        ...

    def own_names(self) -> Sequence[str]:
        """What this machine is called on the mesh, in lower case, without a final dot; numeric
        addresses too, where connections to them do not show them."""
        ...

    def peers(self) -> Sequence[KnownPeer]:
        """The other members. IdentityUnavailable where the service does not say."""
        ...

    def interface(self, address: str) -> str | None:
        """The interface that alone leads to ``address``, which :meth:`covers`; a sender binds to it
        before it connects, so that no other network can answer. None where the mesh has none."""
        ...
