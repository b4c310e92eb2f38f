from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from support.batches import write_batch
from support.commands import PATIENCE, RunningReceiver, Tdx
from tdx.integrity import MIB
from tdx_cli.progress import PATIENCE as BEFORE_A_LINE
from tdx_cli.progress import TerminalReport, percentage

COLOUR = re.compile(rb"\x1b\[[0-9;]*3[0-7]m")


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 10, "0%"), (999, 1000, "99%"), (1000, 1000, "100%"), (0, 0, "100%"), (5, None, "")],
)
def test_a_percentage_is_100_only_at_the_end(done: int, total: int | None, text: str) -> None:
    assert percentage(done, total) == text


def test_a_short_file_gets_no_line_and_a_long_one_few_pictures() -> None:
    report = TerminalReport(several=False)
    assert report.interval(0.0) == BEFORE_A_LINE
    assert report.interval(100.0) == pytest.approx(0.2)


def on_terminal(tdx: Tdx, *arguments: object, **env: str) -> tuple[bytes, bytes]:
    """Standard output, and what a terminal on standard error got."""
    ours, theirs = pty.openpty()
    process = tdx.start(*arguments, env=env, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how a terminal says that nobody is left
                break
            if not part:
                break
            seen += part
    finally:
        os.close(ours)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return output, seen


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(12 * MIB))
    return path


def test_a_terminal_shows_how_far_how_fast_how_long_and_why(
    tdx: Tdx, receiver: RunningReceiver, source: Path
) -> None:
    output, seen = on_terminal(tdx, "push", source, receiver.address, "--limit-rate", "8M")
    assert re.search(rb"\d%", seen)
    assert re.search(rb"MiB of 12\.0 MiB", seen)
    assert re.search(rb"[0-9.]+ [MK]iB/s", seen)
    assert re.search(rb" s left", seen)
    assert COLOUR.search(seen)
    assert output.startswith(b"big -> big at ")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_width_of_a_terminal_hides_the_figures(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path, columns: str
) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(60):
        (folder / f"f{number:02}").write_bytes(os.urandom(200_000))
    _, seen = on_terminal(
        tdx, "push", "-r", folder, receiver.address, "--limit-rate", "8M", COLUMNS=columns, NO_COLOR="1"
    )
    line = rb"of 60 fil\S+ +\d+% +.*[KM]iB of 11\.4 MiB +[0-9.]+ MiB/s +[0-9.]+ s left +limited by"
    assert re.search(line, re.sub(rb"\x1b\[[0-9;]*m", b"", seen))


def test_no_color_means_no_colour(tdx: Tdx, receiver: RunningReceiver, source: Path) -> None:
    _, seen = on_terminal(tdx, "push", source, receiver.address, "--limit-rate", "8M", NO_COLOR="1")
    assert re.search(rb"\d%", seen)
    assert COLOUR.search(seen) is None


def test_quiet_shows_nothing_on_a_terminal_either(tdx: Tdx, receiver: RunningReceiver, source: Path) -> None:
    assert on_terminal(tdx, "push", "-q", source, receiver.address, "--limit-rate", "8M") == (b"", b"")


def test_without_a_terminal_nothing_is_drawn_and_rich_is_not_imported(
    tdx: Tdx, receiver: RunningReceiver, source: Path
) -> None:
    done = tdx("push", source, receiver.address, "--limit-rate", "8M", env={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert all(line.startswith("import time:") for line in done.stderr.splitlines())
    assert "tdx.control.sender" in imported
    assert not {"rich", "uvloop", "prometheus_client", "sqlite3"} & imported


def test_a_terminal_shows_how_far_a_run_of_many_files_is(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(60):
        (folder / f"f{number:02}").write_bytes(os.urandom(200_000))
    output, seen = on_terminal(tdx, "push", "-r", folder, receiver.address, "--limit-rate", "8M")
    assert re.search(rb"of 60 files", seen)
    assert re.search(rb"\d%", seen)
    assert re.search(rb"MiB of 11\.4 MiB", seen)
    assert re.search(rb" s left", seen)
    assert output.count(b"\n") == 61


def test_a_terminal_shows_how_far_all_items_of_a_batch_are(
    tdx: Tdx, receiver: RunningReceiver, source: Path
) -> None:
    items = [{"sources": ["big"], "into": name, "limit_rate": "6M"} for name in "ab"]
    file = write_batch(
        source.parent / "b.toml", items, "parallel = 2", peer=receiver.address, conflict="skip"
    )
    output, seen = on_terminal(tdx, "batch", file, NO_COLOR="1")
    assert re.search(rb"0 of 2 files +\d+% .*MiB of 24\.0 MiB", seen)
    assert output.count(b"\n") == 3
    assert on_terminal(tdx, "batch", "-q", file) == (b"", b"")
