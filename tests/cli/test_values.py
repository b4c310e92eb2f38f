from __future__ import annotations

from pathlib import Path

import click
import pytest

from tdx.errors import UsageError
from tdx_cli.values import COMMAND, parse_duration, parse_timeout


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("15m", 900.0),
        ("7d", 604800.0),
        ("2w", 1209600.0),
        (" 3s ", 3.0),
        ("0", 0.0),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1e3", "1y", "1M", "inf", "nan", "1h30m", "٣s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_a_timeout_of_zero_is_refused() -> None:
    assert parse_timeout("1ms") == pytest.approx(0.001)
    with pytest.raises(UsageError):
        parse_timeout("0s")


def test_a_command_is_split_as_a_shell_would_and_its_place_does_not_move() -> None:
    assert COMMAND.convert("notify-send 'a b' c", None, None) == ("notify-send", "a b", "c")
    assert COMMAND.convert("./run it", None, None) == (str(Path("run").absolute()), "it")


@pytest.mark.parametrize("text", ["", "  ", "''", "a 'b"])
def test_what_names_no_program_is_an_error_of_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        COMMAND.convert(text, None, None)
