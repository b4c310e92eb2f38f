from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx, parsed
from tdx.control.items import Folder, Item, Link, PartEnded
from tdx.control.progress import Tally
from tdx.errors import Exists
from tdx.model import Stages
from tdx_cli.report import Ending, Failure, JsonReport, Report, Several, TextReport, Totals, json_interval

ROOT = "xxh3-128:4194304:" + "0" * 32
DONE = Ending(
    "done",
    "a",
    3 << 30,
    2 << 30,
    1 << 30,
    2.0,
    ROOT,
    "a (1)",
    sender=Stages(read=0.5),
    receiver=Stages(write=1.25),
    bottleneck="receiver disk",
    retries=2,
)
FOLDER = Folder("/src/d", "d", 0, 0o755)
LINK = Link("/src/l", "l", 0, "d")
FAILED = Ending("failed", "b", None, 5, 0, 0.1, error=Failure.of(Exists("b: it is there")))


def totals(*endings: Ending) -> Totals:
    sum_up = Totals()
    for each in endings:
        sum_up.add(each)
    return sum_up


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_result_line_has_these_keys_in_this_order(capsys: pytest.CaptureFixture[str]) -> None:
    JsonReport("peer:1").ended(DONE)
    (line,) = lines(capsys)
    assert line == (
        '{"event":"done","name":"a","size":3221225472,"sent_bytes":2147483648,"resumed_bytes":1073741824,'
        f'"reused_bytes":0,"seconds":2.0,"root":"{ROOT}","path":"a (1)","error":null,'
        '"stages":{"sender":{"read":0.5},"receiver":{"write":1.25}},"bottleneck":"receiver disk","retries":2}'
    )


def test_a_failure_says_why_in_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    JsonReport("peer:1").ended(FAILED)
    (line,) = lines(capsys)
    assert line == (
        '{"event":"failed","name":"b","size":null,"sent_bytes":5,"resumed_bytes":0,"reused_bytes":0,'
        '"seconds":0.1,"root":null,"path":null,'
        '"error":{"code":"exists","message":"b: it is there","exit_code":73},'
        '"stages":{"sender":{},"receiver":{}},"bottleneck":null,"retries":0}'
    )


def test_the_summary_counts_and_carries_the_worst_code(capsys: pytest.CaptureFixture[str]) -> None:
    JsonReport("peer:1").summary(totals(DONE, FAILED, DONE), 4.0)
    (line,) = lines(capsys)
    assert json.loads(line) == {
        "event": "summary",
        "files": 3,
        "done": 2,
        "identical": 0,
        "skipped": 0,
        "failed": 1,
        "folders": 0,
        "links": 0,
        "refused": 0,
        "sent_bytes": (4 << 30) + 5,
        "resumed_bytes": 2 << 30,
        "reused_bytes": 0,
        "seconds": 4.0,
        "exit_code": 73,
        "stages": {"sender": {"read": 1.0}, "receiver": {"write": 2.5}},
        "bottleneck": None,
        "retries": 4,
    }


def test_progress_tells_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(total=100, phase="sending", sent=10, resumed=50, reused=20, checked=0, retries=2)
    JsonReport("peer:1").progress(Item("a", "a"), tally, 0.25, "network")
    (line,) = lines(capsys)
    assert json.loads(line) == {
        "event": "progress",
        "name": "a",
        "size": 100,
        "phase": "sending",
        "sent_bytes": 10,
        "resumed_bytes": 50,
        "reused_bytes": 20,
        "checked_bytes": 0,
        "retries": 2,
        "seconds": 0.25,
        "bottleneck": "network",
    }


def test_progress_comes_seldom_where_it_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    report, tally = JsonReport("peer:1"), Tally()
    for elapsed in (100.0, 100.5, 101.9, 102.1, 102.2):
        report.progress(Item("a", "a"), tally, elapsed, None)
    assert [json.loads(line)["seconds"] for line in lines(capsys)] == [100.0, 102.1]


def test_a_new_file_begins_with_fresh_progress(capsys: pytest.CaptureFixture[str]) -> None:
    report, item = JsonReport("peer:1"), Item("a", "a")
    report.progress(item, Tally(), 1000.0, None)
    report.started(item)
    report.progress(item, Tally(), 0.1, None)
    events = [json.loads(line) for line in lines(capsys)]
    assert [event["event"] for event in events] == ["progress", "started", "progress"]
    assert events[1] == {"event": "started", "name": "a", "size": None, "peer": "peer:1"}


@pytest.mark.parametrize(("elapsed", "seconds"), [(0.0, 0.1), (5.0, 0.1), (60.0, 1.2), (1e6, 10.0)])
def test_the_interval_of_progress_grows_with_the_time(elapsed: float, seconds: float) -> None:
    assert json_interval(elapsed) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        (DONE, "a -> a (1) at peer:1  3.0 GiB in 2.0 s (1.0 GiB/s), 1.0 GiB resumed"),
        (Ending("done", "a", 10, 10, 0, 0.5, ROOT, "a"), "a -> a at peer:1  10 B in 0.5 s (20 B/s)"),
        (Ending("done", "a", 10, 10, 0, 0.5, ROOT, "a", together=True), "a -> a at peer:1  10 B"),
        (
            Ending("done", "a", 3, 1, 0, 1.0, ROOT, "a", reused_bytes=2),
            "a -> a at peer:1  3 B in 1.0 s (1 B/s), 1 B sent, 2 B taken from the earlier version",
        ),
        (Ending("identical", "a", 10, 0, 0, 0.5, ROOT, "a"), "a: already at peer:1 as a, identical"),
        (Ending("skipped", "a\n", 10, 0, 0, 0.5, None, "a\n"), "a�: left out, peer:1 already has a�"),
    ],
)
def test_people_get_one_line_a_file(ending: Ending, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    TextReport("peer:1").ended(ending)
    assert lines(capsys) == [line]


def test_people_who_waited_for_long_are_told_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    for seconds in (4.9, 5.0):
        TextReport("peer:1").ended(replace(DONE, seconds=seconds))
    for seconds in (4.9, 5.0):
        TextReport("peer:1").summary(replace(totals(DONE), bottleneck="network"), seconds)
    assert [line.rpartition(", ")[2] for line in lines(capsys)] == [
        "1.0 GiB resumed",
        "limited by receiver disk",
        "1 file: 1 done; 2.0 GiB sent in 4.9 s",
        "limited by network",
    ]


def test_files_that_travel_together_share_what_it_took_and_the_sum_has_all_of_it(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(20):
        (folder / f"f{number}").write_bytes(bytes([number]) * (1000 * number))
    done = tdx("push", "-r", folder, receiver.address, "--json")
    *events, summary = parsed(done.stdout)
    files = [event for event in events if event["event"] == "done"]
    assert len(files) == summary["done"] == 20
    for end, stage in (("sender", "read"), ("receiver", "write"), ("receiver", "sync")):
        took = [event["stages"][end].get(stage, 0) for event in files]
        assert sum(took) == pytest.approx(summary["stages"][end][stage], abs=20e-6)
    shares = {event["size"]: event["stages"]["receiver"].get("sync", 0) for event in files}
    assert shares[19000] == pytest.approx(19 * shares[1000], abs=20e-6)


def test_a_failure_is_left_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    TextReport("peer:1").ended(FAILED)
    assert lines(capsys) == []


def test_of_several_files_people_get_lines_of_what_was_sent_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for event in ("done", "identical", "skipped"):
        TextReport("peer:1", brief=True).ended(Ending(event, event, 10, 0, 0, 0.5, ROOT, "a", together=True))
    TextReport("peer:1", brief=True).part_ended(PartEnded(FOLDER, "made", "d"))
    assert lines(capsys) == ["done -> a at peer:1  10 B"]


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        ("made", "d: folder made at peer:1 as in/d"),
        ("same", "d: folder already at peer:1 as in/d"),
        ("skipped", "d: folder left out, taken at peer:1 as in/d"),
    ],
)
def test_people_who_want_to_know_all_get_a_line_a_folder(
    outcome: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    TextReport("peer:1").part_ended(PartEnded(FOLDER, outcome, "in/d"))
    TextReport("peer:1").part_ended(PartEnded(FOLDER, "failed", error=Exists("d: it is there")))
    assert lines(capsys) == [line]


def test_a_folder_and_a_link_are_events_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    JsonReport("peer:1").part_ended(PartEnded(FOLDER, "made", "in/d"))
    JsonReport("peer:1").part_ended(PartEnded(LINK, "failed", error=Exists("l: it is there")))
    assert lines(capsys) == [
        '{"event":"folder","name":"d","outcome":"made","path":"in/d","error":null}',
        (
            '{"event":"link","name":"l","outcome":"failed","path":null,'
            '"error":{"code":"exists","message":"l: it is there","exit_code":73}}'
        ),
    ]


def test_folders_and_links_are_counted_apart_from_files(capsys: pytest.CaptureFixture[str]) -> None:
    both = totals(DONE)
    for part in (FOLDER, FOLDER, LINK):
        both.add_part(PartEnded(part, "same", part.name))
    both.add_part(PartEnded(LINK, "failed", error=Exists("l: it is there")))
    Several([TextReport("peer:1"), JsonReport("peer:1")]).summary(both, 4.0)
    line, event = lines(capsys)
    assert line == "1 file: 1 done; 2 folders; 1 link; 1 folders or links refused; 2.0 GiB sent in 4.0 s"
    summary = json.loads(event)
    assert [summary[key] for key in ("files", "folders", "links", "refused", "failed", "exit_code")] == [
        *(1, 2, 1, 1, 0, 73)
    ]


def test_people_get_a_sum(capsys: pytest.CaptureFixture[str]) -> None:
    TextReport("peer:1").summary(totals(DONE, FAILED, DONE), 4.0)
    assert lines(capsys) == ["3 files: 2 done, 1 failed; 4.0 GiB sent in 4.0 s"]


def test_several_reports_are_told_in_order_and_as_often_as_the_most_eager_wants() -> None:
    told: list[str] = []

    class Telling(Report):
        def __init__(self, name: str, seconds: float | None) -> None:
            self._name, self._seconds = name, seconds

        def interval(self, elapsed: float) -> float | None:
            return self._seconds

        def ended(self, ending: Ending) -> None:
            told.append(self._name)

    several = Several([Telling("bar", 0.2), Telling("lines", None), Telling("events", 3.0)])
    several.ended(DONE)
    assert told == ["bar", "lines", "events"]
    assert several.interval(1.0) == 0.2
    assert Several([Report()]).interval(1.0) is None
