"""What every store must do with the entries of a tree: a part of the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest

from store.bundle_conformance import bundle, outcomes
from store.conformance import ME, YOU, Harness, push
from tdx.errors import StorageError, TdxError
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, FileName, Owner
from tdx.proto.tree import Entry, FileEntry, FolderEntry, LinkEntry
from tdx.store.port import Store

MIB = 1 << 20
OLD = 10**18
"""A time long ago (ns)."""


class TreeHarness(Harness, Protocol):
    """A store with folders, links and attributes to look at."""

    def link(self, path: str, target: str) -> None:
        """A symbolic link that a user put into the folder."""
        ...

    def folder(self, path: str) -> None:
        """A folder that a user made."""
        ...

    def remove(self, path: str) -> None:
        """A file that a user took away."""
        ...

    def links(self) -> dict[str, str]: ...

    def folders(self) -> dict[str, tuple[int, int]]:
        """Permission bits and mtime of each folder that was made."""
        ...

    def attributes(self, path: str) -> tuple[int, int]:
        """Those of a file."""
        ...


def nothing_ends_it() -> None:
    pass


def root(content: bytes, extent_size: int = 4 * MIB) -> str:
    return str(Root.over([digest_of(content)] if content else [], len(content), extent_size))


def file(
    name: str, content: bytes, mtime_ns: int = OLD, mode: int = 0o644, *, asked: bool = False
) -> FileEntry:
    return FileEntry(FileName(name), len(content), mtime_ns, mode, None if asked else root(content))


def folder(name: str, mtime_ns: int = OLD, mode: int = 0o755) -> FolderEntry:
    return FolderEntry(FileName(name), mtime_ns, mode)


def link(name: str, target: str, mtime_ns: int = OLD) -> LinkEntry:
    return LinkEntry(FileName(name), mtime_ns, target)


def tell(store: Store, *entries: Entry, conflict: Conflict = Conflict.RENAME, owner: Owner = ME) -> list[str]:
    """What is said of each: the verdict, with the path where that is another one; or the error's code."""
    return told(entries, store.take_entries(owner, conflict, entries, nothing_ends_it))


def told(entries: Sequence[Entry], results: Sequence[object]) -> list[str]:
    said: list[str] = []
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, TdxError):
            said.append(result.code)
        else:
            verdict, path = result.verdict, result.path  # type: ignore[attr-defined]
            said.append(verdict if path == entry.name else f"{verdict} {path}")
    return said


class TreeConformance:
    # --- files --------------------------------------------------------------------------

    def test_a_file_that_is_not_there_is_to_be_sent(self, harness: TreeHarness) -> None:
        assert tell(harness.store, file("a", b"one"), file("d/e/b", b"two")) == ["send", "send"]
        assert harness.published() == {}
        assert harness.folders() == {}

    @pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.ERROR, Conflict.OVERWRITE])
    def test_a_file_that_was_published_is_the_same(self, harness: TreeHarness, conflict: Conflict) -> None:
        bundle(harness.store, {"d/a": b"one", "d/empty": b"", "b": b"two"}, mtime_ns=OLD, mode=0o644)
        entries = file("d/a", b"one"), file("d/empty", b""), file("b", b"two")
        assert tell(harness.store, *entries, conflict=conflict) == ["same"] * 3
        harness.restart(reboot=True)
        assert tell(harness.store, *entries, conflict=conflict) == ["same"] * 3

    def test_a_file_that_somebody_else_put_there_is_the_same(self, harness: TreeHarness) -> None:
        harness.put("d/a", b"one")
        harness.put("b", b"two")
        for _ in range(2):
            assert tell(harness.store, file("d/a", b"one"), file("b", b"two")) == ["same", "same"]

    def test_the_same_over_extents_of_another_size_is_the_same(self, harness: TreeHarness) -> None:
        push(harness.store, b"content", "a", mtime_ns=OLD)
        for size in (4 * MIB, 64 * MIB, 4 * MIB):
            entry = FileEntry(FileName("a"), 7, OLD, 0o644, root(b"content", size))
            assert tell(harness.store, entry) == ["same"]

    @pytest.mark.parametrize(
        ("conflict", "expected"),
        [
            (Conflict.RENAME, "send"),
            (Conflict.OVERWRITE, "send"),
            (Conflict.ERROR, "exists"),
            (Conflict.SKIP, "skipped"),
        ],
    )
    @pytest.mark.parametrize("there", [b"other", b"of another size"])
    def test_another_file_of_that_name_is_met_as_the_mode_says(
        self, harness: TreeHarness, conflict: Conflict, expected: str, there: bytes
    ) -> None:
        harness.put("a", there)
        assert tell(harness.store, file("a", b"wants"), conflict=conflict) == [expected]
        assert harness.published() == {"a": there}

    def test_what_is_there_is_skipped_also_where_it_is_the_same(self, harness: TreeHarness) -> None:
        harness.put("a", b"one")
        assert tell(harness.store, file("a", b"one"), conflict=Conflict.SKIP) == ["skipped"]

    @pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.OVERWRITE, Conflict.ERROR])
    def test_without_a_root_it_is_asked_for_only_where_the_size_is_the_same(
        self, harness: TreeHarness, conflict: Conflict
    ) -> None:
        harness.put("a", b"one")
        assert tell(harness.store, file("a", b"two", asked=True), conflict=conflict) == ["ask"]
        assert tell(harness.store, file("b", b"two", asked=True), conflict=conflict) == ["send"]

    def test_a_copy_that_was_numbered_is_the_same_for_its_owner(self, harness: TreeHarness) -> None:
        harness.put("f", b"another")
        assert outcomes(bundle(harness.store, {"f": b"mine"}, mtime_ns=OLD)) == [("published", "f (1)")]
        assert tell(harness.store, file("f", b"mine")) == ["same f (1)"]
        assert tell(harness.store, file("f", b"mine", asked=True)) == ["ask f (1)"]
        assert tell(harness.store, file("f", b"mine"), owner=YOU) == ["send"]
        assert tell(harness.store, file("f", b"mime")) == ["send"]
        assert tell(harness.store, file("f", b"mine"), conflict=Conflict.ERROR) == ["exists"]

    def test_a_numbered_copy_that_is_gone_is_none(self, harness: TreeHarness) -> None:
        harness.put("d/f", b"another")
        bundle(harness.store, {"d/f": b"mine"}, mtime_ns=OLD)
        harness.remove("d/f (1)")
        assert tell(harness.store, file("d/f", b"mine")) == ["send"]

    @pytest.mark.parametrize(
        ("conflict", "expected"),
        [(Conflict.RENAME, "send"), (Conflict.OVERWRITE, "exists"), (Conflict.ERROR, "exists")],
    )
    def test_a_folder_in_the_place_of_a_file_is_never_replaced(
        self, harness: TreeHarness, conflict: Conflict, expected: str
    ) -> None:
        harness.put("a/b", b"")
        assert tell(harness.store, file("a", b"one"), conflict=conflict) == [expected]

    def test_a_file_in_the_way_refuses_what_would_lie_in_it(self, harness: TreeHarness) -> None:
        harness.put("a", b"")
        entries = file("a/b", b"one"), folder("a/c"), link("a/d", "b"), folder("a"), file("ok", b"")
        assert tell(harness.store, *entries) == ["bad-name"] * 4 + ["send"]
        assert harness.published() == {"a": b""}

    def test_a_link_in_the_way_is_never_followed(self, harness: TreeHarness) -> None:
        harness.put("real/f", b"one")
        harness.link("to", "real")
        entries = file("to/f", b"one"), folder("to/d"), link("to/l", "f"), folder("to"), file("to", b"x")
        assert tell(harness.store, *entries) == ["bad-name"] * 4 + ["send"]
        assert harness.links() == {"to": "real"}
        assert "real/d" not in harness.folders()

    # --- attributes of files --------------------------------------------------------------

    def test_overwriting_gives_a_file_its_attributes_in_place(self, harness: TreeHarness) -> None:
        bundle(harness.store, {"d/a": b"one"}, mtime_ns=OLD, mode=0o644)
        entry = file("d/a", b"one", OLD + 5_000_000_000, 0o600)
        assert tell(harness.store, entry, conflict=Conflict.OVERWRITE) == ["made"]
        assert harness.attributes("d/a") == (0o600, OLD + 5_000_000_000)
        assert tell(harness.store, entry, conflict=Conflict.OVERWRITE) == ["same"]
        assert harness.published() == {"d/a": b"one"}

    @pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.ERROR, Conflict.SKIP])
    def test_no_other_mode_changes_attributes_of_a_file(
        self, harness: TreeHarness, conflict: Conflict
    ) -> None:
        bundle(harness.store, {"a": b"one"}, mtime_ns=OLD, mode=0o644)
        tell(harness.store, file("a", b"one", OLD + 1, 0o777), conflict=conflict)
        assert harness.attributes("a") == (0o644, OLD)

    # --- folders --------------------------------------------------------------------------

    @pytest.mark.parametrize("conflict", Conflict)
    def test_folders_are_made_with_their_attributes_in_every_mode(
        self, harness: TreeHarness, conflict: Conflict
    ) -> None:
        entries = folder("t/a/b", OLD + 2, 0o511), folder("t", OLD, 0o750), folder("t/a", OLD + 1, 0o700)
        assert tell(harness.store, *entries, conflict=conflict) == ["made"] * 3
        expected = {"t": (0o750, OLD), "t/a": (0o700, OLD + 1), "t/a/b": (0o711, OLD + 2)}
        assert harness.folders() == expected
        assert tell(harness.store, *entries, conflict=conflict) == ["same"] * 3
        harness.restart(reboot=True)
        assert tell(harness.store, *entries, conflict=conflict) == ["same"] * 3
        assert harness.folders() == expected

    def test_a_folder_that_is_there_keeps_its_attributes_only_where_it_is_to_be_skipped(
        self, harness: TreeHarness
    ) -> None:
        tell(harness.store, folder("t", OLD, 0o750))
        other = folder("t", OLD + 1, 0o700)
        assert tell(harness.store, other, conflict=Conflict.SKIP) == ["same"]
        assert harness.folders() == {"t": (0o750, OLD)}
        assert tell(harness.store, other, conflict=Conflict.ERROR) == ["made"]
        assert harness.folders() == {"t": (0o700, OLD + 1)}

    def test_what_is_made_in_a_folder_by_the_same_request_leaves_its_time_alone(
        self, harness: TreeHarness
    ) -> None:
        entries = folder("t"), folder("t/a"), link("t/l", "a"), link("t/a/l", "../l")
        assert tell(harness.store, *entries) == ["made"] * 4
        assert harness.folders() == {"t": (0o755, OLD), "t/a": (0o755, OLD)}

    # --- links ----------------------------------------------------------------------------

    @pytest.mark.parametrize("conflict", Conflict)
    def test_a_link_is_made_and_then_is_the_same_in_every_mode(
        self, harness: TreeHarness, conflict: Conflict
    ) -> None:
        entries = link("t/l", "a/b"), link("t/x/m", "../l")
        assert tell(harness.store, *entries, conflict=conflict) == ["made", "made"]
        assert harness.links() == {"t/l": "a/b", "t/x/m": "../l"}
        assert tell(harness.store, *entries, conflict=conflict) == ["same", "same"]
        harness.restart(reboot=True)
        assert tell(harness.store, *entries, conflict=conflict) == ["same", "same"]

    @pytest.mark.parametrize(
        ("conflict", "expected", "links"),
        [
            (Conflict.RENAME, "made t/l (1).txt", {"t/l.txt": "old", "t/l (1).txt": "new"}),
            (Conflict.OVERWRITE, "made", {"t/l.txt": "new"}),
            (Conflict.SKIP, "skipped", {"t/l.txt": "old"}),
            (Conflict.ERROR, "exists", {"t/l.txt": "old"}),
        ],
    )
    def test_another_link_of_that_name_is_met_as_the_mode_says(
        self, harness: TreeHarness, conflict: Conflict, expected: str, links: dict[str, str]
    ) -> None:
        harness.link("t/l.txt", "old")
        assert tell(harness.store, link("t/l.txt", "new"), conflict=conflict) == [expected]
        assert harness.links() == links

    def test_a_link_that_was_numbered_is_not_made_again(self, harness: TreeHarness) -> None:
        harness.put("t/l", b"a file")
        assert tell(harness.store, link("t/l", "new")) == ["made t/l (1)"]
        assert tell(harness.store, link("t/l", "new")) == ["same t/l (1)"]
        assert tell(harness.store, link("t/l", "newer")) == ["made t/l (2)"]
        assert tell(harness.store, link("t/l", "newer")) == ["same t/l (2)"]
        assert harness.published()["t/l"] == b"a file"

    def test_a_link_takes_the_place_of_a_file_only_where_it_overwrites(self, harness: TreeHarness) -> None:
        harness.put("t/l", b"a file")
        assert tell(harness.store, link("t/l", "x"), conflict=Conflict.ERROR) == ["exists"]
        assert tell(harness.store, link("t/l", "x"), conflict=Conflict.SKIP) == ["skipped"]
        assert tell(harness.store, link("t/l", "x"), conflict=Conflict.OVERWRITE) == ["made"]
        assert (harness.links(), harness.published()) == ({"t/l": "x"}, {})
        harness.put("t/d/f", b"")
        assert tell(harness.store, link("t/d", "x"), conflict=Conflict.OVERWRITE) == ["exists"]

    def test_two_links_of_one_name_follow_one_another(self, harness: TreeHarness) -> None:
        assert tell(harness.store, link("t/l", "a"), link("t/l", "b")) == ["made", "made t/l (1)"]

    # --- many, and none -------------------------------------------------------------------

    def test_nothing_is_answered_with_nothing(self, harness: TreeHarness) -> None:
        assert tell(harness.store) == []

    def test_many_entries_are_answered_in_order(self, harness: TreeHarness) -> None:
        names = [f"t/{number % 7}/{number}" for number in range(600)]
        bundle(harness.store, {name: name.encode() for name in names[::2]}, mtime_ns=OLD)
        said = tell(harness.store, *(file(name, name.encode()) for name in names))
        assert said == ["same", "send"] * 300

    def test_what_ends_it_ends_it(self, harness: TreeHarness) -> None:
        class Ended(TdxError):
            pass

        def end() -> None:
            raise Ended("ended")

        harness.put("a", b"one")
        entries: list[Entry] = [file("a", b"one"), link("t/l", "a")]
        with pytest.raises(Ended):
            harness.store.take_entries(ME, Conflict.RENAME, entries, end)
        assert harness.links() == {}

    def test_nothing_is_acknowledged_that_cannot_be_made_durable(self, harness: TreeHarness) -> None:
        harness.fail_syncs(failing=True)
        many: list[Entry] = [folder(f"v{each}") for each in range(9)]
        requests: list[list[Entry]] = [[folder("t")], [link("u/l", "a")], many]
        for request in requests:
            with pytest.raises(StorageError):
                harness.store.take_entries(ME, Conflict.RENAME, request, nothing_ends_it)
        harness.fail_syncs(failing=False)
        harness.restart()
        entries: list[Entry] = [folder("t"), link("u/l", "a"), *many]
        tell(harness.store, *entries)
        assert tell(harness.store, *entries) == ["same"] * 11
