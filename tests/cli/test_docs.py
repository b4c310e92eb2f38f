"""docs/cli.md is held to the commands: no flag and no code is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tdx.config import load
from tdx.errors import ConfigError, leaves
from tdx.policy.exits import PRECEDENCE
from tdx_cli.app import COMMANDS, tdx

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


SECTIONS = {title: text for title, _, text in (part.partition("\n") for part in TEXT.split("\n## ")[1:])}


def section(name: str) -> str:
    (found,) = [text for title, text in SECTIONS.items() if f"tdx {name}" in title.split(" and ")]
    return found


def all_options(command: click.Command) -> list[click.Option]:
    """Those of its subcommands, too."""
    found = [option for option in command.params if isinstance(option, click.Option)]
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        found += all_options(each)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_documented_with_its_command(name: str) -> None:
    command = tdx.get_command(click.Context(tdx), name)
    assert command is not None
    documented = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section(name)))
    assert {flag for option in all_options(command) for flag in option.opts} <= documented


@pytest.mark.parametrize("heading", ["", "[limits]\n"])
def test_every_key_of_the_configuration_is_documented(heading: str, tmp_path: Path) -> None:
    file = tmp_path / "tdx.toml"
    file.write_text(f"{heading}no_such_key = 1\n")
    with pytest.raises(ConfigError) as refused:
        load(file)
    known = refused.value.message.partition("(known are ")[2].removesuffix(")").split(", ")
    assert len(known) > 5
    documented = set(re.findall(r"^\| `\[*(\w+)]*` ", SECTIONS["Configuration"], re.MULTILINE))
    assert set(known) <= documented


def test_every_exit_code_is_documented() -> None:
    codes = {error.exit_code for error in leaves()} | {0, 70}
    assert [code for code in sorted(codes) if f"\n| {code} | " not in TEXT] == []


def test_the_precedence_is_the_documented_one() -> None:
    assert f": {', '.join(map(str, PRECEDENCE))}." in TEXT
