"""Telling systemd how far a service is (sd_notify(3)), without its library."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from tdx_cli.text import warn


def notify(state: str, env: Mapping[str, str] | None = None) -> bool:
    """Send ``state`` (``READY=1``, ``STOPPING=1``) to the socket that NOTIFY_SOCKET names; whether
    it was sent. Without one nothing happens; one that cannot be reached costs a warning."""
    address = (os.environ if env is None else env).get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        warn(f"NOTIFY_SOCKET is neither a path nor an abstract name: {address!r}")
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        warn(f"cannot tell {address} that {state}: {error.strerror}")
        return False
    return True
