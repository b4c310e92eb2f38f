"""The ``local`` provider: callers on this very machine, known by the uid that holds the
other end of the connection."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tdx.identity import procnet, sockdiag
from tdx.identity.port import Endpoint, Link
from tdx.identity.rows import ESTABLISHED, LISTEN, SocketRow, holder, is_loopback, pack
from tdx.model import Identity, Owner

NAME: Final = "local"
_ANY_PORT: Final = 9
_PROC: Final = Path("/proc")
_USUAL_STAND_IN: Final = 65534


def user_name(uid: int) -> str:
    """The login name of ``uid``, or its digits where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def is_address_of_this_machine(address: str) -> bool:
    """Whether ``address`` (numeric) is loopback or one of this machine's own. No packet is sent.

    Connecting a UDP socket makes the kernel choose a source address; only for an
    address of its own does it choose the destination itself.
    """
    packed = pack(address)
    if packed is None:
        return False
    if is_loopback(packed):
        return True
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            if family == socket.AF_INET:
                probe.connect((socket.inet_ntop(family, packed), _ANY_PORT))
            else:
                probe.connect((socket.inet_ntop(family, packed), _ANY_PORT, 0, interface_of(address)))
            return pack(probe.getsockname()[0]) == packed
    except OSError:
        return False


def interface_of(address: str) -> int:
    """The index of the interface named in a zone (``fe80::1%eth0``, ``fe80::1%2``); 0 without one.
    OSError for an interface that is not there."""
    zone = address.partition("%")[2]
    if not zone:
        return 0
    return int(zone) if zone.isascii() and zone.isdigit() else socket.if_nametoindex(zone)


def stand_in_uid(proc: Path = _PROC) -> int | None:
    """The uid under which every uid unknown to this user namespace appears; None in a
    namespace that knows them all."""
    try:
        if (proc / "self" / "uid_map").read_text("ascii").split() == ["0", "0", "4294967295"]:
            return None
        return int((proc / "sys" / "kernel" / "overflowuid").read_text("ascii"))
    except (OSError, ValueError):
        return _USUAL_STAND_IN


class LocalProvider:
    """Implements :class:`tdx.identity.port.Provider` for addresses of this machine.

    ``uid`` is the uid this process acts for: it alone is its own. Root is identified like
    anybody else; that it may do anything on its machine is no reason to let it in, since
    proxies that carry strangers' connections run as root.
    """

    def __init__(self, uid: int | None = None) -> None:
        self.uid = os.getuid() if uid is None else uid
        self._stand_in = stand_in_uid()
        self._node = os.uname().nodename

    @property
    def name(self) -> str:
        return NAME

    @property
    def own(self) -> Identity:
        """The identity that this process itself has."""
        return self._identity(self.uid)

    def covers(self, address: str) -> bool:
        return is_address_of_this_machine(address)

    def whois(self, link: Link) -> Identity | None:
        """The uid that holds the other end, provided that it is established and held by a
        process: what a caller has half closed shows uid 0 and identifies nobody."""
        # Seen from the other end, its own address is our remote one.
        theirs, ours = pack(link.remote.host), pack(link.local.host)
        if theirs is None or ours is None or not _are_ports(link.remote.port, link.local.port):
            return None
        if not self.covers(link.remote.host):
            return None
        local, remote = (theirs, link.remote.port), (ours, link.local.port)

        def exact() -> list[SocketRow]:
            return sockdiag.lookup(local, remote, interface_of(link.remote.host))

        def listed() -> list[SocketRow]:
            return [row for row in procnet.read() if row.local == local and row.remote == remote]

        return self._vouch(_first_told(exact, listed), ESTABLISHED)

    def confirms(self, destination: Endpoint) -> Identity | None:
        """The one uid that holds every socket listening for ``destination``.

        An IPv6 wildcard counts for IPv4 too, whether or not it takes IPv4: at worst
        somebody who shares the port number makes this None.
        """
        address, port = pack(destination.host), destination.port
        if address is None or not _are_ports(port) or not self.covers(destination.host):
            return None
        places = {(address, port), (bytes(len(address)), port), (bytes(16), port)}

        def asked() -> list[SocketRow]:
            return [row for row in sockdiag.listeners(port) if row.local in places]

        def listed() -> list[SocketRow]:
            return [row for row in procnet.read() if row.state == LISTEN and row.local in places]

        return self._vouch(_first_told(asked, listed), LISTEN)

    def _vouch(self, rows: list[SocketRow], state: int) -> Identity | None:
        uid = holder(rows, state)
        return None if uid is None or uid == self._stand_in else self._identity(uid)

    def _identity(self, uid: int) -> Identity:
        return Identity(Owner(f"{NAME}:{uid}"), NAME, user_name(uid), self._node, own=uid == self.uid)


def _are_ports(*numbers: int) -> bool:
    return all(0 < number < 65536 for number in numbers)


def _first_told(*ways: Callable[[], list[SocketRow]]) -> list[SocketRow]:
    """The rows of the first way that works; none where no way does.

    "No such socket" does not count as an answer: netlink says the same where the kernel
    lacks the facility.
    """
    for way in ways:
        try:
            return way()
        except (OSError, ValueError, OverflowError):
            continue
    return []
