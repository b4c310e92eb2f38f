"""Listening sockets that this process was started with (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from tdx.errors import ConfigError

FIRST: Final = 3
"""The number of the first descriptor passed (SD_LISTEN_FDS_START)."""

VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def take_inherited(env: MutableMapping[str, str], pid: int, first: int = FIRST) -> list[socket.socket]:
    """The sockets that ``env`` says were passed to the process ``pid``, in their order: listening ones of
    TCP, not blocking, closed on exec; none where it says nothing, or speaks of another process. The
    variables are removed in every case: what this process starts must not take them for its own.

    To be called once, before anything else opens descriptors. ConfigError for what cannot be used.
    """
    said = {variable: env.pop(variable, "") for variable in VARIABLES}
    if not said["LISTEN_FDS"] or said["LISTEN_PID"] != str(pid):
        return []
    count = said["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit()) or len(count) > 4:
        raise ConfigError(f"LISTEN_FDS is not a number of sockets: {count!r}")
    names = said["LISTEN_FDNAMES"].split(":")
    return [
        _listener(first + index, names[index] if index < len(names) else "") for index in range(int(count))
    ]


def _listener(descriptor: int, name: str) -> socket.socket:
    what = f"descriptor {descriptor}{f' ({name})' if name else ''}, which systemd passed,"
    advice = "the socket unit needs ListenStream=HOST:PORT and Accept=no"
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{what} is no socket: {error.strerror}; {advice}") from None
    tcp = (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.type == socket.SOCK_STREAM
        and found.proto == socket.IPPROTO_TCP
    )
    if not tcp or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.detach()
        raise ConfigError(f"{what} is no listening TCP socket; {advice}")
    found.setblocking(False)
    return found
