"""The ``wireguard`` provider: cryptokey routing vouches for the key behind an address.

WireGuard lets a packet in only from the peer that has its source address among its allowed
IPs, and sends one only to the peer that has its destination. So on a connection that is
bound to the interface, an address is as good as the key, and the configuration says whose it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from tdx.errors import ConfigError, IdentityUnavailable
from tdx.identity.allowed_ips import (
    Address,
    AllowedIps,
    Claim,
    Network,
    address_of,
    is_single,
    parse_allowed_ips,
    parse_handshakes,
)
from tdx.identity.local import is_address_of_this_machine
from tdx.identity.netdev import Interface
from tdx.identity.port import Endpoint, KnownPeer, Link, Place
from tdx.identity.settings import WireguardPeer, WireguardSettings
from tdx.identity.wg import Wg
from tdx.model import Identity, Owner

log = logging.getLogger(__name__)

NAME: Final = "wireguard"
KEPT_SECONDS: Final = 5.0
"""How long what wg said is taken to be so."""

ALIVE_SECONDS: Final = 180.0
"""WireGuard's REJECT_AFTER_TIME: after it a session is dead, unless there was a new handshake."""

_SHOWN_OF_KEY: Final = 8


@dataclass(frozen=True, slots=True)
class _Told:
    """What wg said, or why it said nothing; good before the time ``until``."""

    until: float
    networks: Mapping[str, tuple[Network, ...]]
    table: AllowedIps
    failure: str = ""


class WireguardProvider:
    """Implements :class:`tdx.identity.port.Mesh` for one interface.

    A single address (/32, /128) identifies the peer that has it; a network only where that peer
    has ``subnet``. The longest match decides, as in WireGuard itself, and where it does not
    identify, nobody is vouched for. For a peer with ``allowed_ips`` these are believed, and only
    these identify it; wg is asked only where a peer has none, or no peer is named. Then a key that
    has no name here is vouched for as what it is, and not as one's own, so that a refusal can
    name it.
    """

    def __init__(
        self,
        settings: WireguardSettings,
        *,
        wg: Wg | None = None,
        netdev: Interface | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``clock``: seconds, for how long to keep what wg said; ``now``: seconds since the Unix
        epoch. ConfigError where allowed_ips are none, or two peers have the same."""
        self._interface = settings.interface
        self._wg = wg or Wg(settings.interface)
        self._netdev = netdev or Interface(settings.interface)
        self._clock = clock
        self._now = now
        self._peers = {peer.key: peer for peer in settings.peers}
        self._networks = {peer.key: _networks(peer) for peer in settings.peers}
        self._configured = AllowedIps(_claims(self._networks))
        for claim in self._configured.claims():
            if len(claim.keys) > 1:
                names = " and ".join(sorted(self._peers[key].name for key in claim.keys))
                raise ConfigError(
                    f"the WireGuard peers {names} both have {claim.network} in their allowed_ips"
                )
        self._asks_wg = not all(self._networks.values()) or not self._networks
        self._lock = threading.Lock()
        self._told: _Told | None = None
        self._explained: set[str] = set()

    @property
    def name(self) -> str:
        return NAME

    def covers(self, address: str) -> bool:
        """Whether ``address`` identifies a key of this interface, or is in a network that this
        machine itself has there. A network that does not identify covers nothing: it may be the
        whole internet. Asks wg where that needs to be, and raises IdentityUnavailable where only
        wg could tell and does not: what may be a peer's is not to be taken for anybody else's."""
        found = _address_elsewhere(address)
        if found is None or self._netdev.is_tunnel() is None:
            return False
        claim, silent = None, None
        try:
            claim = self._claim(found)
        except IdentityUnavailable as error:
            silent = error
        if claim is not None and self._identifies(claim):
            return True
        if any(found in own.network for own in self._netdev.addresses()):
            return True
        if silent is not None:
            raise silent
        return False

    def whois(self, link: Link) -> Identity | None:
        """The key that the connection comes from, provided that it is bound to the interface: a
        source address alone proves nothing about the way in."""
        if link.interface == self._interface:
            return self._identify(link.remote.host)
        if link.interface is None and link.local.host not in self._explained:
            self._explained.add(link.local.host)
            log.warning(
                "nobody who calls %s is taken for a peer on %s, since calls can come in there by other ways; "
                "listen on the address that this machine has on %s",
                *(link.local.host, self._interface, self._interface),
            )
        return None

    def confirms(self, destination: Endpoint) -> Identity | None:
        """The key that has ``destination``: from a socket that is bound to the interface, nothing
        goes to any other."""
        return self._identify(destination.host)

    def places(self) -> Sequence[Place]:
        if not self._netdev.is_up() or not self._is_ours():
            return []
        own = [address.ip for address in self._netdev.addresses()]
        return [Place(str(address), self._interface) for address in own if not address.is_link_local]

    def own_names(self) -> Sequence[str]:
        """None: a key's names are those that the others give it."""
        return []

    def peers(self) -> Sequence[KnownPeer]:
        """The peers that the configuration names. One is ``online`` for three minutes after a
        handshake; whether it is later cannot be told, since WireGuard is silent when idle."""
        told: Mapping[str, tuple[Network, ...]] = {}
        if self._asks_wg:
            try:
                told = self._ask_wg().networks
            except IdentityUnavailable as error:
                if not any(self._networks.values()):
                    raise
                log.debug("%s", error.message)
        shaken = self._handshakes()
        return [
            KnownPeer(
                (peer.name.lower(),),
                _named(peer),
                tuple(
                    str(network.network_address)
                    for network in self._networks[key] or told.get(key, ())
                    if is_single(network)
                ),
                True if self._now() - shaken.get(key, 0) < ALIVE_SECONDS else None,
            )
            for key, peer in self._peers.items()
        ]

    def interface(self, address: str) -> str | None:  # noqa: ARG002
        return self._interface

    # --- who has it ----------------------------------------------------------

    def _identify(self, host: str) -> Identity | None:
        address = _address_elsewhere(host)
        if address is None or not self._is_ours():
            return None
        claim = self._claim(address)
        if claim is None:
            return None
        if not self._identifies(claim):
            log.info("%s is on %s in %s, which identifies nobody", host, self._interface, claim.network)
            return None
        (key,) = claim.keys
        peer = self._peers.get(key)
        return _unnamed(key) if peer is None else _named(peer)

    def _claim(self, address: Address) -> Claim | None:
        claim = self._configured.find(address)
        if (claim is not None and is_single(claim.network)) or not self._asks_wg:
            return claim
        return self._ask_wg().table.find(address)

    def _identifies(self, claim: Claim) -> bool:
        if len(claim.keys) != 1:
            return False
        (key,) = claim.keys
        peer = self._peers.get(key)
        if peer is None:
            return is_single(claim.network)
        listed = not self._networks[key] or claim.network in self._networks[key]
        return listed and (peer.subnet or is_single(claim.network))

    def _is_ours(self) -> bool:
        """Whether the interface is there. IdentityUnavailable where it is no tunnel: on an ordinary
        network anybody can have any address."""
        tunnel = self._netdev.is_tunnel()
        if tunnel is False:
            raise IdentityUnavailable(
                f"{self._interface} is not a WireGuard interface; correct `interface` under [[wireguard]] "
                "in the configuration"
            )
        return tunnel is True

    # --- what wg says --------------------------------------------------------

    def _ask_wg(self) -> _Told:
        with self._lock:
            if self._told is None or self._clock() >= self._told.until:
                self._told = self._tell()
            told = self._told
        if told.failure:
            raise IdentityUnavailable(told.failure)
        return told

    def _tell(self) -> _Told:
        until = self._clock() + KEPT_SECONDS
        try:
            networks = parse_allowed_ips(self._wg.allowed_ips())
        except ValueError as error:
            failure = self._wg.unavailable(f"its answer makes no sense ({error})")
        except IdentityUnavailable as error:
            failure = error
        else:
            # All that wg says counts: a key's address that is not listed here is still no other's.
            table = AllowedIps([*_claims(self._networks), *_claims(networks)])
            return _Told(until, networks, table)
        return _Told(self._clock() + KEPT_SECONDS, {}, AllowedIps([]), failure.message)

    def _handshakes(self) -> Mapping[str, int]:
        try:
            return parse_handshakes(self._wg.latest_handshakes())
        except (ValueError, IdentityUnavailable) as error:
            log.debug("no handshakes of %s: %s", self._interface, error)
            return {}


def _address_elsewhere(host: str) -> Address | None:
    """The address, unless it may be this machine's own: of an IPv6 link-local one this cannot be
    told without its zone."""
    address = address_of(host)
    if address is None or (address.version == 6 and address.is_link_local):
        return None
    return None if is_address_of_this_machine(host) else address


def _networks(peer: WireguardPeer) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(text) for text in peer.allowed_ips)
    except ValueError as error:
        raise ConfigError(
            f"the allowed_ips of the WireGuard peer {peer.name}: {error} (write them like 10.9.0.2/32)"
        ) from None


def _claims(networks: Mapping[str, Iterable[Network]]) -> list[tuple[str, Network]]:
    return [(key, network) for key, each in networks.items() for network in each]


def _named(peer: WireguardPeer) -> Identity:
    return Identity(Owner(f"{NAME}:{peer.key}"), NAME, "", peer.name, own=True)


def _unnamed(key: str) -> Identity:
    # The dots keep a key that was searched for until it begins like a name from passing for it.
    return Identity(Owner(f"{NAME}:{key}"), NAME, "", f"{key[:_SHOWN_OF_KEY]}…")
