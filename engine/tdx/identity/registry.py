"""Asking the right provider."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tdx.errors import IdentityUnavailable
from tdx.identity.local import NAME as LOCAL
from tdx.identity.port import Endpoint, KnownPeer, Link, Mesh, Place, Provider
from tdx.model import Identity

log = logging.getLogger(__name__)


class Identities:
    """The providers of one process, in the order in which they are asked; those that are
    networks of their own are among them and in ``meshes``.

    Those that cover an address are asked in turn until one knows who it is. One that
    fails ends the search: what it would have said is unknown, and the next might take a
    stranger for a neighbour.
    """

    def __init__(self, providers: Sequence[Provider], meshes: Sequence[Mesh] = ()) -> None:
        self._providers = tuple(providers)
        self.meshes = tuple(meshes)

    def identify(self, link: Link) -> Identity | None:
        """Who is at ``link.remote``, as the receiver asks. Blocks briefly. None also where a
        provider fails: nobody gets in because of that."""
        try:
            return self._ask(link.remote.host, lambda provider: provider.whois(link))
        except IdentityUnavailable as error:
            log.warning("cannot tell who calls from %s: %s", link.remote.host, error.message)
            return None

    def confirm(self, destination: Endpoint) -> Identity | None:
        """Who listens at ``destination``, as the sender asks. Blocks briefly. IdentityUnavailable
        where a provider fails: asking again later may help."""
        return self._ask(destination.host, lambda provider: provider.confirms(destination))

    def accepted(self, link: Link) -> Identity | None:
        """For a sender: who of this machine has accepted its connection ``link``, whoever listens
        there now; None where nobody has yet. Blocks briefly."""
        for provider in self._providers:
            if provider.name == LOCAL and provider.covers(link.remote.host):
                return provider.whois(link)
        return None

    def interface(self, address: str) -> str | None:
        """The interface to reach ``address`` by, where it is one of a mesh."""
        for mesh in self.meshes:
            if mesh.covers(address):
                return mesh.interface(address)
        return None

    def find(self, name: str) -> KnownPeer | None:
        """The member of a mesh that goes by ``name`` there. IdentityUnavailable where a mesh
        does not say and no other knows the name."""
        wanted, silent = name.lower().rstrip("."), None
        for mesh in self.meshes:
            try:
                for peer in mesh.peers():
                    if wanted in peer.names:
                        return peer
            except IdentityUnavailable as error:
                silent = error
        if silent is not None:
            raise silent
        return None

    def places(self) -> list[Place]:
        """This machine's addresses on the meshes that are up. One that does not say has none."""
        found: list[Place] = []
        for mesh in self.meshes:
            try:
                found += mesh.places()
            except IdentityUnavailable as error:
                log.debug("%s: %s", mesh.name, error.message)
        return found

    def names(self) -> frozenset[str]:
        """What this machine is called on the meshes that are up, in lower case."""
        found: set[str] = set()
        for mesh in self.meshes:
            try:
                found.update(mesh.own_names())
            except IdentityUnavailable as error:
                log.debug("%s: %s", mesh.name, error.message)
        return frozenset(found)

    def _ask(self, address: str, question: Callable[[Provider], Identity | None]) -> Identity | None:
        for provider in self._providers:
            try:
                found = question(provider) if provider.covers(address) else None
            except IdentityUnavailable:
                raise
            except Exception as error:
                log.debug("identity provider %s failed about %s", provider.name, address, exc_info=True)
                raise IdentityUnavailable(
                    f"{provider.name} cannot say who is at {address}: {error}"
                ) from error
            if found is not None:
                return found
        return None
