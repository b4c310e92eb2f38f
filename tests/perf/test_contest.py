"""A contest: turns, what is checked after each run, and a small real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf.content import KIB, MIB, folder_of, random_file
from perf.contest import contest, rotated
from perf.contestants.local import Cp, Dd
from perf.contestants.tdx import Tdx
from perf.model import Contestant, Running, Settings
from support.contestants import Scripted


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "disk", tmp_path / "memory", rounds=3)


@pytest.fixture
def source(tmp_path: Path, settings: Settings) -> Path:
    settings.disk.mkdir()
    settings.memory.mkdir()
    return random_file(tmp_path / "source", 64 * KIB)


@given(st.lists(st.integers(), max_size=5, unique=True), st.integers(0, 20))
def test_in_as_many_rounds_as_there_are_contestants_everybody_begins_once(
    entries: list[int], first: int
) -> None:
    rounds = [rotated(entries, first + turn) for turn in range(len(entries))]
    assert sorted(turn[0] for turn in rounds) == sorted(entries)
    assert all(sorted(turn) == sorted(entries) for turn in rounds)


def test_contestants_take_turns_and_each_round_begins_with_another(settings: Settings, source: Path) -> None:
    order: list[str] = []
    entries: list[Contestant] = [Scripted(name, order=order) for name in "ABC"]
    contest("turns", entries, source, settings)
    assert "".join(order) == "ABCBCACABABC"  # the first round is for memory


def test_a_small_real_contest(settings: Settings, tmp_path: Path) -> None:
    settings.disk.mkdir()
    settings.memory.mkdir()
    source = random_file(tmp_path / "source", MIB)
    conditions = {"kind": "small"}
    table = contest(
        "cp and dd", [Cp(), Dd()], source, settings, on_disk=True, cold=True, conditions=conditions
    )
    assert (table.title, table.bytes, table.files, table.conditions) == ("cp and dd", MIB, 1, conditions)
    assert [series.contestant for series in table.series] == ["cp", "dd conv=fsync"]
    for series in table.series:
        assert len(series.runs) == 3
        assert all(run.seconds > 0 and run.memory is not None for run in series.runs)
    assert list(settings.disk.iterdir()) == list(settings.memory.iterdir()) == []


@pytest.mark.parametrize("tls", [False, True])
def test_tdx_takes_part_with_a_folder_and_its_receiver_is_accounted_for(
    tmp_path: Path, settings: Settings, source: Path, tls: bool
) -> None:
    tree = folder_of(tmp_path / "tree", [0, 1, KIB, 70 * KIB], per_folder=2)
    table = contest("tdx", [Tdx(tls=tls)], tree, settings, rounds=1)
    (series,) = table.series
    assert table.files == 4
    assert series.runs[0].sender_cpu > 0
    assert (series.runs[0].memory or 0) > 10 * MIB  # two processes of Python
    assert series.does.startswith("TLS 1.3") == tls


def test_servers_have_ended_before_their_folders_are_removed(settings: Settings, source: Path) -> None:
    homes: list[bool] = []

    class Watched(Scripted):
        @contextmanager
        def running(self, home: Path, target: Path) -> Iterator[Running]:
            try:
                with super().running(home, target) as running:
                    yield running
            finally:
                homes.append(home.is_dir() and target.is_dir())

    contest("one", [Watched("watched")], source, settings, rounds=1)
    assert homes == [True]


def test_each_contestant_may_have_a_source_of_its_own(
    tmp_path: Path, settings: Settings, source: Path
) -> None:
    parts = folder_of(tmp_path / "parts", [32 * KIB] * 2)
    table = contest("two", [Cp(), Cp()], [source, parts], settings, rounds=1, with_memory=False)
    assert (table.bytes, table.files) == (64 * KIB, 1)
    assert [len(series.runs) for series in table.series] == [1, 1]
    assert table.series[0].runs[0].memory is None


@pytest.mark.parametrize(
    ("missing", "why"), [("at once", "it is not installed"), ("for this", "it copies nothing of this kind")]
)
def test_who_is_missing_has_no_runs_and_keeps_nobody_from_running(
    settings: Settings, source: Path, missing: str, why: str
) -> None:
    table = contest("one", [Scripted("gone", missing=missing), Scripted("there")], source, settings, rounds=2)
    gone, there = table.series
    assert (gone.runs, gone.missing) == ((), why)
    assert (len(there.runs), there.missing) == (2, None)


@dataclass
class Flaky(Scripted):
    attempts: int = 2


def test_a_run_of_a_fallible_peer_is_repeated_as_often_as_it_says(
    tmp_path: Path, settings: Settings, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once = f'mkdir {tmp_path}/failed && touch "$2" && exit 1; cp "$1" "$2"'
    table = contest("one", [Flaky("flaky", once)], source, settings, rounds=2)
    assert len(table.series[0].runs) == 2
    assert "once more, since flaky failed" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="flaky"):
        contest("one", [Flaky("flaky", "exit 1")], source, settings, rounds=2)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no room >&2; exit 1", "broken: .*no room"),
        ('head -c 65535 "$1" > "$2"', "broken: .* differs from"),
        ('head -c 65536 /dev/zero > "$2"', "broken: .* differs from"),
        ("true", "broken: .* differs from"),
    ],
    ids=["fails", "cuts", "garbles", "does nothing"],
)
def test_who_fails_or_leaves_something_else_ends_the_contest(
    settings: Settings, source: Path, script: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        contest("one", [Scripted("broken", script)], source, settings)
    assert list(settings.disk.iterdir()) == list(settings.memory.iterdir()) == []
