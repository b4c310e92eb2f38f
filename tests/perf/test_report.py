"""The report, its plots, the command, and what a change did."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from perf import comparing, results
from perf.__main__ import main, names
from perf.machine import describe, filesystem_of
from perf.model import Outcome, Run, Series, Settings, Table
from perf.plots import draw
from perf.report import render
from perf.targets import P1, P2, P9

ROOT = Path(__file__).resolve().parents[2]


def series(name: str, *seconds: float, missing: str | None = None, **figures: float) -> Series:
    runs = tuple(Run(each, 0.5, 0.25, 32 << 20, dict(figures)) for each in seconds)
    return Series(name, "what it does", runs, missing)


SINGLE = Outcome(
    "single",
    "One large file",
    ("It was warm.",),
    (
        Table(
            "Everybody",
            3_000_000_000,
            1,
            {},
            (
                series("cp", 1.0, 1.0, 1.0),
                series("tdx", 1.5, 2.0, 3.0, first_byte_seconds=0.2, again_bytes=1 << 20),
                series("croc", missing="install croc"),
            ),
        ),
    ),
    (P1.reached_by([1.5, 2.0, 3.0]), P2.reached_by([1.0])),
)
LINK = Outcome(
    "wan",
    "Long links",
    (),
    tuple(
        Table(
            "tdx",
            1_000_000,
            1,
            {"control": control, "link": link},
            (series("tdx", 2.0, 2.5, share_of_link=0.5),),
        )
        for control in ("cubic", "bbr")
        for link in ("100 Mbit/s", "1000 Mbit/s")
    ),
    (replace(P9.reached_by([0.5]), id="P9 cubic", what="of a long link"),),
)
GROWTH = Outcome(
    "growth",
    "Growth",
    (),
    tuple(
        Table("Files", files << 14, files, {"files": str(files)}, (series("tdx", files / 10.0),))
        for files in (1, 10, 100)
    ),
)
SWEEP = Outcome(
    "sweep",
    "Streams",
    (),
    tuple(Table("Streams", 1 << 20, 1, {"streams": str(n)}, (series("a", 1.0, n),)) for n in (1, 2)),
)


def result(outcome: Outcome, scale: float = 1.0) -> results.Result:
    machine = {"cores": "2", "load before": "0.10", "tdx": "1.2.3"}
    return results.Result(outcome, machine, "2026-01-01T00:00:00+00:00", 12.3, 3, scale)


def test_the_report_has_the_machine_the_method_the_targets_and_each_scenario() -> None:
    text = render([result(SINGLE), result(LINK)], {"single": ["plots/single-1.svg"]})
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## The machine",
        "## How it was measured",
        "## Targets",
        "## One large file",
        "## Long links",
    ]
    assert "| cores | 2 |" in text
    assert "- It was warm." in text
    assert "![One large file](plots/single-1.svg)" in text


def test_a_scenario_of_another_machine_says_in_what_it_was_another() -> None:
    old = replace(result(LINK), measured="2025-01-01T00:00:00+00:00")
    old = replace(old, machine={**old.machine, "cores": "8", "tdx": "1.0.0", "load before": "9.00"})
    text = render([result(SINGLE), old], {})
    assert "| cores | 2 |" in text
    assert text.count("The machine differed") == 1
    assert "The machine differed: cores: 8.\n" in text.partition("## Long links")[2]


def test_the_report_says_what_is_met_what_is_missed_and_what_was_not_measured() -> None:
    text = render([result(SINGLE), result(LINK)], {})
    lines = [line for line in text.splitlines() if line.startswith("| P")]
    assert [line.split("|")[1].strip() for line in lines] == (
        ["P1", "P2", "P3", "P3", "P3", "P4", "P4", "P5", "P6", "P7", "P8", "P9 cubic", "P10", "P11"]
    )
    assert lines[0].endswith(
        "| ≤ 1 × the time | ≤ 1.2 × the time | 2.00 (1.50–3.00) × the time | **missed by 67 %** |"
    )
    assert lines[1].endswith("| met |")
    assert all(line.endswith("| – | not measured |") for line in lines[2:11])
    assert lines[-3].endswith("| **missed by 29 %** |")


def test_a_table_is_sorted_by_the_median_and_tells_who_is_missing() -> None:
    text = render([result(SINGLE)], {})
    assert (
        "| contestant | does | s | MB/s | × tdx | sender CPU s | receiver CPU s | memory MiB "
        "| first byte s | again MiB | runs |"
    ) in text
    cp = text.index("| cp | what it does | 1.00 (1.00–1.00) | 3,000 | 0.500 (0.333–0.667) |")
    tdx = text.index(
        "| tdx | what it does | 2.00 (1.50–3.00); 95 %: 1.50–3.00 | 1,500 | 1 | 0.500 | 0.250 | 32.0 |"
    )
    assert cp < tdx
    assert "Missing: croc (install croc)." in text


def test_tables_that_differ_in_their_conditions_are_one_with_a_column_for_each() -> None:
    text = render([result(LINK)], {})
    assert text.count("### tdx") == 1
    assert "| control | link | contestant |" in text
    assert "| bbr | 1000 Mbit/s | tdx |" in text


def test_another_scale_is_pointed_out_everywhere() -> None:
    text = render([result(SINGLE, scale=0.1)], {})
    assert "**missed by 67 %** (at 0.1 of the size)" in text
    assert "**not the sizes of the targets**" in text


def test_a_report_of_nothing_has_every_target_as_not_measured() -> None:
    text = render([], {})
    assert text.count("not measured") == 14
    assert "Nothing has been measured yet." in text


@pytest.mark.parametrize(
    ("outcome", "count"),
    [(SINGLE, 1), (LINK, 1), (GROWTH, 1), (SWEEP, 1)],
    ids=["bars", "link", "growth", "sweep"],
)
def test_plots_are_drawn_the_same_every_time(outcome: Outcome, count: int, tmp_path: Path) -> None:
    drawn = draw(outcome, tmp_path / "plots")
    assert drawn == [f"plots/{outcome.scenario}-{number + 1}.svg" for number in range(count)]
    first = [(tmp_path / name).read_bytes() for name in drawn]
    assert all(b"<svg" in each and b"dc:date" not in each for each in first)
    draw(outcome, tmp_path / "plots")
    assert [(tmp_path / name).read_bytes() for name in drawn] == first


def test_a_plot_names_its_contestants_and_shows_a_share_where_there_is_one(tmp_path: Path) -> None:
    (name,) = draw(LINK, tmp_path)
    text = (tmp_path.parent / name).read_text()
    assert "tdx, cubic" in text
    assert "tdx, bbr" in text
    assert "share of link" in text


# --- the commands --------------------------------------------------------------


def test_the_report_is_made_from_the_results_alone(tmp_path: Path) -> None:
    results.write(result(SINGLE), tmp_path)
    assert main(["report", "--out", str(tmp_path)]) == 0
    assert "plots/single-1.svg" in (tmp_path / "REPORT.md").read_text()
    assert (tmp_path / "plots" / "single-1.svg").is_file()


def test_a_report_is_made_where_nothing_was_measured_yet(tmp_path: Path) -> None:
    assert main(["report", "--out", str(tmp_path / "new")]) == 0
    assert "Nothing has been measured yet." in (tmp_path / "new" / "REPORT.md").read_text()


def test_every_scenario_is_listed_with_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(len(line.split()) > 4 for line in lines)


def test_a_scenario_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["single", "nonsense"]) == 64
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--scale", "0"], ["--scale", "2"]])
def test_impossible_settings_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", *flags])


def test_the_machine_is_described(tmp_path: Path) -> None:
    described = describe(Settings(tmp_path, tmp_path), {"rsync": "3.2"})
    assert {"processor", "cores", "memory", "kernel", "disk", "Python", "OpenSSL", "tdx", "rsync"} <= set(
        described
    )
    assert all(described.values())
    assert filesystem_of(Path("/proc/self")) == "proc"


# --- comparing -----------------------------------------------------------------


def compared(before: tuple[float, ...], after: tuple[float, ...]) -> str:
    def holding(seconds: tuple[float, ...]) -> list[results.Result]:
        table = Table("All", 1, 1, {}, (series("tdx", *seconds),))
        return [result(Outcome("single", "", (), (table,)))]

    (change,) = comparing.changes(holding(before), holding(after))
    return change.verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((2.0, 2.1, 2.2, 2.0, 2.1), (1.0, 1.1, 1.0, 1.2, 1.1), "faster"),
        ((1.0, 1.1, 1.0, 1.2, 1.1), (2.0, 2.1, 2.2, 2.0, 2.1), "slower"),
        ((1.0, 2.0, 1.5, 1.2, 1.8), (1.1, 1.9, 1.4, 1.3, 1.7), "within the noise"),
        ((2.0, 2.0), (1.0, 1.0), "too few runs"),
    ],
)
def test_a_difference_counts_only_beyond_the_noise(
    before: tuple[float, ...], after: tuple[float, ...], verdict: str
) -> None:
    assert compared(before, after) == verdict


def test_the_compare_command_takes_results_and_folders_of_them(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    before = results.write(result(SINGLE), old)
    results.write(result(LINK), old)
    after = results.write(result(SINGLE, scale=0.5), new)
    for pair in ((before, after), (old, new), (old / "results", new / "results")):
        command = [sys.executable, str(ROOT / "perf" / "compare"), *map(str, pair)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "| single | Everybody | tdx | 2.00 (1.50–3.00) | 2.00 (1.50–3.00) | 1.00" in done.stdout
        assert "different scales" in done.stdout
        assert "wan" not in done.stdout


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_comparing_with_what_is_no_result_fails_with_a_message(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = results.write(result(SINGLE), tmp_path), tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    assert comparing.main([str(good), str(bad)]) == 1
    assert "perf/compare:" in capsys.readouterr().err
