"""Taildrop and tdx over the same tailnet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.content import random_file, same_content
from perf.contestants.tailscale import Mesh, MeshTdx, Taildrop, mesh
from perf.model import Contestant, Missing, Settings
from perf.processes import timed
from perf.scenarios import mesh as scenario


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    try:
        with mesh(tmp_path_factory.mktemp("mesh") / "logs", Path("/tmp")) as found:
            yield found
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("kind", [Taildrop, MeshTdx])
def test_a_file_arrives_as_often_as_it_is_sent(
    nodes: Mesh, tmp_path: Path, kind: type[Taildrop | MeshTdx]
) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    home.mkdir()
    target.mkdir()
    source = random_file(tmp_path / "a file.bin", (1 << 20) + 17)
    contestant: Contestant = kind(nodes)
    with contestant.running(home, target) as running:
        for _ in range(2):
            timed(running.command(source), longest=60)
            arrived = running.arrived(source)
            assert same_content(source, arrived)
            arrived.unlink()


def test_without_the_programs_of_a_tailnet_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDX_TEST_CACHE", str(tmp_path / "none"))
    with pytest.raises(Missing, match="make test-tailnet"):
        scenario.run(Settings(tmp_path, tmp_path))
