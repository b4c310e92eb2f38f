from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import PATIENCE, RunningReceiver, Tdx, events_of, parsed
from support.inboxes import ArrivedIn, files_in, root_of
from support.processes import wait_until


@pytest.fixture
def arrived(tmp_path: Path) -> ArrivedIn:
    return ArrivedIn(tmp_path / "inbox", tmp_path / "state")


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "dest").mkdir()
    return tmp_path / "dest"


def test_people_get_a_line_for_each(tdx: Tdx, arrived: ArrivedIn, dest: Path) -> None:
    arrived.arrive("a/f", b"content")
    done = tdx("get", "--dir", arrived.folder, cwd=dest)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a/f -> a/f  7 B\n", "")
    assert files_in(dest) == {"a/f": b"content"}
    again = tdx("get", "--dir", arrived.folder, "--to", dest)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr == "tdx: nothing is there to be moved\n"
    assert tdx("get", "--dir", arrived.folder, "-q").stderr == ""


def test_scripts_get_an_event_for_each(tdx: Tdx, arrived: ArrivedIn, dest: Path) -> None:
    for name in ("f", "skipped"):
        arrived.arrive(name, b"content")
    (dest / "skipped").write_bytes(b"mine")
    done = tdx("get", "--dir", arrived.folder, "--to", dest, "--json", "--conflict", "skip")
    assert done.returncode == 0
    moved, skipped = sorted(parsed(done.stdout), key=lambda event: str(event["event"]))
    assert moved == {
        "event": "moved",
        "name": "f",
        "path": str(dest / "f"),
        "size": 7,
        "root": root_of(b"content"),
        "error": None,
    }
    assert (skipped["event"], skipped["path"]) == ("skipped", str(dest / "skipped"))


def test_a_failure_is_told_on_both_outputs_and_in_the_exit_code(
    tdx: Tdx, arrived: ArrivedIn, dest: Path
) -> None:
    for name in ("f", "g"):
        arrived.arrive(name, b"content")
    (dest / "f").write_bytes(b"mine")
    done = tdx("get", "--dir", arrived.folder, "--to", dest, "--json", "--conflict", "error")
    assert done.returncode == 73
    assert done.stderr == "tdx: f: a file of this name is there already\n"
    failed, moved = sorted(parsed(done.stdout), key=lambda event: str(event["event"]))
    assert (failed["path"], failed["error"]["code"], failed["error"]["exit_code"]) == (None, "exists", 73)
    assert moved["event"] == "moved"
    text = tdx("get", "--dir", arrived.folder, "--to", dest, "--conflict", "skip")
    assert text.stdout == f"f: left where it is, {dest / 'f'} is there already\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 66, "nope: not in the inbox; `tdx inbox` lists what is"),
        (["--to", "/no/such"], 73, "/no/such: is no folder to move to"),
        (["--to", "inbox"], 64, "inbox: is the receiver's own folder"),
        (["--wait", "--timeout", "300ms"], 75, "ended after 0.3 s; every file is whole"),
    ],
)
def test_what_ends_it_is_a_line_and_a_code(
    tdx: Tdx, arrived: ArrivedIn, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    if code == 64:
        arrived.arrive("f", b"content")
    done = tdx("get", "--dir", arrived.folder, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"tdx: {said}")


@pytest.fixture
def looping(tdx: Tdx, arrived: ArrivedIn, dest: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = tdx.start(
        *("get", "--dir", arrived.folder, "--to", dest, "--loop", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        yield process
        process.kill()
        process.wait()


def test_it_goes_on_until_a_signal(looping: subprocess.Popen[bytes], arrived: ArrivedIn, dest: Path) -> None:
    events = events_of(looping)
    for name in ("one", "two"):
        arrived.arrive(name, b"content")
        event = next(events)
        assert (event["event"], event["name"]) == ("moved", name)
    looping.send_signal(signal.SIGTERM)
    assert looping.wait(PATIENCE) == 75
    assert looping.stderr is not None
    assert looping.stderr.read().decode().startswith("tdx: stopped by SIGTERM; every file is whole")


def test_a_second_signal_ends_it_at_once(looping: subprocess.Popen[bytes], arrived: ArrivedIn) -> None:
    arrived.arrive("one", b"content")
    next(events_of(looping))
    looping.send_signal(signal.SIGINT)
    assert looping.wait(PATIENCE) == 75


def test_it_waits_for_a_receiver_that_comes_later_and_goes_again(
    tdx: Tdx, tmp_path: Path, dest: Path
) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(1 << 20))
    getting = tdx.start(*("get", "--dir", folder, "--to", dest, "--loop", "--json"), stdout=subprocess.PIPE)
    assert getting.stdout is not None
    try:
        with getting.stdout:
            events = events_of(getting)
            for number in range(2):
                receiver = RunningReceiver(tdx, folder, tmp_path / "serve.log")
                done = tdx("push", source, receiver.address, "--name", f"{number}", "-q")
                assert done.returncode == 0, done.stderr
                assert next(events)["name"] == f"{number}"
                assert receiver.stop() == 0
            assert getting.poll() is None
    finally:
        getting.terminate()
        assert getting.wait(PATIENCE) == 75
    assert files_in(dest) == dict.fromkeys(("0", "1"), source.read_bytes())


def test_a_partial_and_a_file_in_flight_are_never_seen(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path, dest: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(12 << 20))
    done = tdx("push", source, receiver.address, "--limit-rate", "10M", "--timeout", "900ms", "-q")
    assert done.returncode == 75
    assert len(receiver.partials()) == 1
    pushing = tdx.start("push", source, receiver.address, "--resume", "--limit-rate", "6M", "-q")
    while pushing.poll() is None:
        listed = tdx("inbox", "--dir", receiver.folder, "--json").stdout
        assert [each["size"] for each in parsed(listed)] in ([], [12 << 20])
        got = tdx("get", "--dir", receiver.folder, "--to", dest, "-q")
        assert got.returncode == 0
        assert set(files_in(dest)) <= {"big"}
    assert pushing.wait() == 0
    assert tdx("get", "--dir", receiver.folder, "--to", dest, "-q").returncode == 0
    assert files_in(dest) == {"big": source.read_bytes()}


def test_two_at_once_move_each_file_exactly_once(tdx: Tdx, arrived: ArrivedIn, tmp_path: Path) -> None:
    names = [f"{number % 7}/{number}" for number in range(300)]
    for name in names:
        arrived.arrive(name, name.encode())
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    running = [
        tdx.start("get", "--dir", arrived.folder, "--to", folder, "--json", stdout=subprocess.PIPE)
        for folder in folders
    ]
    moved: list[str] = []
    for process in running:
        assert process.stdout is not None
        with process.stdout:
            moved += [event["name"] for event in events_of(process)]
        assert process.wait(PATIENCE) == 0
    assert sorted(moved) == sorted(names)
    found = [files_in(folder) for folder in folders]
    assert sorted([*found[0], *found[1]]) == sorted(names)
    assert arrived.paths() == []
    assert [path for path in arrived.folder.iterdir() if path.name != ".tdx"] == []


def test_a_quota_is_free_again_once_files_were_moved_on(tdx: Tdx, tmp_path: Path, dest: Path) -> None:
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700)
    config = tmp_path / "tdx.toml"
    uid = os.getuid()
    config.write_text(f'[[rule]]\nname = "me"\nkey = "local:{uid}"\nquota = "5000"\n')
    receiver = RunningReceiver(tdx, folder, tmp_path / "serve.log", ["--config", str(config)])
    try:
        source = tmp_path / "source"
        source.write_bytes(bytes(4000))
        assert tdx("push", source, receiver.address, "-q").returncode == 0
        source.write_bytes(b"x" * 4000)
        assert tdx("push", source, receiver.address, "-q", "--name", "more").returncode == 73
        assert tdx("get", "--dir", folder, "--to", dest, "-q").returncode == 0
        assert tdx("push", source, receiver.address, "-q", "--name", "more").returncode == 0
    finally:
        receiver.stop()


def test_the_wait_costs_next_to_nothing(looping: subprocess.Popen[bytes], arrived: ArrivedIn) -> None:
    arrived.arrive("one", b"content")
    next(events_of(looping))

    def ticks() -> int:
        fields = Path(f"/proc/{looping.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1.5)
    assert ticks() - before <= os.sysconf("SC_CLK_TCK") // 4
    wait_until(lambda: looping.poll() is None, "it runs on")
