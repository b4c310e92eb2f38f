"""``/proc/net/tcp`` and ``tcp6``: the socket tables as text (proc(5)).

Slower than :mod:`tdx.identity.sockdiag`, since every socket of the machine is
listed, but there even where netlink is not.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from tdx.identity.rows import SocketRow, unmapped

PROC_NET: Final = Path("/proc/net")


def _endpoint(text: str) -> tuple[bytes, int]:
    # Each 32-bit word of the address is printed as a number in the machine's byte order.
    address, _, port = text.partition(":")
    if len(address) not in (8, 32) or len(port) != 4:
        raise ValueError(f"not an address: {text!r}")
    words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
    return unmapped(b"".join(struct.pack("=I", word) for word in words)), int(port, 16)


def _row(line: str) -> SocketRow:
    try:
        _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
        return SocketRow(_endpoint(local), _endpoint(remote), int(state, 16), int(uid), int(inode))
    except (ValueError, struct.error) as error:
        raise ValueError(f"not a row of a socket table: {line[:120]!r}") from error


def parse(table: str) -> list[SocketRow]:
    """The rows below the heading of one table. ValueError for a row that cannot be
    read: a table with a row missing proves nothing about who is alone in it."""
    return [_row(line) for line in table.splitlines()[1:]]


def read(folder: Path = PROC_NET) -> list[SocketRow]:
    """Every TCP socket of this network namespace. OSError where the IPv4 table cannot be
    read; a kernel without IPv6 has no second one."""
    rows = parse((folder / "tcp").read_text("ascii"))
    try:
        second = (folder / "tcp6").read_text("ascii")
    except FileNotFoundError:
        return rows
    return rows + parse(second)
