from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdx.control.items import Folder, Item, LeftOut
from tdx.control.patterns import Patterns
from tdx.errors import SourceError, UsageError
from tdx.model import Links
from tdx_cli.plan import check, plan


def named(paths: list[str], name: str | None = None, *, recursive: bool = True) -> list[str]:
    """The files, by their names, and why others are left out."""
    return [
        item.name if isinstance(item, Item) else f"({item.reason})"
        for item in plan(paths, name=name, recursive=recursive)
        if isinstance(item, Item | LeftOut)
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "b" / "deep").mkdir(parents=True)
    (top / "a.txt").write_text("a")
    (top / "b" / "deep" / "c").write_text("c")
    (top / "b" / "z").write_text("z")
    (top / "empty").mkdir()
    return top


def test_a_file_goes_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("")
    monkeypatch.chdir(tmp_path)
    assert named(["f", "./f", f"{tmp_path}/f"]) == ["f", "f", "f"]


@pytest.mark.parametrize(
    "paths", [["a/same", "b/same"], ["same/", "./same"], ["a/b/..", "a"], ["x", "same", "y", "b/./same"]]
)
def test_two_paths_of_one_name_are_refused_and_both_are_named(paths: list[str]) -> None:
    with pytest.raises(UsageError, match="would both be") as refused:
        check(paths, name=None, resume=False)
    assert sum(path in refused.value.message for path in paths) >= 2


def test_the_root_folder_is_pushed_alone(tmp_path: Path) -> None:
    check(["/"], name=None, resume=False)
    with pytest.raises(UsageError, match="push it in a run of its own"):
        check(["/", str(tmp_path)], name=None, resume=False)


def test_a_closed_standard_input_is_known_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    (item,) = plan(["-"], name="x", recursive=False)
    assert isinstance(item, Item)
    assert isinstance(item.error, SourceError)


def test_a_folder_goes_by_its_name_and_what_is_in_it_by_the_path_from_there(tree: Path) -> None:
    assert named([f"{tree}/"]) == ["tree/a.txt", "tree/b/z", "tree/b/deep/c"]


def test_what_a_file_has_of_bytes_is_known_before_it_is_opened(tree: Path) -> None:
    (tree / "b" / "z").write_text("four")
    found = plan([str(tree), str(tree / "b" / "z"), "/no/such", "-"], name=None, recursive=True)
    sizes = {item.name: item.size for item in found if isinstance(item, Item)}
    assert sizes == {"tree/a.txt": 1, "tree/b/z": 4, "tree/b/deep/c": 1, "z": 4, "such": None, "-": None}


def test_the_current_folder_has_a_name_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "b")
    assert named(["."]) == ["b/z", "b/deep/c"]
    assert named([".."]) == ["tree/a.txt", "tree/b/z", "tree/b/deep/c"]


def test_another_name_stands_in_for_the_first_part(tree: Path) -> None:
    assert named([str(tree / "b")], "c") == ["c/z", "c/deep/c"]
    assert named([str(tree / "a.txt")], "c") == ["c"]


def test_links_and_special_files_are_left_out_with_a_reason(tree: Path) -> None:
    (tree / "b" / "link").symlink_to("z")
    os.mkfifo(tree / "b" / "pipe")
    assert named([str(tree / "b")]) == ["(is a symbolic link)", "(is not a regular file)", "b/z", "b/deep/c"]


def test_a_loop_of_links_ends(tree: Path) -> None:
    (tree / "b" / "loop").symlink_to(tree)
    assert "(is a symbolic link)" in named([str(tree)])


def test_folders_are_pushed_too_but_not_one_that_has_no_name(tree: Path) -> None:
    found = [each.name for each in plan([str(tree)], name=None, recursive=True) if isinstance(each, Folder)]
    assert found == ["tree", "tree/b", "tree/b/deep", "tree/empty"]
    found = [each.name for each in plan([str(tree)], name="", recursive=True) if isinstance(each, Folder)]
    assert found == ["b", "b/deep", "empty"]


def test_patterns_and_links_say_nothing_of_the_paths_themselves(tree: Path) -> None:
    (tree / "link").symlink_to("b")
    paths = [str(tree / "link"), str(tree / "a.txt")]
    patterns = Patterns(["link", "a.txt", "z"])
    found = plan(paths, name=None, recursive=True, links=Links.PRESERVE, patterns=patterns)
    assert [each.name for each in found if isinstance(each, Item)] == ["link/deep/c", "a.txt"]


def test_a_folder_needs_r(tree: Path) -> None:
    (item,) = plan([str(tree)], name=None, recursive=False)
    assert isinstance(item, Item)
    assert isinstance(item.error, UsageError)
    assert "is a directory" in item.error.message


def test_a_folder_that_goes_away_is_an_error_of_its_own(tree: Path) -> None:
    found = plan([str(tree)], name=None, recursive=True)
    assert [type(next(found)) for _ in range(2)] == [Folder, Item]
    (tree / "b" / "z").unlink()
    (tree / "b" / "deep" / "c").unlink()
    (tree / "b" / "deep").rmdir()
    (tree / "b").rmdir()
    rest = list(found)
    assert [type(item.error) for item in rest if isinstance(item, Item)] == [SourceError]
    assert not any(isinstance(item, LeftOut) for item in rest)


def test_what_is_missing_is_still_tried() -> None:
    assert named(["/no/such/file"]) == ["file"]


def test_a_deep_tree_is_walked_without_recursion(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(400):
            os.mkdir("d", dir_fd=descriptor)
            inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    finally:
        os.close(descriptor)
    assert named([str(tmp_path / "d")], "x") == ["x" + "/d" * 399 + "/f"]


@pytest.mark.parametrize(
    ("paths", "name", "resume"),
    [(["a", "b"], "n", False), (["-"], None, False), (["-"], "n", True), (["a", "-"], None, False)],
)
def test_flags_that_contradict_the_paths_are_refused(
    paths: list[str], name: str | None, resume: bool
) -> None:
    with pytest.raises(UsageError):
        check(paths, name=name, resume=resume)


def test_flags_that_agree_are_not() -> None:
    check(["a", "b"], name=None, resume=True)
    check(["-"], name="n", resume=False)


def test_a_digest_of_the_whole_is_not_taken_of_what_cannot_be_read_twice() -> None:
    with pytest.raises(UsageError, match="--digest"):
        check(["-"], name="n", resume=False, digest="sha-256")
    check(["f"], name=None, resume=False, digest="sha-256")
