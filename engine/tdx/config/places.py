"""Where things are: addresses as they are written, the state directory, the configuration file."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tdx.errors import ConfigError

Address = tuple[str, int]
"""A host as it was written, without brackets, and a port."""

DEFAULT_PORT: Final = 8390


def parse_address(text: str) -> Address:
    """``HOST:PORT`` or ``[IPV6]:PORT`` → (host, port). ConfigError for anything else.

    Port 0 (any free one) is allowed, an empty host is not: it would mean every
    address of the machine without anybody having said so.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ConfigError(f"not an address: {text!r} (write HOST:PORT, for example 127.0.0.1:{DEFAULT_PORT})")
    if bracketed:
        try:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):
            raise ConfigError(f"not an IPv6 address: {text!r}") from None
    elif ":" in host:
        raise ConfigError(
            f"not an address: {text!r} (write an IPv6 address in brackets: [::1]:{DEFAULT_PORT})"
        )
    elif not host.isprintable() or any(mark in host for mark in " /@[]"):
        raise ConfigError(f"not a host: {host!r} in {text!r}")
    return host, int(port)


def format_address(address: Address) -> str:
    """The inverse of :func:`parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def state_directory(env: Mapping[str, str]) -> Path:
    """Where state is kept: TDX_STATE_DIR, else the first of systemd's STATE_DIRECTORY,
    else the user's own (XDG). Absolute; it need not exist yet. ConfigError where one is
    relative, or the user has no home."""
    ours = env.get("TDX_STATE_DIR", "")
    systemds, _, _ = env.get("STATE_DIRECTORY", "").partition(":")  # it separates several with colons
    for variable, value in (("TDX_STATE_DIR", ours), ("STATE_DIRECTORY", systemds)):
        if value and not Path(value).is_absolute():
            raise ConfigError(f"{variable} is not an absolute path: {value!r}")
        if value:
            return Path(value)
    import platformdirs  # only where nobody has said where

    try:
        folder = platformdirs.user_state_path("tdx", appauthor=False)
    except RuntimeError:
        folder = None
    if folder is None or not folder.is_absolute():
        raise ConfigError("no home to keep state in: name a folder with --state, or with TDX_STATE_DIR")
    return folder


def local_socket(state: Path) -> Path:
    """The Unix socket of a receiver's local API, unless another one is named."""
    return state / "receiver.sock"


def default_config_file(env: Mapping[str, str]) -> Path | None:
    """The configuration of a command that was given none: the file that TDX_CONFIG names,
    which must be there, else ``config.toml`` in the user's own (XDG) folder, if it is."""
    named = env.get("TDX_CONFIG", "")
    if named:
        return Path(named)
    import platformdirs  # only where nobody has said where

    try:
        file = platformdirs.user_config_path("tdx", appauthor=False) / "config.toml"
    except RuntimeError:  # no home
        return None
    return file if file.is_absolute() and file.is_file() else None
