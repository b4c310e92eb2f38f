"""Telling systemd how far a service is (sd_notify(3)), without its library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

from tdx_cli.text import warn

LONGEST_STATUS: Final = 200
PATIENCE: Final = 1.0
"""Seconds for one message to be taken."""


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
            sock.settimeout(PATIENCE)  # a supervisor that does not read must not stop the receiver
            sock.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        warn(f"cannot tell {address} that {state}: {error.strerror}")
        return False
    return True


def notify_reloading() -> None:
    """The configuration is being read again; ``READY=1`` is to follow. The time is for Type=notify-reload,
    which waits for a message that is younger than its signal."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def notify_status(line: str) -> None:
    """A line for ``systemctl status``."""
    notify(f"STATUS={' '.join(line.splitlines())[:LONGEST_STATUS]}")


def watchdog_seconds(env: MutableMapping[str, str], pid: int) -> float | None:
    """How often systemd wants to hear from the process ``pid`` at least (sd_watchdog_enabled(3)); None
    where it does not. The variables are removed, so that no child takes them for its own."""
    microseconds, process = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
    if not (microseconds.isascii() and microseconds.isdigit()) or process not in ("", str(pid)):
        return None
    return int(microseconds) / 1e6 or None
