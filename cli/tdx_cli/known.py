"""Names of peers that this machine's own files know."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tdx.config import load_identity, load_state
from tdx.errors import TdxError
from tdx.identity.trust import TrustStore


def known_names(config: Path | None, state: Path | None) -> list[str]:
    """The paired devices and the WireGuard peers of the configuration, sorted. Reads files only; what cannot
    be read knows nobody."""
    names: set[str] = set()
    with contextlib.suppress(TdxError, OSError):
        for interface in load_identity(config, os.environ).wireguard:
            names.update(peer.name for peer in interface.peers)
    with contextlib.suppress(TdxError, OSError):
        names.update(each.name for each in TrustStore(state or load_state(config, os.environ)).entries())
    return sorted(names)
