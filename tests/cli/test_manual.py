"""Manual pages are made from the commands' own help."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from support.processes import ROOT
from support.spaces import needs
from tdx.errors import leaves
from tdx_cli.app import tdx
from tdx_cli.manual import EXIT_CODES, VARIABLES, below, escaped, main, page


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its path, with those below groups."""

    def found(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
        yield context.command_path, command
        for each, child in below(command, context):
            yield from found(each, child)

    yield from found(tdx, click.Context(tdx, info_name="tdx"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("man")
    (place / "tdx-gone.1").touch()
    main(str(place))
    return place


def shown(file: Path) -> str:
    """As a person reads it, in one line; whatever is wrong with it is an error."""
    needs("man")
    env = {
        **os.environ,
        "MANWIDTH": "2000",
        "LC_ALL": "C.UTF-8",
        "MANROFFOPT": "-ww",
    }
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-P", "cat", str(file)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout).split())


def test_every_command_has_a_page_and_nothing_else_has(folder: Path) -> None:
    wanted = {f"{path.replace(' ', '-')}.1" for path, _ in commands()}
    assert {file.name for file in folder.iterdir()} == wanted


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_a_page_says_what_the_command_says_without_a_warning(
    path: str, command: click.Command, folder: Path
) -> None:
    text = shown(folder / f"{path.replace(' ', '-')}.1")
    assert f"{path.replace(' ', '-')} - {command.get_short_help_str(200).rstrip('.')}" in text
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [flag for option in options for flag in option.opts if flag not in text] == []
    helps = [" ".join((option.help or "").replace("`", "").split()) for option in options]
    assert [each for each in helps if each not in text] == []
    for heading in ("EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"):
        assert heading in text


def test_the_exit_codes_are_the_real_ones() -> None:
    assert set(EXIT_CODES) == {error.exit_code for error in leaves()} | {0, 70}


def test_the_environment_is_the_documented_one() -> None:
    documented = (ROOT / "docs" / "cli.md").read_text().partition("\n## Environment\n")[2]
    assert {name for names in VARIABLES for name in names.split(", ")} == set(
        re.findall(r"`([A-Z_]{3,})`", documented)
    )


def test_what_roff_would_take_for_a_command_is_text() -> None:
    @click.command("odd")
    def odd() -> None:
        """.so /etc/passwd

        A 'quote', a \\backslash, a ~tilde, a ^caret, `--bold`, an arrow \N{RIGHTWARDS ARROW}.

        \b
        .lines
          as they are
        """

    text = page(odd, click.Context(odd, info_name="odd"))
    assert r"\&.so /etc/passwd" in text
    assert (
        r"A \(aqquote\(aq, a \ebackslash, a \(titilde, a \(hacaret, \fB\-\-bold\fR, an arrow \[u2192]."
        in text
    )
    assert ".EX\n\\&.lines\n  as they are\n.EE" in text
    assert escaped("") == ""
