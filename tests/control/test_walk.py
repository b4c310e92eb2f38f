"""What is found in a folder, under which names, and what becomes of links."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tdx.control.items import Folder, Item, LeftOut, Link
from tdx.control.patterns import Patterns
from tdx.control.walk import walk
from tdx.errors import SourceError
from tdx.model import Links


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A folder with a folder beside it."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "secret").write_text("s")
    top = tmp_path / "top"
    (top / "d" / "e").mkdir(parents=True)
    (top / "a").write_text("a")
    (top / "d" / "b").write_text("bb")
    (top / "d" / "e" / "c").write_text("ccc")
    return top


def found(top: Path, links: Links = Links.SKIP, *lines: str, name: str = "t") -> list[str]:
    """What is found, in order: files plain, folders with a slash, links with their targets, and in
    brackets what is left out."""
    shown: list[str] = []
    for each in walk(str(top), name, links=links, patterns=Patterns(lines) if lines else None):
        if isinstance(each, LeftOut):
            shown.append(f"({Path(each.path).relative_to(top)} {each.reason})")
        elif isinstance(each, Folder):
            shown.append(each.name + "/")
        elif isinstance(each, Link):
            shown.append(f"{each.name} -> {each.target}")
        else:
            shown.append(each.name if each.error is None else f"{each.name}: {each.error}")
    return shown


def test_a_folder_comes_before_its_files_and_those_before_its_folders(top: Path) -> None:
    assert found(top) == ["t/", "t/a", "t/d/", "t/d/b", "t/d/e/", "t/d/e/c"]


def test_what_stat_tells_comes_along(top: Path) -> None:
    (top / "d").chmod(0o2750)
    os.utime(top / "d", ns=(1, 1234567890_987654321))
    folders = {each.name: each for each in walk(str(top), "t") if isinstance(each, Folder)}
    assert (folders["t/d"].mode, folders["t/d"].mtime_ns) == (0o750, 1234567890_987654321)
    (a,) = [each for each in walk(str(top), "t") if isinstance(each, Item) and each.name == "t/a"]
    assert a.status is not None
    assert (a.size, a.status.st_ino) == (1, (top / "a").stat().st_ino)


def test_an_empty_name_is_the_name_of_no_folder(top: Path) -> None:
    assert found(top, name="") == ["a", "d/", "d/b", "d/e/", "d/e/c"]


def test_special_files_are_left_out(top: Path) -> None:
    os.mkfifo(top / "pipe")
    assert "(pipe is not a regular file)" in found(top)


class TestPatterns:
    def test_what_is_left_out_is_passed_over_in_silence(self, top: Path) -> None:
        (top / "link").symlink_to("a")
        os.mkfifo(top / "pipe")
        assert found(top, Links.SKIP, "link", "pipe", "b") == ["t/", "t/a", "t/d/", "t/d/e/", "t/d/e/c"]

    def test_a_folder_that_is_left_out_is_not_looked_into(self, top: Path) -> None:
        (top / "d").chmod(0)
        try:
            assert found(top, Links.SKIP, "d/") == ["t/", "t/a"]
        finally:
            (top / "d").chmod(0o755)

    def test_they_are_relative_to_the_pushed_folder_whatever_its_name(self, top: Path) -> None:
        assert found(top, Links.SKIP, "/d/e/c", "/t") == ["t/", "t/a", "t/d/", "t/d/b", "t/d/e/"]
        assert found(top, Links.SKIP, "/d/e", name="t/u")[-1] == "t/u/d/b"

    def test_only_some_kind_of_files_is_had_by_taking_it_back_in(self, top: Path) -> None:
        assert found(top, Links.SKIP, "*", "!*/", "!c") == ["t/", "t/d/", "t/d/e/", "t/d/e/c"]

    def test_a_link_is_matched_as_what_it_is_pushed_as(self, top: Path) -> None:
        (top / "folder").symlink_to("d/e")
        assert "(folder is a symbolic link)" in found(top, Links.SKIP, "folder/")
        assert "t/folder -> d/e" in found(top, Links.PRESERVE, "folder/")
        assert not any("folder" in each for each in found(top, Links.FOLLOW, "folder/"))


class TestSkipping:
    def test_links_are_left_out_with_a_note(self, top: Path) -> None:
        (top / "l").symlink_to("a")
        (top / "m").symlink_to("d")
        (top / "n").symlink_to("nowhere")
        assert found(top)[2:5] == [f"({name} is a symbolic link)" for name in "lmn"]


class TestFollowing:
    def test_what_links_lead_to_is_pushed_as_if_it_were_there(self, top: Path) -> None:
        (top / "l").symlink_to("a")
        (top / "m").symlink_to("../beside")
        (top / "n").symlink_to(top / "d" / "e")
        assert found(top, Links.FOLLOW) == [
            *("t/", "t/a", "t/l", "t/d/", "t/d/b", "t/d/e/", "t/d/e/c"),
            *("t/m/", "t/m/secret", "t/n/", "t/n/c"),
        ]

    def test_a_file_is_as_its_target_is(self, top: Path) -> None:
        (top / "l").symlink_to("d/e/c")
        (item,) = [each for each in walk(str(top), "t", links=Links.FOLLOW) if isinstance(each, Item)][1:2]
        assert (item.name, item.size) == ("t/l", 3)
        assert item.status is not None
        assert stat.S_ISREG(item.status.st_mode)

    @pytest.mark.parametrize("target", [".", "..", "../..", "../../d", "../../d/e"])
    def test_a_loop_ends_where_it_closes_with_a_note(self, top: Path, target: str) -> None:
        (top / "d" / "e" / "loop").symlink_to(target)
        loops = [each for each in found(top, Links.FOLLOW) if "lies in" in each]
        assert loops == ["(d/e/loop is a symbolic link to a folder that it lies in)"]

    def test_two_folders_that_lead_to_each_other_end_too(self, top: Path) -> None:
        (top / "d" / "over").symlink_to("../x")
        (top / "x").mkdir()
        (top / "x" / "back").symlink_to("../d")
        loops = [each for each in found(top, Links.FOLLOW) if each.startswith("(")]
        lies_in = "is a symbolic link to a folder that it lies in"
        assert loops == [f"(d/over/back {lies_in})", f"(x/back/over {lies_in})"]

    def test_the_same_folder_twice_is_no_loop(self, top: Path) -> None:
        (top / "one").symlink_to("d")
        (top / "two").symlink_to("d")
        assert [each for each in found(top, Links.FOLLOW) if each.endswith("/e/c")] == [
            *("t/d/e/c", "t/one/e/c", "t/two/e/c")
        ]

    def test_a_link_that_leads_nowhere_is_left_out(self, top: Path) -> None:
        (top / "gone").symlink_to("nowhere")
        (top / "self").symlink_to("self")
        os.mkfifo(top / "pipe")
        (top / "to-pipe").symlink_to("pipe")
        assert found(top, Links.FOLLOW)[2:6] == [
            "(gone is a symbolic link that leads nowhere)",
            "(pipe is not a regular file)",
            "(self is a symbolic link that leads nowhere)",
            "(to-pipe is not a regular file)",
        ]


class TestPreserving:
    @pytest.mark.parametrize(
        ("where", "target", "travels"),
        [
            ("l", "a", "a"),
            ("l", "./d//e/", "d/e"),
            ("l", "nowhere", "nowhere"),
            ("l", "d/../a", "a"),
            ("l", "d/e/../../a", "a"),
            ("d/l", "../a", "../a"),
            ("d/l", "..", ".."),
            ("d/e/l", "../../a", "../../a"),
            ("d/e/l", ".././b", "../b"),
        ],
    )
    def test_a_link_that_stays_in_the_folder_travels(
        self, top: Path, where: str, target: str, travels: str
    ) -> None:
        (top / where).symlink_to(target)
        os.utime(top / where, ns=(5, 5), follow_symlinks=False)
        (link,) = [each for each in walk(str(top), "t", links=Links.PRESERVE) if isinstance(each, Link)]
        assert (link.name, link.target, link.mtime_ns) == (f"t/{where}", travels, 5)
        # It leads to the same as it did.
        assert os.path.realpath((top / where).parent / travels) == os.path.realpath(top / where)

    @pytest.mark.parametrize(
        ("where", "target"),
        [
            ("l", "../beside/secret"),
            ("l", ".."),
            ("l", "."),
            ("l", "./"),
            ("d/l", "../../beside"),
            ("d/e/l", "../../../top/a"),
            ("l", "d/../../beside"),
            ("l", "nowhere/../a"),
            ("l", "a/../a"),
            ("l", "through/../secret"),
        ],
    )
    def test_one_that_leads_out_is_left_out_and_it_is_said_why(
        self, top: Path, where: str, target: str
    ) -> None:
        (top / "through").symlink_to("d/e")
        (top / where).symlink_to(target)
        expected = f"({where} is a symbolic link to {target}, which leads out of the pushed folder)"
        assert expected in found(top, Links.PRESERVE)

    def test_one_to_an_absolute_path_is_left_out(self, top: Path) -> None:
        (top / "l").symlink_to(top / "a")
        expected = f"(l is a symbolic link to {top}/a, which is no relative path)"
        assert expected in found(top, Links.PRESERVE)

    def test_what_has_no_folder_with_a_name_around_it_cannot_stay_in_it(self, top: Path) -> None:
        (top / "l").symlink_to("a")
        assert "t/l -> a" in found(top, Links.PRESERVE)
        expected = "(l is a symbolic link to a, which leads out of the pushed folder)"
        assert expected in found(top, Links.PRESERVE, name="")

    def test_a_link_to_a_folder_is_not_looked_into(self, top: Path) -> None:
        (top / "l").symlink_to("d")
        assert [each for each in found(top, Links.PRESERVE) if "l" in each] == ["t/l -> d"]


class TestVanishing:
    def test_a_file_that_goes_away_is_an_item_that_will_tell_why_not(
        self, top: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = walk(str(top), "t")
        next(seen)
        (top / "a").unlink()
        a = next(seen)
        assert isinstance(a, Item)
        assert (a.name, a.size, a.status, a.error) == ("t/a", None, None, None)

    def test_a_folder_that_goes_away_is_an_error(self, top: Path) -> None:
        seen = walk(str(top), "t")
        next(seen)
        (top / "d").rename(top.parent / "elsewhere")
        *_, last = seen
        assert isinstance(last, Item)
        assert isinstance(last.error, SourceError)
        assert "d: cannot be read: No such file or directory" in last.error.message

    def test_a_path_that_no_system_call_takes_is_an_error_too(self) -> None:
        (item,) = walk("nul\0", "t")
        assert isinstance(item, Item)
        assert isinstance(item.error, SourceError)
