"""What every store must do with bundles: a part of its conformance suite, see :mod:`store.conformance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from store.conformance import EXTENT, ME, YOU, Harness, content
from tdx.errors import NoSpace, StorageError, TdxError
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, FileName, Receipt, UploadId
from tdx.store.port import Admit, BundledFile, Store


def small(name: str, data: bytes, key: str = "k", **more: Any) -> BundledFile:
    return BundledFile(FileName(name), len(data), digest_of(data), key, **more)


def anything(_upload: UploadId, _size: int) -> None:
    """Whatever it is, it may be published."""


def bundle(
    store: Store,
    files: Mapping[str, bytes] | Sequence[tuple[str, bytes]],
    conflict: Conflict = Conflict.RENAME,
    admit: Admit = anything,
    **more: Any,
) -> list[Receipt | TdxError]:
    """Publish these files together; each has its name and place as its key."""
    bundle = store.bundle(ME, conflict, None)
    try:
        for at, (name, data) in enumerate(files.items() if isinstance(files, Mapping) else files):
            bundle.begin(small(name, data, f"{name} {at}", **more))
            bundle.write(memoryview(data))
            bundle.keep()
        return bundle.publish(admit)
    finally:
        bundle.close()


def outcomes(results: list[Receipt | TdxError]) -> list[tuple[str, str]]:
    """Outcome and path of each; of an error its code and an empty path."""
    return [
        (each.outcome.value, each.path) if isinstance(each, Receipt) else (each.code, "") for each in results
    ]


class BundleConformance:
    @pytest.fixture
    def harness(self) -> Harness:
        raise NotImplementedError

    def test_files_of_a_bundle_are_published_with_their_receipts(self, harness: Harness) -> None:
        files = {"a": b"one", "d/e/b": content(EXTENT), "d/empty": b""}
        results = bundle(harness.store, files)
        assert outcomes(results) == [("published", name) for name in files]
        assert harness.published() == files
        for at, (result, (name, data)) in enumerate(zip(results, files.items(), strict=True)):
            assert isinstance(result, Receipt)
            assert (result.name, result.size, result.verified) == (name, len(data), True)
            assert result.root == str(Root.over([digest_of(data)] if data else [], len(data), 4 << 20))
            assert harness.store.receipt_by_key(ME, f"{name} {at}") == result
            assert harness.store.receipt_by_key(YOU, f"{name} {at}") is None
        assert harness.store.staged_bytes() == 0
        assert harness.store.used(ME) == 3 + EXTENT

    def test_nothing_of_a_bundle_is_visible_before_it_is_published(self, harness: Harness) -> None:
        waiting = harness.store.bundle(ME, Conflict.RENAME, 100)
        waiting.begin(small("a", b"one"))
        waiting.write(memoryview(b"one"))
        waiting.keep()
        waiting.begin(small("b", b"two"))
        waiting.write(memoryview(b"t"))
        assert harness.published() == {}
        waiting.close()
        waiting.close()
        assert harness.published() == {}
        assert harness.store.staged_bytes() == 0
        assert harness.store.receipt_by_key(ME, "k") is None

    def test_a_file_that_is_dropped_does_not_touch_the_others(self, harness: Harness) -> None:
        mixed = harness.store.bundle(ME, Conflict.RENAME, None)
        for name, keep in (("a", True), ("b", False), ("c", True)):
            mixed.begin(small(name, b"data"))
            mixed.write(memoryview(b"data"))
            (mixed.keep if keep else mixed.drop)()
        assert outcomes(mixed.publish(anything)) == [("published", "a"), ("published", "c")]
        mixed.close()
        assert harness.published() == {"a": b"data", "c": b"data"}

    def test_a_file_that_is_not_whole_cannot_be_kept(self, harness: Harness) -> None:
        short = harness.store.bundle(ME, Conflict.RENAME, None)
        short.begin(small("a", b"data"))
        short.write(memoryview(b"dat"))
        with pytest.raises(StorageError, match="a: is not whole"):
            short.keep()
        short.close()
        assert harness.published() == {}

    @pytest.mark.parametrize(
        ("conflict", "expected", "there"),
        [
            (Conflict.RENAME, ("published", "f (1).txt"), b"old"),
            (Conflict.OVERWRITE, ("published", "f.txt"), b"new!"),
            (Conflict.SKIP, ("skipped", "f.txt"), b"old"),
            (Conflict.ERROR, ("exists", ""), b"old"),
        ],
    )
    def test_each_file_of_a_bundle_meets_a_taken_name_as_its_mode_says(
        self, harness: Harness, conflict: Conflict, expected: tuple[str, str], there: bytes
    ) -> None:
        harness.put("f.txt", b"old")
        results = bundle(harness.store, {"f.txt": b"new!", "g": b"g"}, conflict)
        assert outcomes(results) == [expected, ("published", "g")]
        assert harness.published()["f.txt"] == there
        assert harness.published()["g"] == b"g"

    @pytest.mark.parametrize("conflict", [Conflict.RENAME, Conflict.OVERWRITE, Conflict.ERROR])
    def test_a_file_of_a_bundle_that_is_there_already_is_identical(
        self, harness: Harness, conflict: Conflict
    ) -> None:
        harness.put("d/f", b"same")
        harness.put("d/empty", b"")
        results = bundle(harness.store, {"d/f": b"same", "d/empty": b"", "d/g": b"new"}, conflict)
        assert outcomes(results) == [("identical", "d/f"), ("identical", "d/empty"), ("published", "d/g")]
        assert harness.published() == {"d/f": b"same", "d/empty": b"", "d/g": b"new"}
        assert harness.store.receipt_by_key(ME, "d/f 0") == results[0]

    def test_a_bundle_that_is_pushed_again_is_identical_to_its_numbered_copies(
        self, harness: Harness
    ) -> None:
        harness.put("f", b"another")
        assert outcomes(bundle(harness.store, {"f": b"mine"})) == [("published", "f (1)")]
        assert outcomes(bundle(harness.store, {"f": b"mine"})) == [("identical", "f (1)")]
        assert harness.published() == {"f": b"another", "f (1)": b"mine"}

    @pytest.mark.parametrize(
        ("conflict", "second", "content"),
        [
            (Conflict.RENAME, ("published", "f (1)"), {"f": b"one", "f (1)": b"two"}),
            (Conflict.OVERWRITE, ("published", "f"), {"f": b"two"}),
            (Conflict.SKIP, ("skipped", "f"), {"f": b"one"}),
            (Conflict.ERROR, ("exists", ""), {"f": b"one"}),
        ],
    )
    def test_two_files_of_one_name_in_a_bundle_follow_one_another(
        self, harness: Harness, conflict: Conflict, second: tuple[str, str], content: dict[str, bytes]
    ) -> None:
        results = bundle(harness.store, [("f", b"one"), ("f", b"two")], conflict)
        assert outcomes(results) == [("published", "f"), second]
        assert harness.published() == content

    def test_the_same_file_twice_in_a_bundle_is_published_once(self, harness: Harness) -> None:
        results = bundle(harness.store, [("f", b"one"), ("f", b"one")])
        assert outcomes(results) == [("published", "f"), ("identical", "f")]
        assert harness.published() == {"f": b"one"}

    def test_a_numbered_name_may_be_wanted_by_another_file_of_the_bundle(self, harness: Harness) -> None:
        harness.put("f", b"old")
        results = bundle(harness.store, [("f", b"one"), ("f (1)", b"two")])
        assert outcomes(results) == [("published", "f (1)"), ("published", "f (1) (1)")]
        assert harness.published() == {"f": b"old", "f (1)": b"one", "f (1) (1)": b"two"}

    def test_a_name_that_is_blocked_refuses_only_its_own_file(self, harness: Harness) -> None:
        harness.put("f", b"a file")
        results = bundle(harness.store, {"f/g": b"1", "f/h": b"2", "ok": b"3"})
        assert outcomes(results) == [("bad-name", ""), ("bad-name", ""), ("published", "ok")]
        assert harness.published() == {"f": b"a file", "ok": b"3"}

    def test_a_bundle_that_is_too_long_for_the_disk_is_refused_at_once(self, harness: Harness) -> None:
        harness.set_capacity(100)
        with pytest.raises(NoSpace):
            harness.store.bundle(ME, Conflict.RENAME, 101)
        harness.store.bundle(ME, Conflict.RENAME, 100).close()
        harness.set_capacity(0)
        with pytest.raises(NoSpace):
            harness.store.bundle(ME, Conflict.RENAME, None)

    def test_nothing_of_a_bundle_is_published_that_cannot_be_made_durable(self, harness: Harness) -> None:
        doomed = harness.store.bundle(ME, Conflict.RENAME, None)
        doomed.begin(small("a", b"one"))
        doomed.write(memoryview(b"one"))
        doomed.keep()
        harness.fail_syncs(failing=True)
        with pytest.raises(StorageError):
            doomed.publish(anything)
        doomed.close()
        assert harness.published() == {}
        harness.fail_syncs(failing=False)
        assert harness.store.receipt_by_key(ME, "k") is None
        assert outcomes(bundle(harness.store, {"a": b"one"})) == [("published", "a")]

    def test_a_bundle_that_was_on_its_way_is_gone_after_a_restart(self, harness: Harness) -> None:
        waiting = harness.store.bundle(ME, Conflict.RENAME, None)
        waiting.begin(small("a", b"one"))
        waiting.write(memoryview(b"one"))
        waiting.keep()
        harness.restart()
        assert harness.published() == {}
        assert harness.store.staged_bytes() == 0

    def test_only_what_is_to_be_published_must_be_admitted(self, harness: Harness) -> None:
        harness.put("same", b"same")
        asked: list[int] = []

        def admit(upload: UploadId, size: int) -> None:
            asked.append(size)
            if size > 5:
                raise NoSpace("too much")

        files = {"same": b"same", "small": b"small", "larger": b"larger"}
        results = bundle(harness.store, files, admit=admit)
        assert outcomes(results) == [("identical", "same"), ("published", "small"), ("no-space", "")]
        assert asked == [5, 6]
        assert harness.published() == {"same": b"same", "small": b"small"}
