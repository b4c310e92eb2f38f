from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from support.commands import PATIENCE, Tdx
from tdx_cli.demo import DemoFailed, Pushed, fill
from tdx_cli.main import run


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that contain ``text``."""
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def test_the_demonstration_succeeds_and_leaves_nothing(tdx: Tdx, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    done = tdx("demo", "--size", "64M", "--dir", place)
    assert (done.returncode, done.stderr) == (0, "")
    digests = re.findall(r"sha256 of the \w+: ([0-9a-f]{64})", done.stdout)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert "killed (SIGKILL)" in done.stdout
    assert re.search(r"held bytes that were sent again +0 B", done.stdout)
    assert list(place.iterdir()) == []
    assert processes_with(str(place)) == []


def test_an_interrupted_demonstration_leaves_nothing_either(tdx: Tdx, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    process = tdx.start(
        "demo", "--size", "256M", "--dir", place, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"2."):
            break
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert error == b"tdx: interrupted\n"
    assert list(place.iterdir()) == []
    assert processes_with(str(place)) == []


def test_a_disk_without_room_is_73_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--size", "100000T", "--dir", str(tmp_path)]) == 73
    assert "are needed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_filling_writes_exactly_the_size(tmp_path: Path) -> None:
    size = (8 << 20) * 2 + 5
    fill(tmp_path / "f", size)
    content = (tmp_path / "f").read_bytes()
    assert len(content) == size
    assert content[-5:] != bytes(5)
    assert content[: 8 << 20] != content[8 << 20 : 16 << 20]


def test_a_disk_that_fills_up_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        fill(tmp_path / "f", 100 << 20)


def test_a_push_that_told_nothing_is_a_failed_demonstration() -> None:
    with pytest.raises(DemoFailed):
        Pushed(None, 0, None, 1.0, -9).figure("sent_bytes")
    assert Pushed({"sent_bytes": 5}, 0, None, 1.0, 0).figure("sent_bytes") == 5
