"""The words that every part shares."""

from __future__ import annotations

import pytest

from tdx.model import shown


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\udc80b", "a\rb"])
def test_a_name_cannot_drive_the_terminal(name: str) -> None:
    assert shown(name).isprintable()
    assert shown(name).startswith("a")


def test_a_plain_name_stays_as_it_is() -> None:
    assert shown("año 100% 🎉.txt") == "año 100% 🎉.txt"
