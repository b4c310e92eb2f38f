"""Pushing again what is there already: what is timed, what is changed in between, and what is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.content import KIB, MIB, folder_of, random_file
from perf.contestants.rsync import Rsync
from perf.contestants.tdx import Tdx
from perf.model import Settings
from perf.scenarios.again import PAGE, REPLACES, again, in_one, scattered
from support.contestants import Scripted


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "disk", tmp_path / "memory", rounds=2)


def changed_pages(before: bytes, after: bytes) -> list[int]:
    return [at for at in range(0, len(before), PAGE) if before[at : at + PAGE] != after[at : at + PAGE]]


def test_one_page_in_a_hundred_is_changed_anywhere(tmp_path: Path) -> None:
    source = random_file(tmp_path / "image", 2 * MIB)
    before, then = source.read_bytes(), source.stat().st_mtime
    scattered(source)
    assert len(changed_pages(before, source.read_bytes())) == 2 * MIB // PAGE // 100
    assert source.stat().st_size == len(before)
    assert source.stat().st_mtime > then


def test_or_one_stretch_of_a_hundredth(tmp_path: Path) -> None:
    source = random_file(tmp_path / "image", 2 * MIB)
    before = source.read_bytes()
    in_one(source)
    changed = changed_pages(before, source.read_bytes())
    assert 2 * MIB // PAGE // 100 <= len(changed) <= 2 * MIB // PAGE // 100 + 2
    assert changed == list(range(changed[0], changed[-1] + PAGE, PAGE))


def test_everybody_pushes_once_unmeasured_and_then_in_every_round(tmp_path: Path, settings: Settings) -> None:
    source = folder_of(tmp_path / "tree", [KIB] * 3)
    copies = 'rm -rf "$2" && cp -r "$1" "$2"'
    one, other = Scripted("one", copies), Scripted("other", copies)
    seen: list[Path] = []
    table = again("again", (one, other), source, settings, seen.append)
    assert seen == [source, source]
    assert len(one.order) == len(other.order) == 3
    assert [len(each.runs) for each in table.series] == [2, 2]


def test_what_is_there_afterwards_is_compared(tmp_path: Path, settings: Settings) -> None:
    source = random_file(tmp_path / "image", MIB)
    lazy = Scripted("lazy", '[ -e "$2" ] || cp "$1" "$2"')
    with pytest.raises(RuntimeError, match="lazy: what is there differs"):
        again("again", (lazy,), source, settings, scattered)


def test_who_is_missing_has_no_runs_and_says_why(tmp_path: Path, settings: Settings) -> None:
    source = random_file(tmp_path / "image", KIB)
    missing = Scripted("nobody", missing="at once")
    (series,) = again("again", (missing,), source, settings, lambda _: None).series
    assert series.runs == ()
    assert series.missing == "it is not installed"


def test_the_real_ones_replace_what_is_there(tmp_path: Path, settings: Settings) -> None:
    source = random_file(tmp_path / "image", MIB)
    table = again("again", (Tdx(flags=REPLACES), Rsync(delta=True)), source, settings, scattered)
    assert all(len(each.runs) == 2 or each.missing for each in table.series)
