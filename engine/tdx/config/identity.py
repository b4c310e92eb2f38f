"""What a file says of the networks that know who is calling: for both ends."""

from __future__ import annotations

import binascii
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tdx.config.places import default_config_file, local_socket, state_directory
from tdx.config.tables import Table, read
from tdx.identity.settings import IdentitySettings, TailscaleSettings, WireguardPeer, WireguardSettings
from tdx.policy.bandwidth import RateSchedule

_KEY_BYTES: Final = 32
_MAX_INTERFACE: Final = 15
"""Most bytes of an interface's name (IFNAMSIZ less its final zero)."""


def load_identity(path: Path | None, env: Mapping[str, str]) -> IdentitySettings:
    """The settings that a command which does not receive needs: from ``path``, else from the
    :func:`default_config_file`, else the defaults. Of what only a receiver needs no more than the
    top-level names are checked. ConfigError."""
    path = path or default_config_file(env)
    return IdentitySettings() if path is None else identity_of(read(path))


def load_state(path: Path | None, env: Mapping[str, str]) -> Path:
    """Where state is kept: as the file says that :func:`load_identity` would read, so that a
    receiver's key and trusted devices are the same for every command; else the
    :func:`state_directory`. ConfigError."""
    path = path or default_config_file(env)
    table = None if path is None else read(path)
    return state_directory(env) if table is None or "state" not in table else table.location("state")


def load_socket(path: Path | None, env: Mapping[str, str]) -> Path:
    """Where a receiver's local API is, as the file says that :func:`load_identity` would read, or as the
    :func:`local_socket` of the state that it names. ConfigError."""
    path = path or default_config_file(env)
    table = None if path is None else read(path)
    if table is not None and "socket" in table:
        return table.location("socket")
    return local_socket(load_state(path, env))


def load_limit_rate(path: Path | None, env: Mapping[str, str]) -> RateSchedule | None:
    """How fast to send, as the file says that :func:`load_identity` would read; None where it does not.
    ConfigError."""
    path = path or default_config_file(env)
    table = None if path is None else read(path)
    return None if table is None or "limit_rate" not in table else table.rate("limit_rate")


def identity_of(table: Table) -> IdentitySettings:
    """The settings in the top-level ``table`` of a file."""
    return IdentitySettings(
        tailscale=_tailscale(table.table("tailscale")) if "tailscale" in table else TailscaleSettings(),
        wireguard=_wireguard(table) if "wireguard" in table else (),
        discover=table.flag("discover") if "discover" in table else False,
    )


def _tailscale(table: Table) -> TailscaleSettings:
    table.only(("enabled", "socket"))
    return TailscaleSettings(
        enabled=table.flag("enabled") if "enabled" in table else True,
        socket=table.location("socket") if "socket" in table else None,
    )


def _wireguard(table: Table) -> tuple[WireguardSettings, ...]:
    found: list[WireguardSettings] = []
    names: set[str] = set()
    for each in table.tables("wireguard", "interface"):
        each.only(("interface", "peer"))
        each.require("interface")
        interface = each.label("interface")
        if len(interface.encode()) > _MAX_INTERFACE or any(mark in interface for mark in "/ "):
            raise each.wrong("interface", f"is not the name of a network interface: {interface!r}")
        if interface in (other.interface for other in found):
            raise each.wrong("interface", "is there twice; put all its peers under one [[wireguard]]")
        peers = _peers(each, names) if "peer" in each else ()
        found.append(WireguardSettings(interface, peers))
    return tuple(found)


def _peers(table: Table, names: set[str]) -> tuple[WireguardPeer, ...]:
    """The peers of one interface. ``names`` are those of all interfaces so far: a name is one
    machine, whichever way leads there."""
    peers: list[WireguardPeer] = []
    owned: set[str] = set()
    for each in table.tables("peer"):
        each.only(("name", "key", "allowed_ips", "subnet"))
        each.require("name", "key")
        name = each.label("name")
        if any(mark in name for mark in " /:[]"):
            raise each.wrong("name", "may not contain blanks, slashes, colons or brackets")
        if name.lower() in names:
            raise each.wrong("name", "is there twice")
        names.add(name.lower())
        key = _public_key(each)
        if key in (other.key for other in peers):
            raise each.wrong("key", "is another peer's of this interface already")
        networks = _networks(each) if "allowed_ips" in each else ()
        for network in networks:
            if network in owned:
                raise each.wrong("allowed_ips", f"lists {network}, which is another peer's already")
            owned.add(network)
        peers.append(WireguardPeer(name, key, networks, each.flag("subnet") if "subnet" in each else False))
    return tuple(peers)


def _public_key(table: Table) -> str:
    text = table.text("key")
    try:
        key = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    # Only one of the texts that decode to a key is the one that wg prints.
    if len(key) != _KEY_BYTES or binascii.b2a_base64(key, newline=False).decode() != text:
        raise table.wrong(
            "key", f"is not a WireGuard public key (32 bytes in base64, as wg prints it): {text!r}"
        )
    return text


def _networks(table: Table) -> tuple[str, ...]:
    found: list[str] = []
    for text in table.texts("allowed_ips"):
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise table.wrong("allowed_ips", f"must list addresses like 10.9.0.2/32: {error}") from None
    return tuple(dict.fromkeys(found))
