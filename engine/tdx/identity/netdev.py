"""The network interfaces of this machine, as the kernel describes them (netdevice(7)). Needs no privilege."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCGIFHWADDR: Final = 0x8927
IFF_UP: Final = 0x1
ARPHRD_NONE: Final = 0xFFFE
"""The kind of an interface without link-layer addresses (linux/if_arp.h)."""

_IFREQ: Final = struct.Struct("=16sH22x")  # ifreq: name, then the flags or the family of an address


@dataclass(frozen=True, slots=True)
class Held:
    """An address, without its zone, that an interface of this machine holds, and the ``prefix`` length of
    its network. ``zone`` is 0 but for those that mean something on one interface only (RFC 4007)."""

    interface: str
    address: str
    prefix: int
    zone: int


def held() -> list[Held]:
    """Every address of this machine. OSError where the system does not list them."""
    import ifaddr  # slow to import

    return [
        Held(adapter.name, ip.ip, ip.network_prefix, 0)
        if isinstance(ip.ip, str)
        else Held(adapter.name, ip.ip[0], ip.network_prefix, ip.ip[2])
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
    ]


class Interface:
    """The interface called ``name``, whether or not it is there now."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_up(self) -> bool:
        flags = self._ask(SIOCGIFFLAGS)
        return flags is not None and bool(flags & IFF_UP)

    def is_tunnel(self) -> bool | None:
        """Whether it has no link layer, as every WireGuard interface; None where it is not there."""
        kind = self._ask(SIOCGIFHWADDR)
        return None if kind is None else kind == ARPHRD_NONE

    def addresses(self) -> list[IPv4Interface | IPv6Interface]:
        """Its addresses with the networks that they are in; none where it is not there."""
        return [ip_interface((each.address, each.prefix)) for each in held() if each.interface == self.name]

    def _ask(self, request: int) -> int | None:
        asked = bytearray(_IFREQ.pack(self.name.encode(), 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            try:
                fcntl.ioctl(any_socket, request, asked)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return None
                raise
        return int(_IFREQ.unpack(asked)[1])
