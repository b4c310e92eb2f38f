"""docs/cli.md is held to the commands: no flag and no code is missing from it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tdx.errors import leaves
from tdx.policy.exits import PRECEDENCE
from tdx_cli.app import COMMANDS, tdx

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented(name: str) -> None:
    command = tdx.get_command(click.Context(tdx), name)
    assert command is not None
    flags = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
    assert [flag for flag in flags if flag not in TEXT] == []


def test_every_exit_code_is_documented() -> None:
    codes = {error.exit_code for error in leaves()} | {0, 70}
    assert [code for code in sorted(codes) if f"\n| {code} | " not in TEXT] == []


def test_the_precedence_is_the_documented_one() -> None:
    assert f": {', '.join(map(str, PRECEDENCE))}." in TEXT
