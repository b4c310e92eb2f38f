"""Cryptokey routing, as WireGuard does it: which key an address belongs to. Pure."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from tdx.identity.rows import pack

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_KEY_BYTES: Final = 32
_NONE: Final = "(none)"


def address_of(host: str) -> Address | None:
    """A numeric address without its zone, an IPv4-mapped one as IPv4; None for anything else."""
    packed = pack(host)
    return None if packed is None else ip_address(packed)


def is_single(network: Network) -> bool:
    """Whether it is one address (/32, /128)."""
    return network.prefixlen == network.max_prefixlen


@dataclass(frozen=True, slots=True)
class Claim:
    """The longest allowed IP that holds an address, and the keys that have it: more than one only
    where what is known contradicts itself."""

    network: Network
    keys: frozenset[str]


class AllowedIps:
    """The allowed IPs of all peers of an interface."""

    def __init__(self, claims: Iterable[tuple[str, Network]]) -> None:
        """``claims``: keys and what each has."""
        self._keys: dict[Network, frozenset[str]] = {}
        for key, network in claims:
            self._keys[network] = self._keys.get(network, frozenset()) | {key}
        self._lengths = {
            version: sorted({net.prefixlen for net in self._keys if net.version == version}, reverse=True)
            for version in (4, 6)
        }

    def claims(self) -> list[Claim]:
        return [Claim(network, keys) for network, keys in self._keys.items()]

    def find(self, address: Address) -> Claim | None:
        """The longest match, as the kernel routes; None where no peer has the address."""
        for length in self._lengths[address.version]:
            network = ip_network((address, length), strict=False)
            if network in self._keys:
                return Claim(network, self._keys[network])
        return None


def parse_allowed_ips(output: str) -> Mapping[str, tuple[Network, ...]]:
    """What ``wg show INTERFACE allowed-ips`` prints: a key a line, a tab, and its networks with
    blanks between, or ``(none)``. ValueError for anything else."""
    found: dict[str, tuple[Network, ...]] = {}
    for key, rest in _lines(output):
        found[key] = () if rest == _NONE else tuple(ip_network(text) for text in rest.split(" "))
    return found


def parse_handshakes(output: str) -> Mapping[str, int]:
    """What ``wg show INTERFACE latest-handshakes`` prints: a key a line, a tab, and seconds since
    the Unix epoch, 0 for never. ValueError for anything else."""
    return {key: int(rest) for key, rest in _lines(output)}


def _lines(output: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in output.splitlines():
        key, tab, rest = line.partition("\t")
        if not tab or len(binascii.a2b_base64(key, strict_mode=True)) != _KEY_BYTES:
            raise ValueError(f"not a key and what it has: {line[:80]!r}")
        found.append((key, rest))
    return found
