"""The floor of the benchmarks moves whole files, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.content import MIB, random_file, same_content
from perf.contestants.bare import Bare
from perf.processes import timed


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 17])
def test_a_file_arrives_as_often_as_it_is_sent(tmp_path: Path, size: int) -> None:
    source, target = random_file(tmp_path / "a file.bin", size), tmp_path / "target"
    target.mkdir()
    with Bare().running(tmp_path, target) as running:
        for _ in range(2):
            timed(running.command(source), longest=60)
            arrived = running.arrived(source)
            assert same_content(source, arrived)
            arrived.unlink()


def test_a_file_that_is_not_acknowledged_is_no_figure(tmp_path: Path) -> None:
    source = random_file(tmp_path / "source", MIB)
    with Bare().running(tmp_path, tmp_path / "gone") as running, pytest.raises(RuntimeError, match="not ack"):
        timed(running.command(source), longest=60)
