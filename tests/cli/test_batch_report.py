from __future__ import annotations

import json
import os
import pty
import re
from pathlib import Path

import pytest

from support.batches import make_source, write_batch
from support.commands import RunningReceiver, Tdx
from tdx.errors import Interrupted, SourceError
from tdx_cli.batch_report import HEADING, Live, Part, say_table, summary_of
from tdx_cli.report import Ending, Failure, Overall
from tdx_cli.text import say_json

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")


def part(*endings: Ending, **more: object) -> Part:
    made = Part("photos", "nas:8390", began=True, seconds=1.25)
    for ending in endings:
        made.totals.add(ending)
    for key, value in more.items():
        setattr(made, key, value)
    return made


DONE = Ending("done", "a", 3 << 20, 2 << 20, 1 << 20, 1.0, "root", "a")
SAME = Ending("identical", "b", 10, 0, 0, 1.0, "root", "b")
SKIPPED = Ending("skipped", "c", 10, 0, 0, 1.0, None, "c")
FAILED = Ending("failed", "d", None, 5, 0, 0.1, error=Failure.of(SourceError("d: is gone")))
STOPPED = Failure.of(Interrupted("stopped"))
UNREACHED = Failure("unreachable", "cannot reach it", 69)


@pytest.mark.parametrize(
    ("made", "outcome", "code", "told"),
    [
        (part(DONE, SAME), "done", 0, "done"),
        (part(SAME, SKIPPED), "unchanged", 0, "unchanged"),
        (part(), "nothing", 0, "nothing"),
        (part(DONE, FAILED), "failed", 66, "failed, 1 of 2 files (66)"),
        (part(FAILED, FAILED), "failed", 66, "failed (66)"),
        (part(error=UNREACHED), "failed", 69, "failed (69)"),
        (part(DONE, stopped=True, error=STOPPED), "stopped", 75, "stopped (75)"),
        (part(DONE, FAILED, stopped=True, error=STOPPED), "stopped", 66, "stopped, 1 of 2 files (66)"),
        (part(began=False, error=STOPPED), "not begun", 75, "not begun (75)"),
    ],
)
def test_what_became_of_an_item_is_a_word_and_a_code(made: Part, outcome: str, code: int, told: str) -> None:
    assert (made.outcome, made.exit_code, made.row()[4]) == (outcome, code, told)


def test_a_row_has_what_people_look_for() -> None:
    assert part(DONE, SAME).row() == ("photos", "nas:8390", "2", "2.0 MiB", "done", "1.2")
    assert part(began=False).row()[-1] == "-"
    assert part(item="a\x1b[31mb").row()[0] == "a�[31mb"


def test_the_summary_has_every_part_and_their_sum(capsys: pytest.CaptureFixture[str]) -> None:
    say_json(summary_of("nightly", [part(DONE, FAILED), part(SAME)], 2.5, 66))
    event = json.loads(capsys.readouterr().out)
    parts = event.pop("items")
    assert event == {
        "event": "summary",
        "batch": "nightly",
        "files": 3,
        "done": 1,
        "identical": 1,
        "skipped": 0,
        "failed": 1,
        "folders": 0,
        "links": 0,
        "refused": 0,
        "sent_bytes": (2 << 20) + 5,
        "resumed_bytes": 1 << 20,
        "reused_bytes": 0,
        "seconds": 2.5,
        "exit_code": 66,
        "stages": {"sender": {}, "receiver": {}},
        "bottleneck": None,
        "retries": 0,
    }
    assert [each["outcome"] for each in parts] == ["failed", "unchanged"]


def test_without_a_terminal_the_table_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [part(DONE).row(), part(item="x", peer="desk", began=False).row()]
    say_table(HEADING, rows, ["green", "yellow"])
    assert capsys.readouterr().out == (
        "ITEM    PEER      FILES     SENT  OUTCOME    SECONDS\n"
        "photos  nas:8390      1  2.0 MiB  done           1.2\n"
        "x       desk          0      0 B  not begun        -\n"
    )


def shown_on_a_terminal(tdx: Tdx, *arguments: object, **env: str) -> bytes:
    """What a terminal of 160 columns gets on standard output."""
    ours, theirs = pty.openpty()
    try:
        done = tdx(*arguments, stdout=theirs, env=env)
        assert done.returncode == 0, done.stderr
        os.write(theirs, b"END")
        seen = b""
        while not seen.endswith(b"END"):
            seen += os.read(ours, 65536)
        return seen
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_the_table_has_colours_unless_they_are_not_wanted(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    make_source(tmp_path / "source")
    file = write_batch(
        tmp_path / "b.toml", [{"sources": ["source/**"]}], peer=receiver.address, conflict="skip"
    )
    seen = shown_on_a_terminal(tdx, "batch", file)
    assert COLOUR.search(seen)
    assert b"done" in seen
    assert receiver.address.encode() in seen
    plain = shown_on_a_terminal(tdx, "batch", file, NO_COLOR="1")
    assert b"unchanged" in plain
    assert not COLOUR.search(plain)
    assert b"\x1b" not in shown_on_a_terminal(tdx, "batch", file, TERM="dumb")


class Bar:
    """Stands in for the live line, and keeps what it was to show."""

    def __init__(self) -> None:
        self.drawn: list[Overall] = []
        self.cleared = 0

    def overall(self, so_far: Overall, elapsed: float) -> None:
        self.drawn.append(so_far)

    def clear(self) -> None:
        self.cleared += 1


def test_the_live_line_tells_of_all_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Bar()
    monkeypatch.setattr("tdx_cli.batch_report.TerminalReport", lambda **_: bar)
    live = Live()
    first, second = live.part(0.0), live.part(5.0)
    first.overall(Overall(1, 2, 10, 20, 10, "network"), 1.0)
    assert bar.drawn[-1] == Overall(1, None, 10, None, 10, "network")
    second.overall(Overall(3, 4, 30, 40, 25, "CPU"), 1.0)
    assert bar.drawn[-1] == Overall(4, 6, 40, 60, 35, "CPU")
    first.overall(Overall(2, 2, 20, 20, 20, None), 6.01)  # too soon after the last picture
    assert len(bar.drawn) == 2
    second.ended(DONE)
    live.clear()
    assert bar.cleared == 2
    assert first.interval(0.0) is not None
