"""A Unix socket in the filesystem: one process's at a time, its own user's alone, however long its path."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.receiving import in_background
from tdx.control.unix_socket import LONGEST, UnixListener, connect, uid_of
from tdx.errors import ConfigError


def leave_stale(path: Path) -> None:
    """As a process that was killed does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_it_takes_connections_of_its_own_user_alone_and_is_gone_afterwards(path: Path) -> None:
    before = os.umask(0)
    try:
        listener = UnixListener(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with connect(path, 5.0) as client:
        taken, _ = listener.sock.accept()
        with taken:
            assert uid_of(taken) == uid_of(client) == os.getuid()
    listener.close()
    listener.close()
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_process_left_is_replaced(path: Path) -> None:
    leave_stale(path)
    listener = UnixListener(path)
    connect(path, 5.0).close()
    listener.close()


def test_a_socket_that_somebody_answers_at_is_left_to_them(path: Path) -> None:
    first = UnixListener(path)
    with pytest.raises(ConfigError, match="another process does; give each receiver its own with --socket"):
        UnixListener(path)
    connect(path, 5.0).close()
    first.close()


def test_a_socket_whose_queue_is_full_is_not_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(0)
        with connect(path, 5.0), pytest.raises(ConfigError, match="another process does"):
            UnixListener(path)


def test_what_is_no_socket_is_not_removed(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ConfigError, match="a file is there that is no socket"):
        UnixListener(path)
    assert path.read_text() == "mine"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    leave_stale(tmp_path / "theirs")
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="no socket"):
        UnixListener(path)
    assert (tmp_path / "theirs").is_socket()


def test_what_another_process_put_there_meanwhile_is_not_taken_away(path: Path) -> None:
    listener = UnixListener(path)
    path.unlink()
    leave_stale(path)
    listener.close()
    assert path.is_socket()


@pytest.mark.parametrize("size", [LONGEST - 1, LONGEST, LONGEST + 1, 500])
def test_a_path_may_be_longer_than_an_address(size: int, tmp_path: Path) -> None:
    folder = tmp_path
    while (left := size - len(str(folder)) - len("/s")) > 0:
        folder /= "d" * min(max(left - 1, 1), 200)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "s"
    assert len(str(path)) in (size, size + 1)
    leave = UnixListener(path)
    with pytest.raises(ConfigError, match="another process"):
        UnixListener(path)
    with connect(path, 5.0):
        leave.sock.accept()[0].close()
    leave.close()
    assert not path.exists()


def test_a_name_that_no_address_has_room_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no room"):
        UnixListener(tmp_path / ("n" * 100))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its folder cannot be opened: No such file"):
        UnixListener(tmp_path / "missing" / "s")


@pytest.fixture
def locked(path: Path) -> Iterator[int]:
    """The folder, which another process is putting a socket into."""
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield folder
    os.close(folder)


def test_the_look_at_a_stale_one_and_its_removal_wait_for_whoever_is_at_that(path: Path, locked: int) -> None:
    leave_stale(path)
    with in_background(lambda: UnixListener(path)) as coming:
        assert not wait([coming], timeout=0.2).done
        fcntl.flock(locked, fcntl.LOCK_UN)
        coming.result(30).close()


def test_a_lock_that_nobody_gives_back_is_not_waited_for_for_ever(
    path: Path, locked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdx.control.unix_socket.LOCK_SECONDS", 0.05)
    UnixListener(path).close()


CONTEND = """
import sys
from pathlib import Path
from tdx.control.unix_socket import UnixListener
from tdx.errors import ConfigError
print("ready", flush=True)
sys.stdin.readline()
try:
    listener = UnixListener(Path(sys.argv[1]))
except ConfigError:
    print("refused", flush=True)
else:
    print("got it", flush=True)
    sys.stdin.readline()
    listener.close()
"""


def test_of_several_that_find_it_stale_at_once_one_gets_it(path: Path) -> None:
    leave_stale(path)
    command, pipe = [sys.executable, "-c", CONTEND, str(path)], subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        rivals = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env))
            for _ in range(4)
        ]

        def heard(rival: subprocess.Popen[str]) -> str:
            assert rival.stdout
            return rival.stdout.readline().strip()

        def tell(rival: subprocess.Popen[str], word: str) -> None:
            assert rival.stdin
            rival.stdin.write(word + "\n")
            rival.stdin.flush()

        assert [heard(rival) for rival in rivals] == ["ready"] * 4
        for rival in rivals:
            tell(rival, "go")
        said = [heard(rival) for rival in rivals]
        assert sorted(said) == ["got it", *["refused"] * 3]
        connect(path, 5.0).close()
        tell(rivals[said.index("got it")], "end")  # the others have ended
        assert [rival.wait(30) for rival in rivals] == [0] * 4
    assert not path.exists()
