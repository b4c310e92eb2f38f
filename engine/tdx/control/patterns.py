"""What of a folder is not pushed: patterns as ``gitignore`` has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

from pathspec import GitIgnoreSpec

from tdx.errors import UsageError
from tdx.model import shown

_FOLDER_MARK: Final = "ps_d"
"""The group of the library's expressions that has matched a folder's slash."""


def excluding(pattern: str) -> str:
    """The line that leaves out what ``pattern`` matches. A ``#`` begins no comment on a command line."""
    return "\\" + pattern if pattern.startswith("#") else pattern


def including(pattern: str) -> str:
    """The line that takes back in what ``pattern`` matches."""
    return "!" + pattern


def lines_of(path: str) -> list[str]:
    """The lines of a file with patterns; UsageError where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{shown(path)}: the patterns in it cannot be read: {reason}") from error


class Patterns:
    """Lines in the syntax of gitignore(5), of which the last one that matches counts."""

    def __init__(self, lines: Sequence[str]) -> None:
        """UsageError for a line that is no pattern."""
        try:
            patterns = GitIgnoreSpec.from_lines(lines).patterns
        except ValueError as error:
            raise UsageError(f"--exclude, --include: {shown(str(error))}") from error
        self._lines: list[tuple[re.Pattern[str], bool]] = []
        for each in reversed(patterns):
            regex = cast("re.Pattern[str] | None", each.regex)  # pyright: ignore[reportUnknownMemberType]
            if regex is not None and each.include is not None:  # as it is of a comment
                self._lines.append((regex, each.include))

    def leave_out(self, path: str, *, folder: bool) -> bool:
        """Whether what lies at ``path``, relative to the pushed folder, is not pushed, and for a folder
        nothing that is in it. What lies in a folder that is left out must not be asked about."""
        text = path + "/" if folder else path
        return next(
            (include for regex, include in self._lines if _matches(regex, text, folder=folder)), False
        )


def _matches(regex: re.Pattern[str], text: str, *, folder: bool) -> bool:
    """Whether it is this itself that matches. The library's own answer is for what lies in folders that
    match, too; but of a folder that a later line has taken back in, each entry counts for itself."""
    match = regex.search(text)
    if match is None:
        return False
    if match.groupdict().get(_FOLDER_MARK) is None:
        # With the slash at its end a match is for what is in the folder only (``folder/**``).
        return not folder or match.end() < len(text)
    if match.end(_FOLDER_MARK) == len(text):
        return True
    # A bare ``*/`` finds the first folder of the path first.
    return folder and regex.search(text, len(text) - 1) is not None
