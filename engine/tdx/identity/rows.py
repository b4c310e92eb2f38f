"""TCP sockets of this machine as the kernel lists them, whichever interface told us."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

ESTABLISHED: Final = 1
LISTEN: Final = 10
"""TCP states as the kernel numbers them (include/net/tcp_states.h)."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_LOOPBACK_6: Final = bytes(15) + b"\x01"


@dataclass(frozen=True, slots=True)
class SocketRow:
    """One TCP socket. Addresses are :func:`unmapped`, ports in host order.

    ``uid`` and ``inode`` are both 0 for a socket that no process holds (closed but
    not yet gone, or not yet accepted): then ``uid`` says nothing about anybody.
    """

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    state: int
    uid: int
    inode: int


def unmapped(packed: bytes) -> bytes:
    """The 4 bytes of an IPv4-mapped IPv6 address; any other address as it is."""
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def pack(host: str) -> bytes | None:
    """The 4 or 16 bytes of a numeric address, IPv4-mapped ones as IPv4, a zone
    (``%eth0``) left out; None for anything that is not a numeric address."""
    text, _, _ = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return unmapped(socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    return None


def is_loopback(packed: bytes) -> bool:
    return packed[0] == 127 if len(packed) == 4 else packed == _LOOPBACK_6


def holder(rows: list[SocketRow], state: int) -> int | None:
    """The one uid that holds every one of ``rows``, all in ``state``; None where there
    are no rows, a row is in another state or held by nobody, or the uids differ."""
    if any(row.state != state or row.inode == 0 for row in rows):
        return None
    uids = {row.uid for row in rows}
    return uids.pop() if len(uids) == 1 else None
