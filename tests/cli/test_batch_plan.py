from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tdx.config.batch import BatchItem
from tdx.control.items import Folder, Item, LeftOut, Link
from tdx.errors import SourceError, UsageError
from tdx.model import Conflict, FileName, Links
from tdx_cli.batch_plan import find, items_of, patterns_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two folders of photos, one of which has another one, and a file beside them."""
    top = tmp_path / "photos"
    for name in ("a.jpg", "sub/b.jpg", "sub/c.png", "sub/deep/d.jpg"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (tmp_path / "notes.txt").write_text("notes")
    return tmp_path


def item(tree: Path, *sources: str, **wishes: object) -> BatchItem:
    patterns = tuple(f"{tree}/{source}" for source in sources)
    return replace(BatchItem("i", patterns, ("nas",), Conflict.SKIP), **wishes)  # type: ignore[arg-type]


def planned(wanted: BatchItem) -> dict[str, str]:
    """What would be pushed: names at the peer, and the ends of the paths here."""
    found = [each for each in items_of(wanted, find(wanted)) if isinstance(each, Item)]
    assert [each.error for each in found] == [None] * len(found)
    return {each.name: os.path.basename(each.path) for each in found}


def noted(wanted: BatchItem) -> list[str]:
    """What would be said of what cannot be pushed, or is left out."""
    said: list[str] = []
    for each in items_of(wanted, find(wanted)):
        if isinstance(each, LeftOut):
            said.append(each.reason)
        elif isinstance(each, Item) and each.error is not None:
            assert isinstance(each.error, SourceError)
            said.append(each.error.message)
    return said


def test_a_file_goes_by_its_own_name_and_a_folder_by_its_own(tree: Path) -> None:
    assert planned(item(tree, "notes.txt")) == {"notes.txt": "notes.txt"}
    assert planned(item(tree, "photos/sub/", recursive=True)) == {
        "sub/b.jpg": "b.jpg",
        "sub/c.png": "c.png",
        "sub/deep/d.jpg": "d.jpg",
    }


def test_what_a_pattern_matches_goes_by_the_path_from_its_first_wildcard_on(tree: Path) -> None:
    assert list(planned(item(tree, "photos/**/*.jpg"))) == ["a.jpg", "sub/b.jpg", "sub/deep/d.jpg"]
    assert list(planned(item(tree, "photos/s*/*.jpg"))) == ["sub/b.jpg"]
    assert list(planned(item(tree, "*.txt"))) == ["notes.txt"]


def test_into_is_a_folder_at_the_peer_and_as_another_name(tree: Path) -> None:
    into, called = FileName("to/here"), FileName("of.txt")
    assert list(planned(item(tree, "notes.txt", into=into))) == ["to/here/notes.txt"]
    assert list(planned(item(tree, "notes.txt", called=called))) == ["of.txt"]
    assert list(planned(item(tree, "notes.txt", into=into, called=called))) == ["to/here/of.txt"]
    assert list(planned(item(tree, "photos/sub/deep", into=into, called=called, recursive=True))) == [
        "to/here/of.txt/d.jpg"
    ]
    (root,) = find(item(Path("/"), "", into=into))
    assert root.name == "to/here"  # type: ignore[union-attr]


def test_as_is_the_name_of_one_source_only(tree: Path) -> None:
    called = FileName("x")
    assert list(planned(item(tree, "*.txt", called=called))) == ["x"]
    with pytest.raises(UsageError, match="would be the name of 3 sources"):
        find(item(tree, "photos/**/*.jpg", called=called))


def test_what_is_not_there_is_an_error_unless_it_need_not_be(tree: Path) -> None:
    wanted = item(tree, "notes.txt", "no.txt", "*.[x]")
    assert noted(wanted) == [f"{tree}/no.txt: is not there", f"{tree}/*.[x]: matches nothing to push"]
    assert planned(replace(wanted, optional=True)) == {"notes.txt": "notes.txt"}
    assert planned(item(tree, "no.txt", optional=True, called=FileName("x"))) == {}


def test_a_folder_that_is_named_outright_needs_recursive(tree: Path) -> None:
    (found,) = items_of(item(tree, "photos"), find(item(tree, "photos")))
    assert isinstance(found, Item)
    assert isinstance(found.error, UsageError)
    # What to do is said in the words of the batch, which has no -r.
    assert found.error.message.startswith(f"{tree}/photos: is a directory; say recursive = true")


def test_a_folder_that_a_wildcard_happens_to_match_is_left_out(tree: Path) -> None:
    assert noted(item(tree, "*")) == ["is a folder, and the item is not recursive"]
    assert noted(item(tree, "phot*")) == [
        "is a folder, and the item is not recursive",
        f"{tree}/phot*: matches nothing to push",
    ]


@pytest.mark.parametrize("pattern", ["photos/**", "photos/**/*"])
def test_everything_below_a_folder_is_its_files_without_a_word_on_folders(pattern: str, tree: Path) -> None:
    wanted = item(tree, pattern)
    assert list(planned(wanted)) == ["a.jpg", "sub/b.jpg", "sub/c.png", "sub/deep/d.jpg"]


def test_what_is_matched_with_its_folder_is_pushed_once(tree: Path) -> None:
    wanted = item(tree, "photos/**/*", recursive=True)
    assert sorted(planned(wanted)) == ["a.jpg", "sub/b.jpg", "sub/c.png", "sub/deep/d.jpg"]


def test_special_files_that_a_wildcard_matches_are_left_out(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "dangling.txt").symlink_to("nowhere")
    assert noted(item(tree, "p?p*")) == ["is not a regular file", f"{tree}/p?p*: matches nothing to push"]
    wanted = item(tree, "*.txt")
    assert [each.name for each in items_of(wanted, find(wanted)) if isinstance(each, Item)] == [
        "dangling.txt",
        "notes.txt",
    ]


def test_a_path_that_is_named_twice_is_pushed_once(tree: Path) -> None:
    assert list(planned(item(tree, "notes.txt", "*.txt", "./notes.txt"))) == ["notes.txt"]


def test_two_sources_of_one_name_are_refused(tree: Path) -> None:
    (tree / "photos" / "notes.txt").write_text("other")
    with pytest.raises(UsageError, match=r"would both be notes\.txt at the peer") as refused:
        find(item(tree, "notes.txt", "photos/*.txt"))
    assert f"{tree}/photos/notes.txt" in refused.value.message


def test_a_source_that_would_be_mixed_with_another_ones_folder_is_refused(tree: Path) -> None:
    (tree / "sub").mkdir()
    with pytest.raises(UsageError, match="would both be sub at the peer"):
        find(item(tree, "sub", "photos/*/b.jpg", recursive=True))
    # The same file twice is no mistake: one is within the other.
    assert find(item(tree, "photos/sub", "photos/*/b.jpg", recursive=True))


def test_a_folder_that_cannot_be_searched_is_an_error_beside_what_was_found(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path.endswith("deep/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    wanted = item(tree, "photos/**/*.jpg")
    assert noted(wanted) == [f"{tree}/photos/sub/deep/: cannot be read: Permission denied"]
    assert len(list(items_of(wanted, find(wanted)))) == 3


def test_folders_and_with_links_preserve_links_are_pushed_too(tree: Path) -> None:
    (tree / "photos" / "latest").symlink_to("a.jpg")
    kinds = {
        links: [
            (type(each).__name__, each.name)
            for each in items_of(wanted, find(wanted))
            if isinstance(each, Folder | Link)
        ]
        for links in (Links.SKIP, Links.PRESERVE)
        for wanted in [item(tree, "photos", recursive=True, links=links, into=FileName("x"))]
    }
    folders = [("Folder", "x/photos"), ("Folder", "x/photos/sub"), ("Folder", "x/photos/sub/deep")]
    assert kinds[Links.SKIP] == folders
    assert sorted(kinds[Links.PRESERVE]) == [*folders, ("Link", "x/photos/latest")]


def test_what_is_excluded_from_folders_is_passed_over_and_included_again(tree: Path) -> None:
    wanted = item(tree, "photos", recursive=True, exclude=("*.jpg",))
    assert list(planned(wanted)) == ["photos/sub/c.png"]
    assert list(planned(replace(wanted, include=("b.jpg",)))) == ["photos/sub/b.jpg", "photos/sub/c.png"]
    assert noted(wanted) == []
    with pytest.raises(UsageError, match="exclude"):
        patterns_of(replace(wanted, exclude=("!",)))
