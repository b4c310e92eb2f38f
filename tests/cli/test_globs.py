from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx_cli.globs import literal, matches

AS_ROOT = os.getuid() == 0


def names(top: Path, pattern: str) -> list[str | None]:
    return [match.name for match in matches(f"{top}/{pattern}")]


def make(top: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        where = top / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if not where.exists():
            where.write_text(path)
    return top


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make(tmp_path / "top", ["a.jpg", "b.txt", "d/a.jpg", "d/e/c.jpg", ".hidden/a.jpg", "d/.h.jpg"])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg"]),
        ("*", ["a.jpg", "b.txt", "d"]),
        ("?.txt", ["b.txt"]),
        ("[ab].*", ["a.jpg", "b.txt"]),
        ("[!b].*", ["a.jpg"]),
        ("*/*.jpg", ["d/a.jpg"]),
        ("**/*.jpg", ["a.jpg", "d/a.jpg", "d/e/c.jpg"]),
        ("**", ["a.jpg", "b.txt", "d/a.jpg", "d/e/c.jpg"]),
        ("d/**", ["a.jpg", "e/c.jpg"]),
        ("**/**/*.jpg", ["a.jpg", "d/a.jpg", "d/e/c.jpg"]),
        ("**/e/**/c.jpg", ["d/e/c.jpg"]),
        (".*/*", [".hidden/a.jpg"]),
        ("d/.*", [".h.jpg"]),
        ("*/e/c.jpg", ["d/e/c.jpg"]),
        ("*.png", []),
        ("no/such/*", []),
        ("b.txt/*", []),
        ("*/b.txt/x", []),
    ],
)
def test_a_match_is_named_from_the_first_wildcard_on(pattern: str, found: list[str], tree: Path) -> None:
    assert names(tree, pattern) == found
    base = tree / "d" if pattern.startswith("d/") else tree
    assert [match.path for match in matches(f"{tree}/{pattern}")] == [f"{base}/{name}" for name in found]


def test_what_has_no_wildcard_is_there_or_is_not(tree: Path) -> None:
    assert [(match.path, match.name) for match in matches(f"{tree}/d/a.jpg")] == [(f"{tree}/d/a.jpg", None)]
    assert list(matches(f"{tree}/d/z.jpg")) == []
    (tree / "dangling").symlink_to("nowhere")
    assert len(list(matches(f"{tree}/dangling"))) == 1


def test_wildcards_in_brackets_are_themselves(tmp_path: Path) -> None:
    make(tmp_path, ["a[1]*?.txt", "a1.txt"])
    assert [match.path for match in matches(f"{tmp_path}/a[[]1][*][?].txt")] == [f"{tmp_path}/a[1]*?.txt"]
    assert names(tmp_path, "a[[]*") == ["a[1]*?.txt"]
    assert literal("a[[]b") == "a[b"
    assert literal("a[b]") is None


def test_links_are_matched_and_not_followed_at_any_depth(tree: Path) -> None:
    (tree / "link").symlink_to("d")
    (tree / "d" / "up").symlink_to("..")
    (tree / "d" / "l.jpg").symlink_to("a.jpg")
    assert names(tree, "**/*.jpg") == ["a.jpg", "d/a.jpg", "d/l.jpg", "d/e/c.jpg"]
    assert names(tree, "**") == ["a.jpg", "b.txt", "d/a.jpg", "d/l.jpg", "d/e/c.jpg"]
    assert names(tree, "l*/a.jpg") == ["link/a.jpg"]


def test_the_root_folder_can_be_searched() -> None:
    assert [match.path for match in matches("/et[c]")] == ["/etc"]
    assert [match.path for match in matches("/")] == ["/"]


def test_a_name_that_is_not_unicode_is_matched(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/a\xff.bin", "wb"):
        pass
    assert names(tmp_path, "*.bin") == ["a\udcff.bin"]


def test_a_folder_that_cannot_be_read_is_told_once_and_the_others_are_searched(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path.endswith("/d/e/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    found = list(matches(f"{tree}/**/*.jpg"))
    assert [match.name for match in found] == ["a.jpg", "d/a.jpg", "d/e"]
    assert found[-1].path == f"{tree}/d/e"
    assert found[-1].error is not None
    assert found[-1].error.message == f"{tree}/d/e/: cannot be read: Permission denied"
    assert [match.error for match in found[:-1]] == [None, None]


def test_that_nobody_can_tell_whether_it_is_there_is_told(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lstat(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "lstat", lstat)
    (match,) = matches(f"{tree}/?/e")
    assert match.error is not None


PART = st.sampled_from(["a", "b", "ab", "*", "?", "[ab]", "a*", "*b", "[!a]", "**"])


@given(
    paths=st.lists(st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=3), max_size=6),
    parts=st.lists(PART, min_size=1, max_size=4),
)
def test_it_matches_what_the_standard_library_does(
    paths: list[list[str]], parts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top = tmp_path_factory.mktemp("tree", numbered=True)
    for path in paths:
        folder = top
        for part in path[:-1]:
            folder /= part
            if not folder.exists():
                folder.mkdir()
            if not folder.is_dir():
                break
        else:
            if not (folder / path[-1]).exists():
                (folder / path[-1]).touch()
    pattern = f"{top}/{'/'.join(parts)}"
    expected = {path.rstrip("/") for path in glob.glob(pattern, recursive=True)}
    if parts[-1] == "**":
        expected = {path for path in expected if not os.path.isdir(path)}
    found = [match.path for match in matches(pattern)]
    assert sorted(found) == sorted(expected)
    assert all(match.error is None for match in matches(pattern))
