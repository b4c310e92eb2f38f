"""The receiver's configuration: a TOML file, flags over it, frozen and checked.

A file looks like this; every key is optional, ``dir`` may come from a flag::

    dir = "~/inbox"
    listen = ["127.0.0.1:8390", "[::1]:8390"]
    metrics = "127.0.0.1:9390"
    state = "/var/lib/tdx"
    names = ["files.example"]
    allowed_origins = ["https://files.example"]
    reserve = 1_000_000_000
    log_level = "info"

    [limits]
    max_connections = 512

Relative paths are relative to the file's own folder. Everything wrong is a
:class:`tdx.errors.ConfigError` that names the key and the file.
"""

from __future__ import annotations

import dataclasses
import math
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict, cast, get_args, get_type_hints

from tdx.errors import ConfigError
from tdx.model import RESERVE
from tdx.policy.admission import Limits

Address = tuple[str, int]
"""A host as it was written, without brackets, and a port."""

DEFAULT_PORT: Final = 8390
DEFAULT_LISTEN: Final[tuple[Address, ...]] = (("127.0.0.1", DEFAULT_PORT),)
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """All that ``tdx serve`` needs to know.

    ``names`` are further values of ``Host`` that are this receiver (lower case, no
    port); ``allowed_origins`` the web pages that may call it (lower case,
    ``scheme://host[:port]``). ``reserve`` is how many bytes of the filesystem stay free.
    """

    folder: Path
    state: Path
    listen: tuple[Address, ...] = DEFAULT_LISTEN
    metrics: Address | None = None
    names: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()
    reserve: int = RESERVE
    limits: Limits = Limits()  # noqa: RUF009  frozen
    log_level: str = "info"


class Partial(TypedDict, total=False):
    """Some of a :class:`ServeConfig`: what a file says, or what the flags say.

    A flag that was not given is absent, None or empty. ``limits`` holds only the
    fields that differ from the defaults.
    """

    folder: Path | None
    state: Path | None
    listen: tuple[Address, ...]
    metrics: Address | None
    names: frozenset[str]
    allowed_origins: frozenset[str]
    reserve: int | None
    limits: dict[str, float | None]
    log_level: str | None


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


class _Table:
    """One table of a file, read key by key with errors that say where."""

    def __init__(self, path: Path, values: Mapping[str, object], section: str = "") -> None:
        self.path = path
        self.values = values
        self.section = section

    def wrong(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.section}{key} {problem}")

    def only(self, known: tuple[str, ...]) -> None:
        for key in self.values:
            if key not in known:
                raise self.wrong(key, f"is not a known key (known are {', '.join(known)})")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value:
            raise self.wrong(key, f"must be a non-empty string, not {value!r}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.values[key]
        if not isinstance(value, list):
            raise self.wrong(key, f"must be a list of strings, not {value!r}")
        items: list[Any] = [*value]
        texts = [item for item in items if isinstance(item, str) and item]
        if len(texts) != len(items):
            raise self.wrong(key, f"must be a list of non-empty strings, not {value!r}")
        return texts

    def address(self, key: str, text: str) -> Address:
        try:
            return parse_address(text)
        except ConfigError as error:
            raise self.wrong(key, f"is {error.message}") from None

    def folder(self, key: str) -> Path:
        text = self.text(key)
        try:
            return self.path.absolute().parent / Path(text).expanduser()
        except RuntimeError:
            raise self.wrong(key, f"names the home of an unknown user: {text!r}") from None

    def bytes_count(self, key: str) -> int:
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(key, f"must be a number of bytes, not {value!r}")
        return value

    def limits(self, key: str) -> dict[str, float | None]:
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.wrong(key, f"must be a table, not {value!r}")
        table = _Table(self.path, cast("dict[str, object]", value), f"{key}.")
        table.only(tuple(_LIMIT_TYPES))
        return {name: table.limit(name) for name in table.values}

    def limit(self, key: str) -> float:
        value = self.values[key]
        fractional = float in _LIMIT_TYPES[key]
        number = isinstance(value, (int, float) if fractional else int) and not isinstance(value, bool)
        if not number or not 0 < cast("float", value) < math.inf:
            what = "number" if fractional else "whole number"
            raise self.wrong(key, f"must be a {what} above 0, not {value!r}")
        return float(cast("float", value)) if fractional else cast("int", value)


def _limit_types() -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(Limits)
    return {
        field.name: get_args(hints[field.name]) or (hints[field.name],)
        for field in dataclasses.fields(Limits)
    }


_LIMIT_TYPES: Final = _limit_types()
_KEYS: Final = (
    "dir",
    "listen",
    "metrics",
    "state",
    "names",
    "allowed_origins",
    "reserve",
    "log_level",
    "limits",
)


def _origin(table: _Table, origin: str) -> str:
    scheme, separator, rest = origin.lower().partition("://")
    if not separator or not scheme.isalpha() or not rest or any(mark in rest for mark in "/?#@* "):
        raise table.wrong("allowed_origins", f"must list origins like https://files.example, not {origin!r}")
    return f"{scheme}://{rest}"


def load(path: Path) -> Partial:
    """What the TOML file at ``path`` says, checked; ConfigError where it cannot be used."""
    import tomllib  # only where there is a file

    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    table = _Table(path, values)
    table.only(_KEYS)
    found: Partial = {}
    if "dir" in values:
        found["folder"] = table.folder("dir")
    if "state" in values:
        found["state"] = table.folder("state")
    if "listen" in values:
        found["listen"] = tuple(table.address("listen", text) for text in table.texts("listen"))
        if not found["listen"]:
            raise table.wrong("listen", "must name at least one address")
    if "metrics" in values:
        found["metrics"] = table.address("metrics", table.text("metrics"))
    if "names" in values:
        found["names"] = frozenset(name.lower() for name in table.texts("names"))
    if "allowed_origins" in values:
        found["allowed_origins"] = frozenset(_origin(table, text) for text in table.texts("allowed_origins"))
    if "reserve" in values:
        found["reserve"] = table.bytes_count("reserve")
    if "log_level" in values:
        level = table.text("log_level")
        if level not in LOG_LEVELS:
            raise table.wrong("log_level", f"must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
        found["log_level"] = level
    if "limits" in values:
        found["limits"] = table.limits("limits")
    return found


def merge(file: Partial, flags: Partial, env: Mapping[str, str] | None = None) -> ServeConfig:
    """Flags over the file over the defaults. Limits are merged field by field.

    ConfigError where no folder is named. ``env`` (the process's own unless given) says where
    state is kept when neither does.
    """
    limits = {**file.get("limits", {}), **flags.get("limits", {})}
    given: dict[str, Any] = {}
    for source in (file, flags):
        given.update({key: value for key, value in source.items() if value not in (None, (), frozenset())})
    given["limits"] = dataclasses.replace(Limits(), **cast("dict[str, Any]", limits))
    if "folder" not in given:
        raise ConfigError('no folder to receive into: give --dir DIR, or dir = "DIR" in the configuration')
    if "state" not in given:
        given["state"] = state_directory(os.environ if env is None else env)
    return ServeConfig(**given)
