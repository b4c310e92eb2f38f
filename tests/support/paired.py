"""Devices that trust each other, as after a pairing."""

from __future__ import annotations

from pathlib import Path

from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted


def trust(state: Path, name: str, other: Path, *addresses: str) -> Trusted:
    """Let the device of ``state`` trust that of ``other`` under ``name``."""
    device = TlsIdentities(other).device
    trusted = Trusted(name, device.key, device.certificate, addresses, added=0.0)
    TlsIdentities(state).trust.add(trusted, replace=True)
    return trusted


def introduce(receiver: Path, sender: Path, address: str) -> None:
    """Let a receiver and a sender trust each other as ``nas`` (at ``address``) and ``laptop``."""
    trust(sender, "nas", receiver, address)
    trust(receiver, "laptop", sender)
