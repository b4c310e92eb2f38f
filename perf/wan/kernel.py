"""What the emulator asks of Linux and Python 3.11 lacks: namespaces, TUN devices, a parent's death."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
from typing import Final

CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def new_network() -> None:
    """Move this process into a network namespace of its own."""
    _checked(_libc.unshare(CLONE_NEWNET), "unshare")


def enter_network(descriptor: int) -> None:
    """Move this process into the network namespace that ``descriptor`` refers to."""
    _checked(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def die_with(parent: int) -> None:
    """Be killed when the process that started this one, ``parent``, ends; end now if it has already."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def open_tun(name: str, address: str, *, mtu: int, ring: int, congestion_control: str) -> int:
    """A non-blocking descriptor of a new TUN device of this namespace, up, with ``address`` (of a /24) and
    room for ``ring`` packets. Connections through it use ``congestion_control``: as a property of the
    route, since only some may be a namespace's default, and the machine's own settings stay as they are."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    network = address.rpartition(".")[0] + ".0/24"
    for command in (
        "link set lo up",
        f"link set {name} mtu {mtu} txqueuelen {ring} up",
        f"address add {address}/24 dev {name}",
        f"route replace {network} dev {name} src {address} congctl {congestion_control}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return descriptor


def _checked(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
