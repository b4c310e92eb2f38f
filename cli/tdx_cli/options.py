"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound="Callable[..., Any] | click.Command")

JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
ONE_JSON: Final = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def config_option(text: str = "A TOML file that says how peers are known.") -> Callable[[F], F]:
    """``--config FILE``; ``text`` says what is in it."""
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option("--config", type=kind, metavar="FILE", help=text)


def state_option(text: str) -> Callable[[F], F]:
    """``--state DIR``; ``text`` says what the command keeps or looks up there."""
    kind = click.Path(path_type=Path, file_okay=False)
    return click.option("--state", type=kind, metavar="DIR", help=text)
