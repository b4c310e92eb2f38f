"""A program of the receiver's owner runs for each file that was published."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import wait_until
from tdx.config import ServeConfig
from tdx.control import on_receive
from tdx.control.on_receive import DROPPED, FAILED, OK, OUTPUT_AT_MOST, TIMEOUT, Programs, clean
from tdx.errors import ConfigError
from tdx.metrics import Metrics
from tdx.model import FileName, Identity, Outcome, Owner, Receipt, UploadId

NASTY = "$(touch x); `id` 'q\"\\\N{SNOWMAN} -rf"
SENDER = Identity(Owner("tailscale:n1"), "tailscale", "alice@example.com", "laptop")


def receipt(path: str = "a b", name: str = "a b") -> Receipt:
    return Receipt(
        UploadId("0" * 32),
        Owner("tailscale:n1"),
        None,
        FileName(name),
        path,
        7,
        "xxh3-128:4194304:00",
        True,
        Outcome.PUBLISHED,
        0.0,
    )


class Running:
    """Programs for a folder, closed at the end of the test."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "inbox"
        self.folder.mkdir()
        self.metrics = Metrics("1")
        self.open: list[Programs] = []

    def __call__(self, *command: str, env: dict[str, str] | None = None, **settings: Any) -> Programs:
        config = ServeConfig(self.folder, self.folder.parent / "state", on_receive=command, **settings)
        programs = Programs(config, self.metrics, {"PATH": os.environ["PATH"]} if env is None else env)
        self.open.append(programs)
        return programs

    def results(self) -> dict[str, float]:
        samples = self.metrics.hooks.family().samples
        return {sample.labels[0]: sample.value for sample in samples if sample.value}

    def await_results(self, **expected: int) -> None:
        wait_until(lambda: sum(self.results().values()) >= sum(expected.values()), "all have ended")
        assert self.results() == expected


@pytest.fixture
def programs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Running]:
    caplog.set_level(logging.INFO)
    made = Running(tmp_path)
    yield made
    for each in made.open:
        each.close(0.0)


def script(folder: Path, text: str) -> tuple[str, ...]:
    """A command that runs this Python text."""
    file = folder / "script.py"
    file.write_text(text)
    return (sys.executable, str(file))


def test_a_program_is_told_all_in_its_environment_and_nothing_else(programs: Running, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    told = script(
        tmp_path,
        "import json, os, sys\n"
        "seen = {'env': dict(os.environ), 'cwd': os.getcwd(), 'in': sys.stdin.read(), 'args': sys.argv[1:]}\n"
        f"open({str(seen)!r}, 'w').write(json.dumps(seen))\n",
    )
    env = {
        "PATH": ".:/usr/bin::bin:/bin",
        "HOME": "/h",
        "LC_ALL": "C.UTF-8",
        "NOTIFY_SOCKET": "@x",
        "SECRET": "s",
    }
    programs(*told, "x y", env=env).tell(receipt(f"d/{NASTY} (1)", f"d/{NASTY}"), SENDER)
    programs.await_results(ok=1)
    found = json.loads(seen.read_text())
    assert (found["cwd"], found["in"], found["args"]) == (str(programs.folder), "", ["x y"])
    assert found["env"] == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/h",
        "LC_ALL": "C.UTF-8",
        "TDX_PATH": f"{programs.folder}/d/{NASTY} (1)",
        "TDX_NAME": f"d/{NASTY}",
        "TDX_SIZE": "7",
        "TDX_ROOT": "xxh3-128:4194304:00",
        "TDX_OWNER": "tailscale:n1",
        "TDX_PEER": "laptop",
        "TDX_USER": "alice@example.com",
        "TDX_OUTCOME": "published",
        "TDX_UPLOAD": "0" * 32,
    }


def test_who_sent_it_may_have_been_forgotten(programs: Running) -> None:
    programs("sh", "-c", 'test "$TDX_PEER$TDX_USER" = ""').tell(receipt(), None)
    programs.await_results(ok=1)


def test_a_failure_is_logged_with_its_upload_and_what_the_program_said(
    programs: Running, caplog: pytest.LogCaptureFixture
) -> None:
    programs("sh", "-c", "echo one; printf 'two\\033[2J' >&2; exit 3").tell(receipt(), SENDER)
    programs.await_results(failed=1)
    assert f"upload {'0' * 32} (a b): on_receive ended (exit 3)" in caplog.messages
    assert f"upload {'0' * 32}: on_receive said: two\N{REPLACEMENT CHARACTER}[2J" in caplog.messages
    assert f"upload {'0' * 32}: on_receive said: one" in caplog.messages


def test_a_program_that_vanishes_after_the_start_is_a_failure(programs: Running, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    running = programs(str(program))
    program.unlink()
    running.tell(receipt(), SENDER)
    programs.await_results(failed=1)


def test_output_without_end_is_read_and_dropped(programs: Running, caplog: pytest.LogCaptureFixture) -> None:
    programs("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo end").tell(receipt(), SENDER)
    programs.await_results(ok=1)
    wait_until(lambda: any("said" in each for each in caplog.messages), "it is logged")
    assert sum(each.count("x") for each in caplog.messages if "said" in each) == OUTPUT_AT_MOST


def test_what_a_program_leaves_running_holds_nothing_up(programs: Running) -> None:
    programs("sh", "-c", "sleep 300 & echo $! > pid; exit 0").tell(receipt(), SENDER)
    programs.await_results(ok=1)
    os.kill(int((programs.folder / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("prelude", ["", "trap '' TERM; "])
def test_a_program_that_takes_too_long_is_ended_with_all_its_processes(
    prelude: str, programs: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_receive, "TERM_SECONDS", 0.2)
    command = f"{prelude}sleep 300 & echo $! > pid; while :; do sleep 1; done"
    programs("sh", "-c", command, on_receive_timeout=0.3).tell(receipt(), SENDER)
    programs.await_results(timeout=1)
    child = int((programs.folder / "pid").read_text())
    wait_until(lambda: not alive(child), "its child has ended too")


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_more_than_so_many_run_at_once_and_the_rest_wait(programs: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    command = f"touch started.$$; while [ -e {gate} ]; do sleep 0.01; done"
    running = programs("sh", "-c", command, on_receive_at_once=2)
    for _ in range(5):
        running.tell(receipt(), SENDER)
    wait_until(lambda: len(list(programs.folder.iterdir())) == 2, "two run")
    time.sleep(0.1)
    assert len(list(programs.folder.iterdir())) == 2
    gate.rmdir()
    programs.await_results(ok=5)


def test_when_too_many_wait_the_next_is_dropped_and_nobody_is_held_up(
    programs: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(on_receive, "QUEUED_AT_MOST", 2)
    running = programs("sh", "-c", "sleep 300", on_receive_at_once=1)
    for _ in range(20):
        running.tell(receipt(), SENDER)
    assert programs.results()[DROPPED] >= 17
    assert f"upload {'0' * 32} (a b): on_receive is not run: too many files wait for it" in caplog.messages


def test_at_the_end_what_waits_is_dropped_and_what_runs_has_some_time(
    programs: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running = programs(
        "sh", "-c", "touch started; while [ ! -e go ]; do sleep 0.01; done", on_receive_at_once=1
    )
    running.tell(receipt(), SENDER)
    wait_until((programs.folder / "started").exists, "it runs")
    running.tell(receipt(), SENDER)
    closing = threading.Thread(target=running.close, args=(30.0,))
    closing.start()
    wait_until(lambda: DROPPED in programs.results(), "the second is dropped")
    (programs.folder / "go").touch()
    closing.join()
    assert programs.results() == {OK: 1, DROPPED: 1}
    running.tell(receipt(), SENDER)
    assert programs.results() == {OK: 1, DROPPED: 2}
    assert caplog.messages[-1].endswith("on_receive is not run: the receiver stops")


def test_what_runs_too_long_at_the_end_is_ended(programs: Running) -> None:
    running = programs("sh", "-c", "touch started; exec sleep 300")
    running.tell(receipt(), SENDER)
    wait_until((programs.folder / "started").exists, "it runs")
    running.close(0.1)
    assert programs.results() == {TIMEOUT: 1}


def test_a_defect_of_one_run_leaves_the_others(programs: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = on_receive._has_ended
    calls: list[int] = []

    def once(process: int) -> bool:
        calls.append(process)
        if len(calls) == 1:
            raise OSError("out of luck")
        return bool(real(process))

    monkeypatch.setattr(on_receive, "_has_ended", once)
    running = programs("true", on_receive_at_once=1)
    running.tell(receipt(), SENDER)
    running.tell(receipt(), SENDER)
    programs.await_results(failed=1, ok=1)
    assert FAILED in programs.results()


def test_a_program_that_is_not_there_is_an_error_of_the_configuration(programs: Running) -> None:
    for name in ("no-such-program-here", "/no/such/program", "/etc/passwd"):
        with pytest.raises(ConfigError, match=f"no program {name} that can be run"):
            programs(name)


@pytest.mark.parametrize("by_link", [False, True])
def test_a_program_that_senders_could_replace_is_refused(
    by_link: bool, programs: Running, tmp_path: Path
) -> None:
    program = programs.folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if by_link:
        (tmp_path / "link").symlink_to(program)
        program = tmp_path / "link"
    with pytest.raises(ConfigError, match="lies in the folder that is received into"):
        programs(str(program))


def test_no_place_of_the_path_depends_on_the_folder() -> None:
    assert clean({"PATH": ":.:x"}) == {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    assert clean({}) == {"PATH": "/usr/local/bin:/usr/bin:/bin"}
