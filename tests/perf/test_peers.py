"""Every peer of the benchmarks really copies, and leaves nothing running and nothing behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.content import count_of, folder_of, random_file, same_content
from perf.contestants.copyparty import Copyparty
from perf.contestants.croc import Croc
from perf.contestants.nginx import Nginx
from perf.contestants.programs import listening, reserved
from perf.contestants.rclone import Rclone
from perf.contestants.rsync import Rsync
from perf.contestants.ssh import Scp
from perf.model import Contestant, Missing, Running
from perf.processes import timed, wait_for_newcomers
from support.processes import wait_until

PEERS: tuple[Contestant, ...] = (
    Nginx(),
    Rsync(),
    Rsync(then_sync=True),
    Scp("aes128-gcm@openssh.com"),
    Scp("aes256-gcm@openssh.com"),
    Scp(None),
    Rclone(),
    Copyparty(),
    Croc(),
)
MIB = 1 << 20


@pytest.fixture(params=PEERS, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> Contestant:
    found: Contestant = request.param
    return found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


@pytest.fixture
def running(peer: Contestant, tmp_path: Path, target: Path) -> Iterator[Running]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    try:
        with peer.running(home, target) as found:
            yield found
    except Missing as missing:
        pytest.skip(str(missing))
    assert mentioning(tmp_path) == [], "a process is left"


def mentioning(folder: Path) -> list[str]:
    """The command lines of all processes that have to do with a folder."""
    found: list[str] = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            if str(folder) in line:
                found.append(line)
    return found


def copy(running: Running, source: Path) -> Path:
    timed(running.command(source), longest=60)
    return running.arrived(source)


def test_a_file_arrives_as_often_as_it_is_sent(running: Running, tmp_path: Path, target: Path) -> None:
    source = random_file(tmp_path / "a file.bin", MIB + 17)
    for _ in range(2):
        arrived = copy(running, source)
        assert arrived.is_relative_to(target)
        assert same_content(source, arrived)
        arrived.unlink()
    wait_for_newcomers(running.servers, running.servers, patience=1)
    assert [path for path in target.rglob("*") if path.is_file()] == []


def test_a_folder_arrives_or_is_known_not_to(
    peer: Contestant, running: Running, tmp_path: Path, target: Path
) -> None:
    source = folder_of(tmp_path / "a folder", [100, 0, 16384, 300_000, 5], per_folder=2)
    if isinstance(peer, Nginx):
        with pytest.raises(Missing, match="not folders"):
            running.command(source)
        return
    arrived = copy(running, source)
    assert same_content(source, arrived)
    assert count_of(target) == count_of(source) == 5


def test_it_says_which_version_it_is(peer: Contestant, running: Running) -> None:
    version = getattr(peer, "version", None)
    assert version is not None
    assert any(character.isdecimal() for character in version())


@pytest.mark.parametrize("peer", [Rsync()], indirect=True, ids=["rsync"])
def test_a_copy_that_fails_is_no_figure(running: Running, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gone"):
        timed(running.command(tmp_path / "gone"), longest=60)


@pytest.mark.parametrize("made", [Copyparty, Croc])
def test_what_was_not_built_is_missing(
    made: type[Copyparty | Croc], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDX_TEST_CACHE", str(tmp_path))
    with pytest.raises(Missing, match="make perf-deps"), made().running(tmp_path, tmp_path):
        pass


@pytest.mark.parametrize("made", [Nginx, Rsync, Scp, Rclone])
def test_what_is_not_installed_is_missing(
    made: type[Nginx | Rsync | Scp | Rclone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.contestants.programs.shutil.which", lambda *_, **__: None)
    with pytest.raises(Missing, match=r"install .*, or run `make perf-deps` as root"):
        made().version()


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with (
        reserved() as port,
        pytest.raises(RuntimeError, match="out of order"),
        listening(["sh", "-c", "echo out of order >&2; exit 1"], tmp_path / "log", port),
    ):
        pass


def test_a_server_ends_with_the_processes_it_started(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "import socket, subprocess, sys\n"
        "subprocess.Popen(['sleep', '600'], cwd=sys.argv[2])\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True: listener.accept()\n"
    )

    def below() -> list[str]:
        done = subprocess.run(
            ["find", "/proc", "-maxdepth", "2", "-name", "cwd", "-lname", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    with (
        reserved() as port,
        listening(["python3", str(script), str(port), str(tmp_path)], tmp_path / "log", port),
    ):
        assert len(below()) == 1
    wait_until(lambda: not below(), "nobody is left")
