"""Asking the right provider."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from tdx.identity.port import Endpoint, Link, Provider
from tdx.model import Identity

log = logging.getLogger(__name__)


class Identities:
    """The providers of one process, in the order in which they are asked.

    Those that cover an address are asked in turn until one knows who it is. One that
    fails ends the search with None: what it would have said is unknown, and the next
    might take a stranger for a neighbour.
    """

    def __init__(self, providers: Sequence[Provider]) -> None:
        self._providers = tuple(providers)

    def identify(self, link: Link) -> Identity | None:
        """Who is at ``link.remote``, as the receiver asks. Blocks briefly."""
        return self._ask(link.remote.host, lambda provider: provider.whois(link))

    def confirm(self, destination: Endpoint) -> Identity | None:
        """Who listens at ``destination``, as the sender asks. Blocks briefly."""
        return self._ask(destination.host, lambda provider: provider.confirms(destination))

    def _ask(self, address: str, question: Callable[[Provider], Identity | None]) -> Identity | None:
        for provider in self._providers:
            try:
                found = question(provider) if provider.covers(address) else None
            except Exception as error:
                log.warning("identity provider %s failed about %s: %r", provider.name, address, error)
                return None
            if found is not None:
                return found
        return None
