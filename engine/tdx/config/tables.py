"""Reading a TOML file table by table, with errors that say where."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, cast

from tdx.config.places import Address, parse_address
from tdx.errors import ConfigError, UsageError
from tdx.model import shown
from tdx.policy.bandwidth import RateSchedule, parse_schedule
from tdx.policy.durations import parse_duration
from tdx.policy.pacing import parse_size

KEYS: Final = (
    "dir",
    "listen",
    "metrics",
    "state",
    "socket",
    "names",
    "allowed_origins",
    "reserve",
    "log_level",
    "log_format",
    "announce",
    "discover",
    "on_receive",
    "on_receive_timeout",
    "on_receive_at_once",
    "limit_rate",
    "limits",
    "tailscale",
    "wireguard",
    "rule",
)
"""What stands at the top of a file, whoever reads it."""

MOST_SECONDS: Final = 1e10
"""About three centuries, which no clock here is asked for."""


class Table:
    """One table of a file. What its methods do not find as it should be is a ConfigError that
    names the file, the table (``section``, with what separates it from a key) and the key."""

    def __init__(self, path: Path, values: Mapping[str, object], section: str = "") -> None:
        self.path = path
        self.values = values
        self.section = section

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def wrong(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.section}{key} {problem}")

    def only(self, known: Collection[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.wrong(shown(key), f"is not a known key (known are {', '.join(known)})")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value:
            raise self.wrong(key, f"must be a non-empty string, not {value!r}")
        return value

    def label(self, key: str) -> str:
        """A string that a person gave something as its name: one line, printable."""
        text = self.text(key)
        if not text.isprintable() or text != text.strip():
            raise self.wrong(key, f"must be one line without blanks around it, not {text!r}")
        return text

    def choice(self, key: str, choices: Collection[str]) -> str:
        text = self.text(key)
        if text not in choices:
            raise self.wrong(key, f"must be one of {', '.join(choices)}, not {text!r}")
        return text

    def texts(self, key: str) -> list[str]:
        value = self.values[key]
        if not isinstance(value, list):
            raise self.wrong(key, f"must be a list of strings, not {value!r}")
        items: list[Any] = [*value]
        texts = [item for item in items if isinstance(item, str) and item]
        if len(texts) != len(items):
            raise self.wrong(key, f"must be a list of non-empty strings, not {value!r}")
        return texts

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, not {value!r}")
        return value

    def address(self, key: str, text: str) -> Address:
        try:
            return parse_address(text)
        except ConfigError as error:
            raise self.wrong(key, f"is {error.message}") from None

    def location(self, key: str) -> Path:
        """A path, relative to the file's folder or to a home."""
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

    def size(self, key: str) -> int:
        """Bytes above 0, as a number or as people write a size."""
        value = self.values[key]
        if isinstance(value, str):
            try:
                value = parse_size(value)
            except UsageError as error:
                raise self.wrong(key, f"is wrong: {error.message}") from None
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(
                key, f'must be a size above 0 like "50G", or a number of bytes, not {self.values[key]!r}'
            )
        return value

    def whole_number(self, key: str, least: int, most: int) -> int:
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, f"must be a whole number from {least} to {most}, not {value!r}")
        return value

    def duration(self, key: str) -> float:
        """A time above 0, as people write a duration, or as a number of seconds."""
        value = self.values[key]
        if isinstance(value, str):
            try:
                value = parse_duration(value)
            except UsageError as error:
                raise self.wrong(key, f"is wrong: {error.message}") from None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MOST_SECONDS:
            raise self.wrong(
                key, f'must be a time above 0 like "15m", or a number of seconds, not {self.values[key]!r}'
            )
        return float(value)

    def rate(self, key: str) -> RateSchedule:
        """Rates, all day or by the time of the day, as one string or a list; or bytes per second."""
        value = self.values[key]
        number = isinstance(value, int) and not isinstance(value, bool)
        try:
            if number:
                return parse_schedule(str(value))
            return parse_schedule(self.texts(key) if isinstance(value, list) else self.text(key))
        except UsageError as error:
            raise self.wrong(key, f"is wrong: {error.message}") from None

    def table(self, key: str) -> Table:
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.wrong(key, f"must be a table, not {value!r}")
        return Table(self.path, cast("dict[str, object]", value), f"{self.section}{key}.")

    def tables(self, key: str, name: str = "name") -> list[Table]:
        """The tables of ``[[key]]``; an error calls each by what it says under ``name``, or
        counts from 1."""
        value = self.values[key]
        items = cast("list[object]", value) if isinstance(value, list) else [None]
        found: list[Table] = []
        for number, each in enumerate(items, 1):
            if not isinstance(each, dict):
                raise self.wrong(key, "must be a list of tables, each under a heading in double brackets")
            values = cast("dict[str, object]", each)
            called = values.get(name)
            named = isinstance(called, str) and called.isprintable() and called != ""
            which = f'"{called}"' if named else str(number)
            found.append(Table(self.path, values, f"{self.section}{key} {which}: "))
        return found

    def require(self, *keys: str) -> None:
        for key in keys:
            if key not in self.values:
                raise self.wrong(key, "is missing")


def read(path: Path, known: Collection[str] = KEYS, what: str = "configuration") -> Table:
    """The TOML file at ``path``, its keys among those ``known``; ConfigError where it cannot be used, which
    calls it by ``what`` it should be."""
    import tomllib  # only where there is a file

    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    table = Table(path, values)
    table.only(known)
    return table
