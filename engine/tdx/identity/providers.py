"""The providers that a process uses, as its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdx.identity.local import LocalProvider
from tdx.identity.registry import Identities
from tdx.identity.settings import IdentitySettings

if TYPE_CHECKING:
    from tdx.identity.port import Mesh, Provider


def identities_of(settings: IdentitySettings, uid: int) -> Identities:
    """Everybody who can vouch here. tailscaled is asked first, since with userspace networking it
    hands connections of remote nodes on over loopback; for its other addresses, and for
    WireGuard's, the order does not matter."""
    providers: list[Provider] = []
    meshes: list[Mesh] = []
    if settings.tailscale.enabled:
        from tdx.identity.tailscale import TailscaleProvider

        tailscale = TailscaleProvider(settings.tailscale)
        providers.append(tailscale)
        meshes.append(tailscale)
    providers.append(LocalProvider(uid))
    if settings.wireguard:
        from tdx.identity.wireguard import WireguardProvider

        for interface in settings.wireguard:
            wireguard = WireguardProvider(interface)
            providers.append(wireguard)
            meshes.append(wireguard)
    return Identities(providers, meshes)
