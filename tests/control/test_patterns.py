from __future__ import annotations

from pathlib import Path

import pytest

from tdx.control.patterns import Patterns, excluding, including, lines_of
from tdx.errors import UsageError


@pytest.mark.parametrize(
    ("lines", "path", "folder", "left_out"),
    [
        (["*.o"], "a.o", False, True),
        (["*.o"], "deep/a.o", False, True),
        (["/*.o"], "deep/a.o", False, False),
        (["build/"], "build", False, False),
        (["build/"], "build", True, True),
        (["build/"], "deep/build", True, True),
        (["a/**/z"], "a/b/c/z", False, True),
        (["*.o", "!keep.o"], "keep.o", False, False),
        (["!keep.o", "*.o"], "keep.o", False, True),
        (["# a comment", ""], "# a comment", False, False),
        ([], "anything", True, False),
        # Each entry counts for itself, once the folder that it lies in is not left out.
        (["*", "!*/"], "d", True, False),
        (["*", "!*/"], "d/e", True, False),
        (["*", "!*/"], "d/b", False, True),
        (["*", "!*/", "!c"], "d/e/c", False, False),
        (["d/", "!/d/"], "d", True, False),
        (["d/", "!/d/"], "d/b", False, False),
        (["d/", "!/d/"], "d/d", True, True),
        (["d", "!/d"], "d/d", False, True),
        (["d/**"], "d", True, False),
        (["d/**"], "d/b", False, True),
        (["d/**", "!d/b"], "d/b", False, False),
        (["d/*", "!d/e"], "d/e", True, False),
        (["d/*", "!d/e"], "d/e/c", False, False),
        (["**/e/**"], "d/e", True, False),
        (["**/e/**"], "d/e/c", False, True),
    ],
)
def test_patterns_mean_what_they_mean_to_gitignore(
    lines: list[str], path: str, folder: bool, left_out: bool
) -> None:
    assert Patterns(lines).leave_out(path, folder=folder) == left_out


def test_a_hash_on_the_command_line_begins_no_comment() -> None:
    assert Patterns([excluding("#*#")]).leave_out("#autosave#", folder=False)
    assert not Patterns([excluding("#*#"), including("#*#")]).leave_out("#autosave#", folder=False)


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match="--exclude"):
        Patterns(["!"])


def test_a_file_of_patterns_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_bytes(b"*.o\n\xff.bin\n!keep.o")
    assert lines_of(str(tmp_path / "patterns")) == ["*.o", "\udcff.bin", "!keep.o"]
    with pytest.raises(UsageError, match="no-such: the patterns in it cannot be read: No such file"):
        lines_of(str(tmp_path / "no-such"))
    with pytest.raises(UsageError, match="cannot be read"):
        lines_of("nul\0")
