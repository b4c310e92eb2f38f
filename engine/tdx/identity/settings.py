"""What the providers have to be told: the part of the configuration that both ends share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TailscaleSettings:
    """``socket`` None: where tailscaled puts its LocalAPI on this platform."""

    enabled: bool = True
    socket: Path | None = None


@dataclass(frozen=True, slots=True)
class WireguardPeer:
    """A peer that has a name here. ``key`` is its public key (base64, as ``wg`` prints it).

    ``allowed_ips`` are its addresses in CIDR notation; empty: ``wg`` is asked, which needs
    CAP_NET_ADMIN. Of networks larger than one address only those of a peer with ``subnet``
    count: every machine behind it is then taken for it.
    """

    name: str
    key: str
    allowed_ips: tuple[str, ...] = ()
    subnet: bool = False


@dataclass(frozen=True, slots=True)
class WireguardSettings:
    """One interface and who is who on it."""

    interface: str
    peers: tuple[WireguardPeer, ...] = ()


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """``discover``: look for paired devices on the local network (zeroconf)."""

    tailscale: TailscaleSettings = TailscaleSettings()
    wireguard: tuple[WireguardSettings, ...] = ()
    discover: bool = False
