"""Who is at an address, or goes by a name, as far as anybody on this machine can say."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from tdx.config import DEFAULT_PORT
from tdx.control.resolve import LOCALHOST, Peer
from tdx.errors import IdentityUnavailable, UnknownPeer
from tdx.identity import procnet
from tdx.identity.local import is_address_of_this_machine
from tdx.identity.port import Endpoint, KnownPeer, Link
from tdx.identity.providers import identities_of
from tdx.identity.registry import Identities
from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow, pack
from tdx.identity.settings import IdentitySettings
from tdx.identity.tls import identity_of
from tdx.identity.trust import TrustStore
from tdx.model import Identity

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """An identity, and ``basis``: what says so, and how far that goes."""

    identity: Identity
    basis: str


def whois(text: str, settings: IdentitySettings, state: Path) -> list[Known]:
    """Everybody whom ``text`` may mean: an address, ``HOST:PORT`` of a connection or a listener of
    this machine, or the name of a paired device or of a mesh's member. Blocks briefly.

    UsageError for what is none of these, UnknownPeer where nobody is known, IdentityUnavailable
    where nobody is known and a provider does not say.
    """
    peer = Peer.parse("127.0.0.1" + text[len(LOCALHOST) :] if _is_localhost(text) else text)
    asking = _Asking(identities_of(settings, os.getuid()))
    found = [*_paired(peer, TrustStore(state))]
    found += asking.about_address(peer) if peer.is_address else asking.about_name(peer)
    unique = list({(each.identity.owner, each.basis): each for each in found}.values())
    if unique:
        return unique
    if asking.silent is not None:
        raise asking.silent
    raise UnknownPeer(_nobody(peer))


def member(owner: str, settings: IdentitySettings) -> Identity | None:
    """The member of a mesh that has this owner, with all that the mesh tells of it; None where there
    is none, or none can be told. Blocks briefly."""
    asking = _Asking(identities_of(settings, os.getuid()))
    for mesh in asking.identities.meshes:
        for peer in asking.asked(mesh.peers) or ():
            if peer.identity.owner == owner:
                return asking.whole(peer)
    return None


def _is_localhost(text: str) -> bool:
    return text.lower().partition(":")[0] == LOCALHOST


def _paired(peer: Peer, trust: TrustStore) -> list[Known]:
    found: list[Known] = []
    for trusted in trust.entries():
        if peer.is_called(trusted.name):
            found.append(Known(identity_of(trusted), "paired; its key shows who it is when it connects"))
        elif any(_same_place(peer, Peer.parse(address)) for address in trusted.addresses):
            basis = "paired, and this is a stored address of it; only its key shows whether it is there"
            found.append(Known(identity_of(trusted), basis))
    return found


def _same_place(peer: Peer, stored: Peer) -> bool:
    """At any port, where ``peer`` was given none."""
    return peer.place[0] == stored.place[0] if peer.port is None else peer.place == stored.place


class _Asking:
    def __init__(self, identities: Identities) -> None:
        self.identities = identities
        self.silent: IdentityUnavailable | None = None
        """What a provider said instead of an answer."""

    def about_name(self, peer: Peer) -> list[Known]:
        known = self.asked(self.identities.find, peer.host)
        if known is None:
            return []
        whole = self.whole(known)
        return [Known(whole, f"a name of {whole.provider}" + (f"; {known.path}" if known.path else ""))]

    def whole(self, known: KnownPeer) -> Identity:
        """Asked about an address, a provider tells all: a list of peers has no capabilities."""
        for address in known.addresses:
            found = self.asked(self._confirmed, address)
            if found is not None and found.owner == known.identity.owner:
                return found
        return known.identity

    def about_address(self, peer: Peer) -> list[Known]:
        if not is_address_of_this_machine(peer.host):
            found = self.asked(self._confirmed, peer.host)
            return (
                [] if found is None else [Known(found, f"{found.provider} routes that address to it alone")]
            )
        if peer.port is None:
            return []
        return self._about_sockets(Endpoint(_plain(peer.host), peer.port))

    def _confirmed(self, address: str) -> Identity | None:
        return self.identities.confirm(Endpoint(_plain(address), DEFAULT_PORT))

    def _about_sockets(self, end: Endpoint) -> list[Known]:
        """Who connects from that address and port of this machine, and who listens there."""
        try:
            rows = procnet.read()
        except (OSError, ValueError) as error:
            self.silent = IdentityUnavailable(f"cannot read the sockets of this machine: {error}")
            return []
        place = (pack(end.host), end.port)
        found: list[Known] = []
        for row in rows:
            if row.state == ESTABLISHED and row.local == place and not _listens(rows, place[1]):
                other = Endpoint(str(ipaddress.ip_address(row.remote[0])), row.remote[1])
                caller = self.asked(self.identities.identify, Link(other, end))
                if caller is not None:
                    found.append(Known(caller, f"connected to {Peer(other.host, other.port)}"))
        if _listens(rows, place[1]):
            owner = self.asked(self.identities.confirm, end)
            if owner is not None:
                found.append(Known(owner, "listens there"))
        return found

    def asked(self, question: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return question(*args, **kwargs)
        except IdentityUnavailable as error:
            self.silent = error
            return None


def _listens(rows: list[SocketRow], port: int) -> bool:
    return any(row.state == LISTEN and row.local[1] == port for row in rows)


def _plain(host: str) -> str:
    """IPv4-mapped addresses as IPv4."""
    packed = pack(host)
    return host if packed is None or "%" in host else str(ipaddress.ip_address(packed))


def _nobody(peer: Peer) -> str:
    if not peer.is_address:
        return f"nobody is called {peer.host} here: no paired device, and no member of a mesh"
    if is_address_of_this_machine(peer.host):
        if peer.port is None:
            return f"{peer.host} is this machine; add the port of a connection or of a listener"
        return f"nobody can be told at {peer}: no process of this machine holds a connection from there"
    return f"nothing on this machine can say who is at {peer.host}; it is on none of its meshes, nor paired"
