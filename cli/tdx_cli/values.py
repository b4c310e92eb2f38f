"""Values of options: rates, sizes, durations, each with a line that says how to write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from tdx.errors import ConfigError, UsageError
from tdx.policy.durations import parse_duration, parse_timeout


def _schedule(text: str) -> RateSchedule:
    from tdx.policy.bandwidth import parse_schedule

    return parse_schedule(text)


def _size(text: str) -> int:
    from tdx.policy.pacing import parse_size

    return parse_size(text)


def _address(text: str) -> tuple[str, int]:
    from tdx.config import parse_address

    return parse_address(text)


def _command(text: str) -> tuple[str, ...]:
    """A program and its arguments, split as a shell would; a program with a slash is made absolute."""
    import shlex
    from pathlib import Path

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} cannot be split into words: {error}") from None
    if not words or not words[0]:
        raise UsageError("it must name a program")
    program = str(Path(words[0]).absolute()) if "/" in words[0] else words[0]
    return (program, *words[1:])


if TYPE_CHECKING:
    from tdx.policy.bandwidth import RateSchedule

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # not generic in older releases


class Parsed(_Type):
    """An option's value by a function of its text; what that refuses is an error of usage."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default, which is of the type already
        try:
            return self._parse(value)
        except (UsageError, ConfigError) as error:
            self.fail(error.message, param, ctx)


ADDRESS: Final = Parsed("host:port", _address)
COMMAND: Final = Parsed("command", _command)
DURATION: Final = Parsed("duration", parse_duration)
SCHEDULE: Final = Parsed("rate", _schedule)
SIZE: Final = Parsed("size", _size)
TIMEOUT: Final = Parsed("duration", parse_timeout)
