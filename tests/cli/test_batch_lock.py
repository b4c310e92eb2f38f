from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tdx.errors import Busy, ConfigError
from tdx_cli.batch_lock import FOLDER, lock_name, only_run_of

HOLD = """
import sys, time
from pathlib import Path
from tdx_cli.batch_lock import only_run_of
with only_run_of(Path(sys.argv[1]), Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def taken(file: Path, state: Path) -> bool:
    with contextlib.suppress(Busy), only_run_of(file, state):
        return False
    return True


def test_a_batch_is_run_once_at_a_time_and_again_afterwards(tmp_path: Path) -> None:
    file, state = tmp_path / "a.toml", tmp_path / "state"
    with only_run_of(file, state):
        assert taken(file, state)
        assert not taken(tmp_path / "b.toml", state)
        assert not taken(file, tmp_path / "other-state")
    assert not taken(file, state)
    (lock,) = (state / FOLDER).glob(lock_name(file))
    assert lock.read_text() == ""
    assert (state / FOLDER).stat().st_mode & 0o077 == 0


def test_who_is_at_it_is_told(tmp_path: Path) -> None:
    file, state = tmp_path / "a.toml", tmp_path / "state"
    with only_run_of(file, state), pytest.raises(Busy) as refused, only_run_of(file, state):
        pass
    assert refused.value.exit_code == 75
    holder = f"is being run already by process {os.getpid()} on {os.uname().nodename} since 20"
    assert holder in refused.value.message


def test_a_run_that_failed_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_run_of(tmp_path / "a.toml", tmp_path / "state"):
        raise KeyError
    assert not taken(tmp_path / "a.toml", tmp_path / "state")


def test_a_holder_that_is_killed_lets_go(tmp_path: Path) -> None:
    file, state = tmp_path / "a.toml", tmp_path / "state"
    command = [sys.executable, "-c", HOLD, str(file), str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {holder.pid} "), only_run_of(file, state):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with (
        only_run_of(file, state),
        pytest.raises(Busy, match=f"process {os.getpid()} "),
        only_run_of(file, state),
    ):
        pass


def test_a_batch_goes_by_the_folder_that_it_really_lies_in(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lock_name(tmp_path / "link" / "a.toml") == lock_name(tmp_path / "real" / "a.toml")
    assert lock_name(tmp_path / "a.toml") != lock_name(tmp_path / "real" / "a.toml")


def test_a_lock_that_cannot_be_made_is_a_matter_of_the_configuration(tmp_path: Path) -> None:
    file, state = tmp_path / "a.toml", tmp_path / "state"
    assert not taken(file, state)
    lock = state / FOLDER / lock_name(file)
    lock.unlink()
    lock.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="cannot be opened"), only_run_of(file, state):
        pass


def test_a_lock_that_the_filesystem_does_not_give_is_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigError, match="No locks available"), only_run_of(tmp_path / "a", tmp_path / "s"):
        pass
