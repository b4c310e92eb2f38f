"""An identity provider for tests: it says what it is told to say."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdx.errors import IdentityUnavailable
from tdx.identity.port import Endpoint, KnownPeer, Link, Place
from tdx.model import Identity, Owner


@dataclass
class Vouching:
    """Vouches for every address as ``owner``; for nobody where that is None. ``own``: whom the
    policy lets in without a rule."""

    owner: str | None
    name: str = "local"
    own: bool = True
    fails: bool = False
    asked: list[Link] = field(default_factory=list)

    def covers(self, address: str) -> bool:
        return True

    def whois(self, link: Link) -> Identity | None:
        self.asked.append(link)
        if self.fails:
            raise RuntimeError("the service talks garbage")
        if self.owner is None:
            return None
        return Identity(Owner(self.owner), self.name, "somebody", "here", own=self.own)

    def confirms(self, destination: Endpoint) -> Identity | None:
        return self.whois(Link(destination, destination))


@dataclass
class Meshing(Vouching):
    """A mesh with one other member, ``names`` at ``address``, whose interface is loopback's."""

    address: str = "127.0.0.88"
    names: tuple[str, ...] = ("nas",)
    device: str | None = "lo"
    silent: bool = False

    def covers(self, address: str) -> bool:
        return address == self.address

    def _say(self) -> None:
        if self.silent:
            raise IdentityUnavailable("the mesh is silent")

    def places(self) -> list[Place]:
        return []

    def own_names(self) -> list[str]:
        return []

    def peers(self) -> list[KnownPeer]:
        self._say()
        identity = Identity(Owner("mesh:nas"), self.name, "somebody", "nas", own=self.own)
        return [KnownPeer(self.names, identity, (self.address,))]

    def interface(self, address: str) -> str | None:
        self._say()
        return self.device
