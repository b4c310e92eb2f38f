from __future__ import annotations

from pathlib import Path

import click
import pytest

from tdx_cli.values import COMMAND


def test_a_command_is_split_as_a_shell_would_and_its_place_does_not_move() -> None:
    assert COMMAND.convert("notify-send 'a b' c", None, None) == ("notify-send", "a b", "c")
    assert COMMAND.convert("./run it", None, None) == (str(Path("run").absolute()), "it")


@pytest.mark.parametrize("text", ["", "  ", "''", "a 'b"])
def test_what_names_no_program_is_an_error_of_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        COMMAND.convert(text, None, None)
