"""sock_diag: asking the kernel about single sockets over netlink (sock_diag(7)).

Needs no privilege. The structures are those of linux/netlink.h and
linux/inet_diag.h, packed by hand.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from tdx.identity.rows import LISTEN, SocketRow, unmapped

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 0x1
NLM_F_MULTI: Final = 0x2
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
ALL_STATES: Final = 0xFFFFFFFF

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_ERROR: Final = struct.Struct("=i")
_REQUEST: Final = struct.Struct("=BBBBI")  # inet_diag_req_v2: family, protocol, extensions, pad, states
_PORTS: Final = struct.Struct("!HH")  # inet_diag_sockid: source, destination
_PLACE: Final = struct.Struct("=I8s")  # inet_diag_sockid: interface, cookie
_MESSAGE: Final = struct.Struct("=BBBB4s16s16s12s5I")  # inet_diag_msg; last: expires, queues, uid, inode
_NO_COOKIE: Final = b"\xff" * 8

_SEQUENCE: Final = 1
_BUFFER: Final = 1 << 16
_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What one datagram held; ``complete`` when no further one is to come."""

    rows: list[SocketRow]
    complete: bool


def _sockid(local: tuple[bytes, int], remote: tuple[bytes, int], interface: int) -> bytes:
    (source, source_port), (destination, destination_port) = local, remote
    return (
        _PORTS.pack(source_port, destination_port)
        + source.ljust(16, b"\0")
        + destination.ljust(16, b"\0")
        + _PLACE.pack(interface, _NO_COOKIE)
    )


def request(family: int, flags: int, states: int, sockid: bytes) -> bytes:
    """A whole SOCK_DIAG_BY_FAMILY message about TCP sockets."""
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, states) + sockid
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | flags, _SEQUENCE, 0) + body


def _row(body: bytes) -> SocketRow:
    if len(body) < _MESSAGE.size:
        raise ValueError(f"a socket description of {len(body)} bytes")
    family, state, _, _, ports, source, destination, _, _, _, _, uid, inode = _MESSAGE.unpack_from(body)
    size = 4 if family == socket.AF_INET else 16
    source_port, destination_port = _PORTS.unpack(ports)
    return SocketRow(
        (unmapped(source[:size]), source_port),
        (unmapped(destination[:size]), destination_port),
        state,
        uid,
        inode,
    )


def parse(datagram: bytes) -> Answer:
    """The messages of one datagram. OSError for an error the kernel reports (ENOENT: no
    such socket, or no such facility); ValueError for what is not an answer to :func:`request`."""
    rows: list[SocketRow] = []
    complete = False
    at = 0
    while at < len(datagram):
        if len(datagram) - at < _HEADER.size:
            raise ValueError("a netlink header cut short")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, at)
        if not _HEADER.size <= length <= len(datagram) - at or sequence != _SEQUENCE:
            raise ValueError("a netlink message that does not fit its datagram")
        body = datagram[at + _HEADER.size : at + length]
        if flags & NLM_F_DUMP_INTR:
            raise OSError(errno.EINTR, "the socket table changed while it was listed")
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            code = -_ERROR.unpack_from(body)[0] if len(body) >= _ERROR.size else 0
            if code > 0:
                raise OSError(code, os.strerror(code))
            complete = True
        elif kind == SOCK_DIAG_BY_FAMILY:
            rows.append(_row(body))
            complete = complete or not flags & NLM_F_MULTI
        else:
            raise ValueError(f"a netlink message of type {kind}")
        at += -(-length // 4) * 4
    return Answer(rows, complete)


def _ask(message: bytes) -> list[SocketRow]:
    rows: list[SocketRow] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_TIMEOUT)
        kernel.sendto(message, (0, 0))
        complete = False
        while not complete:
            datagram, _, flags, sender = kernel.recvmsg(_BUFFER)
            if sender[0] != 0:  # only the kernel has port id 0
                continue
            if flags & socket.MSG_TRUNC:
                raise ValueError("a netlink datagram cut short")
            if not datagram:
                raise ValueError("an empty netlink datagram")
            answer = parse(datagram)
            rows += answer.rows
            complete = answer.complete
    return rows


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def lookup(local: tuple[bytes, int], remote: tuple[bytes, int], interface: int = 0) -> list[SocketRow]:
    """The sockets (at most one) whose own end is ``local`` and whose other end is ``remote``,
    of either family: the kernel finds an IPv6 socket with mapped addresses under its IPv4 ones.

    ``interface`` is the index that a link-local address belongs to. OSError where the kernel
    does not answer or knows no such socket, ValueError where the answer is not one.
    """
    if len(local[0]) != len(remote[0]):
        return []
    found = _ask(request(_family(local[0]), 0, ALL_STATES, _sockid(local, remote, interface)))
    # Where there is no connection, the kernel answers with the listener of that port instead.
    return [row for row in found if row.local == local and row.remote == remote]


def listeners(port: int) -> list[SocketRow]:
    """Every listening TCP socket on ``port``, of both families; errors as :func:`lookup`."""
    rows: list[SocketRow] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        nowhere = (b"", 0)
        rows += _ask(request(family, NLM_F_DUMP, 1 << LISTEN, _sockid((b"", port), nowhere, 0)))
    return [row for row in rows if row.local[1] == port]
