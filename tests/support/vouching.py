"""An identity provider for tests: it says what it is told to say."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdx.identity.port import Endpoint, Link
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
