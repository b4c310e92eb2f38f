"""Everybody who can take part, and in which version."""

from __future__ import annotations

import functools
from typing import Final, Protocol

from perf.contestants.bare import Bare
from perf.contestants.copyparty import Copyparty
from perf.contestants.croc import Croc
from perf.contestants.local import Cp, Dd
from perf.contestants.nginx import Nginx
from perf.contestants.rclone import Rclone
from perf.contestants.rsync import Rsync
from perf.contestants.ssh import Scp
from perf.contestants.tdx import Tdx
from perf.model import Contestant, Missing

AES_128: Final = "aes128-gcm@openssh.com"
AES_256: Final = "aes256-gcm@openssh.com"

TDX: Final = Tdx()
CP: Final = Cp()
BARE: Final = Bare()
DD: Final = Dd()
NGINX: Final = Nginx()
NGINX_TUNED: Final = Nginx("1m", "curl → nginx (1 MiB buffer)")
CP_SYNC: Final = Cp(then_sync=True)
RSYNC: Final = Rsync()
RSYNC_SYNC: Final = Rsync(then_sync=True)
SCP: Final = Scp(AES_128)
SCP_256: Final = Scp(AES_256)
SCP_DEFAULT: Final = Scp(None)


class Versioned(Protocol):
    """A peer that can say which version it is; Missing where it is not there."""

    def version(self) -> str: ...


PEERS: Final[tuple[Contestant, ...]] = (
    NGINX,
    NGINX_TUNED,
    RSYNC,
    SCP,
    SCP_DEFAULT,
    Rclone(),
    Copyparty(),
    Croc(),
)
"""What people would use instead of tdx between two machines."""


@functools.cache
def versions() -> dict[str, str]:
    """What each peer says it is, or that it is missing."""
    told: dict[str, str] = {}
    peers: dict[str, Versioned] = {
        "curl and nginx": NGINX,
        "rsync": RSYNC,
        "ssh": SCP,
        "rclone": Rclone(),
        "copyparty": Copyparty(),
        "croc": Croc(),
    }
    for name, peer in peers.items():
        try:
            told[name] = peer.version()
        except Missing as missing:
            told[name] = f"missing: {missing}"
    return told
