"""The configuration: a TOML file, flags over it, frozen and checked.

A receiver's file looks like this; every key is optional, ``dir`` may come from a flag::

    dir = "~/inbox"
    listen = ["127.0.0.1:8390", "[::1]:8390"]    # left out: loopback and the mesh addresses that are up
    metrics = "127.0.0.1:9390"
    state = "/var/lib/tdx"
    socket = "/run/tdx/receiver.sock"            # of the local API; left out: in the state directory
    names = ["files.example"]
    allowed_origins = ["https://files.example"]
    reserve = 1_000_000_000
    log_level = "info"
    announce = false                             # tell paired devices on the local network
    on_receive = ["/usr/local/bin/arrived"]      # run for each file that was published
    on_receive_timeout = 60
    on_receive_at_once = 4
    limit_rate = ["08:00-18:00 20M", "200M"]     # over everything that is received; senders read it as well

    [limits]
    max_connections = 512

    [[rule]]                                     # who else may push; the first that matches decides
    name = "backup servers"
    tag = "tag:backup"
    into = "backups"
    quota = "50G"

Senders read the same file (:func:`load_identity`, :func:`load_state`) for ``state``, and for what
both ends share::

    discover = false                             # look for paired devices on the local network

    [tailscale]
    enabled = true
    socket = "/run/tailscale/tailscaled.sock"

    [[wireguard]]
    interface = "wg0"
    [[wireguard.peer]]
    name = "laptop"
    key = "..."                                  # its public key, as wg prints it
    allowed_ips = ["10.9.0.2/32"]
    subnet = false

Relative paths are relative to the file's own folder. Everything wrong is a
:class:`tdx.errors.ConfigError` that names the key and the file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tdx.config.identity import load_identity, load_limit_rate, load_socket, load_state
from tdx.config.places import (
    DEFAULT_PORT,
    Address,
    default_config_file,
    format_address,
    local_socket,
    parse_address,
    state_directory,
)

if TYPE_CHECKING:
    from tdx.config.serve import LOG_LEVELS, Partial, ServeConfig, load, merge

__all__ = [
    "DEFAULT_PORT",
    "LOG_LEVELS",
    "Address",
    "Partial",
    "ServeConfig",
    "default_config_file",
    "format_address",
    "load",
    "load_identity",
    "load_limit_rate",
    "load_socket",
    "load_state",
    "local_socket",
    "merge",
    "parse_address",
    "state_directory",
]


def __getattr__(name: str) -> object:
    # What a receiver may be told is much to load, and a push asks for none of it.
    if name in __all__:
        return getattr(import_module("tdx.config.serve"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
