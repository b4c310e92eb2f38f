"""All that ``tdx serve`` needs to know, from a file and from flags."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict, cast, get_args, get_type_hints

from tdx.config.identity import identity_of
from tdx.config.places import Address, state_directory
from tdx.config.rules import rules_of
from tdx.config.tables import Table, read
from tdx.errors import ConfigError
from tdx.identity.settings import IdentitySettings
from tdx.model import RESERVE
from tdx.policy.admission import Limits
from tdx.policy.bandwidth import UNLIMITED, RateSchedule
from tdx.policy.rules import Rule

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")
MOST_AT_ONCE: Final = 64
"""Programs for received files; each has a thread."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """All that ``tdx serve`` needs to know.

    ``listen`` empty: loopback and the mesh addresses that are up, at the default port.
    ``names`` are further values of ``Host`` that are this receiver (lower case, no
    port); ``allowed_origins`` the web pages that may call it (lower case,
    ``scheme://host[:port]``). ``reserve`` is how many bytes of the filesystem stay free.
    ``rules`` say who may push besides the receiver's own user, in the order in which they are
    looked at. ``socket`` is that of the local API; None: in ``state``. ``limit_rate`` is over everything
    that is received. ``announce``: paired devices on the local network are told of this receiver.
    ``on_receive`` is a program with its arguments, to be run for each file that was published, at most
    ``on_receive_at_once`` at a time and for ``on_receive_timeout`` seconds each.
    """

    folder: Path
    state: Path
    listen: tuple[Address, ...] = ()
    metrics: Address | None = None
    socket: Path | None = None
    names: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()
    reserve: int = RESERVE
    limits: Limits = Limits()  # noqa: RUF009  frozen
    log_level: str = "info"
    log_format: str = "text"
    identity: IdentitySettings = IdentitySettings()  # noqa: RUF009  frozen
    rules: tuple[Rule, ...] = ()
    announce: bool = False
    on_receive: tuple[str, ...] = ()
    on_receive_timeout: float = 60.0
    on_receive_at_once: int = 4
    limit_rate: RateSchedule = UNLIMITED


class Partial(TypedDict, total=False):
    """Some of a :class:`ServeConfig`: what a file says, or what the flags say.

    A flag that was not given is absent, None or empty. ``limits`` holds only the
    fields that differ from the defaults.
    """

    folder: Path | None
    state: Path | None
    listen: tuple[Address, ...]
    metrics: Address | None
    socket: Path | None
    names: frozenset[str]
    allowed_origins: frozenset[str]
    reserve: int | None
    limits: dict[str, float | None]
    log_level: str | None
    log_format: str | None
    identity: IdentitySettings
    rules: tuple[Rule, ...]
    announce: bool | None
    on_receive: tuple[str, ...]
    on_receive_timeout: float | None
    on_receive_at_once: int | None
    limit_rate: RateSchedule | None


def _limit_types() -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(Limits)
    return {
        field.name: get_args(hints[field.name]) or (hints[field.name],)
        for field in dataclasses.fields(Limits)
    }


_LIMIT_TYPES: Final = _limit_types()


def _origin(table: Table, origin: str) -> str:
    scheme, separator, rest = origin.lower().partition("://")
    if not separator or not scheme.isalpha() or not rest or any(mark in rest for mark in "/?#@* "):
        raise table.wrong("allowed_origins", f"must list origins like https://files.example, not {origin!r}")
    return f"{scheme}://{rest}"


def _limits(table: Table) -> dict[str, float | None]:
    table.only(tuple(_LIMIT_TYPES))
    return {name: _limit(table, name) for name in table.values}


def _limit(table: Table, key: str) -> float:
    value = table.values[key]
    fractional = float in _LIMIT_TYPES[key]
    number = isinstance(value, (int, float) if fractional else int) and not isinstance(value, bool)
    if not number or not 0 < cast("float", value) < math.inf:
        what = "number" if fractional else "whole number"
        raise table.wrong(key, f"must be a {what} above 0, not {value!r}")
    return float(cast("float", value)) if fractional else cast("int", value)


def _log(table: Table) -> Partial:
    found: Partial = {}
    if "log_level" in table:
        found["log_level"] = table.choice("log_level", LOG_LEVELS)
    if "log_format" in table:
        found["log_format"] = table.choice("log_format", LOG_FORMATS)
    return found


def _program(table: Table) -> Partial:
    """What is to be run for each file. A program with a slash is relative to the file's folder."""
    found: Partial = {}
    if "on_receive" in table:
        command = table.texts("on_receive")
        if not command:
            raise table.wrong("on_receive", "must name a program; leave it out for none")
        if "/" in command[0]:
            command[0] = str(table.path.absolute().parent / Path(command[0]).expanduser())
        found["on_receive"] = tuple(command)
    if "on_receive_timeout" in table:
        found["on_receive_timeout"] = table.duration("on_receive_timeout")
    if "on_receive_at_once" in table:
        found["on_receive_at_once"] = table.whole_number("on_receive_at_once", 1, MOST_AT_ONCE)
    return found


def load(path: Path) -> Partial:
    """What the TOML file at ``path`` says, checked; ConfigError where it cannot be used."""
    table = read(path)
    found: Partial = {}
    if "dir" in table:
        found["folder"] = table.location("dir")
    if "state" in table:
        found["state"] = table.location("state")
    if "listen" in table:
        found["listen"] = tuple(table.address("listen", text) for text in table.texts("listen"))
        if not found["listen"]:
            raise table.wrong("listen", "must name at least one address; leave it out for the usual ones")
    if "metrics" in table:
        found["metrics"] = table.address("metrics", table.text("metrics"))
    if "socket" in table:
        found["socket"] = table.location("socket")
    if "names" in table:
        found["names"] = frozenset(name.lower() for name in table.texts("names"))
    if "allowed_origins" in table:
        found["allowed_origins"] = frozenset(_origin(table, text) for text in table.texts("allowed_origins"))
    if "reserve" in table:
        found["reserve"] = table.bytes_count("reserve")
    if "limits" in table:
        found["limits"] = _limits(table.table("limits"))
    if "limit_rate" in table:
        found["limit_rate"] = table.rate("limit_rate")
    if "announce" in table:
        found["announce"] = table.flag("announce")
    if any(key in table for key in ("tailscale", "wireguard", "discover")):
        found["identity"] = identity_of(table)
    if "rule" in table:
        found["rules"] = rules_of(table)
    found.update(_log(table))
    found.update(_program(table))
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
