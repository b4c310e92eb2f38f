"""The providers that a process uses, as its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdx.identity.local import LocalProvider
from tdx.identity.registry import Identities
from tdx.identity.settings import IdentitySettings

if TYPE_CHECKING:
    from tdx.identity.port import Mesh


def identities_of(settings: IdentitySettings, uid: int) -> Identities:
    """Everybody who can vouch here.

    tailscaled is asked before ``local``, since with userspace networking it hands connections
    of remote nodes on over loopback; and after WireGuard, whose addresses may lie in the range
    that tailnets use.
    """
    meshes: list[Mesh] = []
    if settings.wireguard:
        from tdx.identity.wireguard import WireguardProvider

        meshes += [WireguardProvider(interface) for interface in settings.wireguard]
    if settings.tailscale.enabled:
        from tdx.identity.tailscale import TailscaleProvider

        meshes.append(TailscaleProvider(settings.tailscale))
    return Identities([*meshes, LocalProvider(uid)], meshes)
