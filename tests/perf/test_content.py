"""Sources and their copies, and the page cache before a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from perf import cache
from perf.content import (
    KIB,
    MIB,
    count_of,
    data_ranges,
    folder_of,
    random_file,
    remove,
    same_content,
    size_of,
    sparse_file,
)
from perf.contest import space_of
from perf.scenarios.small import LARGEST, SMALLEST, mixed_sizes


def flip_last(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: random_file(path, 100 * KIB),
        lambda path: sparse_file(path, 64 * MIB, 64 * KIB),
        lambda path: folder_of(path, [0, 1, 5 * KIB], per_folder=1),
    ],
    ids=["dense", "sparse", "folder"],
)
def test_a_copy_is_the_same_until_a_bit_of_it_differs(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source, copy = make(tmp_path / "source"), tmp_path / "copy"
    assert not same_content(source, copy)
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
    assert same_content(source, copy)
    flip_last(max((path for path in cache.files_of(copy)), key=lambda path: path.stat().st_size))
    assert not same_content(source, copy)
    remove(copy)
    assert not copy.exists()


def test_data_in_the_copy_where_the_source_has_a_hole_is_seen(tmp_path: Path) -> None:
    source, copy = sparse_file(tmp_path / "source", 16 * MIB, 64 * KIB), tmp_path / "copy"
    shutil.copyfile(source, copy)
    with copy.open("r+b") as file:
        file.seek(8 * MIB)
        file.write(b"x")
    assert not same_content(source, copy)


def test_a_file_too_many_in_a_folder_is_seen(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", [10, 10])
    shutil.copytree(source, tmp_path / "copy")
    (tmp_path / "copy" / "more").touch()
    assert not same_content(source, tmp_path / "copy")


def test_a_sparse_file_takes_the_room_of_its_ends(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source", 100 * MIB, MIB)
    assert size_of(source) == 100 * MIB
    with source.open("rb") as file:
        assert list(data_ranges(file.fileno())) == [(0, MIB), (99 * MIB, 100 * MIB)]
    assert space_of(source) < 3 * MIB


def test_a_seed_makes_the_same_folder_again_and_no_two_files_alike(tmp_path: Path) -> None:
    sizes = mixed_sizes(60)
    one, other = (folder_of(tmp_path / name, sizes, per_folder=5) for name in ("one", "other"))
    assert same_content(one, other)
    assert (count_of(one), size_of(one)) == (60, sum(sizes))
    assert len({path.read_bytes() for path in cache.files_of(one)}) == 60
    assert {len(path.relative_to(one).parts) for path in cache.files_of(one)} == {3, 4, 5}


def test_a_source_tree_has_sizes_within_its_bounds_the_same_every_time() -> None:
    sizes = mixed_sizes(500)
    assert sizes == mixed_sizes(500) != mixed_sizes(500, seed=8)
    assert SMALLEST <= min(sizes) < max(sizes) <= LARGEST


def test_warming_leaves_nothing_behind_and_reading_changes_nothing(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", [10, MIB + 1])
    before = [path.read_bytes() for path in cache.files_of(source)]
    cache.warm(tmp_path, 3 * MIB + 1)
    cache.drop(source)
    cache.read_once(source)
    assert [path.read_bytes() for path in cache.files_of(source)] == before
    assert list(tmp_path.iterdir()) == [source]
