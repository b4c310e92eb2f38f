"""The identity port: who is at the other end of a connection.

Providers vouch; the policy decides. A provider that cannot say (its service is
absent, slow or talks garbage) answers None and never lets anyone in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tdx.model import Owner


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a TCP connection. IPv4-mapped IPv6 addresses are written as IPv4."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Link:
    """A connection as the receiver sees it."""

    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling, as a provider vouches.

    ``owner`` is the stable key; ``user`` and ``node`` are for people and for policy
    rules, never for ownership.
    """

    owner: Owner
    provider: str
    user: str
    node: str


class Provider(Protocol):
    """One way of knowing who is calling. Methods block briefly; called from worker threads."""

    @property
    def name(self) -> str: ...

    def covers(self, address: str) -> bool:
        """Whether this provider is the one to ask about ``address``."""
        ...

    def whois(self, link: Link) -> Identity | None:
        """The identity at ``link.remote``, or None."""
        ...

    def confirms(self, destination: Endpoint) -> Identity | None:
        """For a sender, after connecting and before any byte of a file: the identity that
        listens at ``destination``, or None where this cannot be vouched for."""
        ...
