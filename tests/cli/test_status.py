"""``tdx status``: a receiver's own words for people and for programs, once and again."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import PATIENCE, RunningReceiver, Tdx, events_of, parsed
from support.schemas import conform
from support.spaces import STRANGER, as_stranger
from tdx_cli.status_view import lines_of

TRANSFER: dict[str, object] = {
    "name": "backups/disk.img",
    "peer": "nas",
    "phase": "receiving",
    "size": 3 << 30,
    "held_bytes": 1 << 30,
    "resumed_bytes": 1 << 30,
    "received_bytes": 1 << 29,
    "done_bytes": 3 << 29,
    "bytes_per_second": 100 << 20,
    "idle_seconds": 0.1,
    "bottleneck": "network",
    "eta_seconds": 15.4,
}
RECEIVER: dict[str, object] = {
    "version": "1.2.3",
    "pid": 4711,
    "folder": "/in",
    "seconds": 3723.0,
    "listening": ["127.0.0.1:8390", "[::1]:8390"],
    "connections": 1,
    "free_bytes": 5 << 30,
    "staged_bytes": 1 << 30,
    "received_bytes": 7 << 30,
    "disk_waiting_seconds": 0.0,
    "transfers": [TRANSFER],
    "bundles": [],
    "waiting": 0,
}


def with_transfer(**changes: object) -> list[str]:
    """The cells of the only line of the table."""
    lines = lines_of({**RECEIVER, "transfers": [{**TRANSFER, **changes}]}, None)
    return [cell.strip() for cell in lines[-1].split("  ") if cell.strip()]


class Stub:
    """Answers every connection to a Unix socket with the same bytes."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.recv(65536)
                    sock.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def socket_path(tdx: Tdx, tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "receiver.sock"


# --- for people --------------------------------------------------------------


def test_the_receiver_comes_first_then_each_transfer_under_a_heading() -> None:
    assert lines_of(RECEIVER, None) == [
        "tdx 1.2.3 (pid 4711), up 1:02:03, listening on 127.0.0.1:8390, [::1]:8390",
        "into /in: 7.0 GiB received, 1.0 GiB staged, 5.0 GiB free, 1 connection",
        "",
        "NAME              FROM  PHASE      DONE     SIZE         RATE  LEFT  LIMITED BY",
        "backups/disk.img  nas   receiving   50%  3.0 GiB  100.0 MiB/s  15 s  network",
    ]


def test_a_receiver_with_nothing_to_do_says_so() -> None:
    assert lines_of({**RECEIVER, "transfers": []}, None)[-1] == "no transfer under way"


def test_what_waits_on_disk_is_counted() -> None:
    assert lines_of({**RECEIVER, "waiting": 2}, None)[-1] == "2 partials on disk that nobody is sending"


def test_a_disk_that_hangs_is_told() -> None:
    hung = {"free_bytes": None, "staged_bytes": None, "waiting": None, "disk_waiting_seconds": 75.0}
    lines = lines_of({**RECEIVER, **hung}, None)
    assert lines[1:3] == [
        "into /in: 7.0 GiB received, free space unknown, 1 connection",
        "THE DISK HAS NOT ANSWERED for 1:15",
    ]


def test_a_transfer_from_which_nothing_comes_is_silent() -> None:
    assert with_transfer(idle_seconds=9.0)[2] == "receiving"
    assert with_transfer(idle_seconds=42.0)[2] == "silent for 42 s"
    assert with_transfer(phase="waiting", idle_seconds=42.0)[2] == "waiting"


def test_what_is_not_known_is_a_dash() -> None:
    unknown = with_transfer(size=None, eta_seconds=None, bottleneck=None, bytes_per_second=0, peer=None)
    assert unknown == ["backups/disk.img", "-", "receiving", "1.5 GiB", "-", "-", "-", "-"]


def test_files_that_come_together_are_one_line() -> None:
    arrival = {
        "peer": "nas",
        "phase": "receiving",
        "size": 100,
        "files": 3,
        "received_bytes": 50,
        "seconds": 2,
    }
    line = lines_of({**RECEIVER, "transfers": [], "bundles": [arrival]}, None)[-1]
    assert line.split("  ")[0] == "(3 small files)"
    assert {"50%", "25 B/s"} <= {cell.strip() for cell in line.split("  ")}


def test_no_line_is_longer_than_the_terminal_is_wide() -> None:
    lines = lines_of(RECEIVER, 40)
    assert {len(line) for line in lines} <= set(range(41))
    assert lines[-1].endswith("…")


def test_where_there_is_little_room_names_give_way_to_figures() -> None:
    named = {**TRANSFER, "name": "folder/" * 20 + "disk.img"}
    *_, heading, line = lines_of({**RECEIVER, "transfers": [named]}, 80)
    assert (heading.split()[-1], line.split()[-1]) == ("BY", "network")
    assert line.split()[0] == "…/folder/disk.img"
    *_, line = lines_of({**RECEIVER, "transfers": [named]}, 60)
    assert line.startswith("…er/disk.img  nas")


def test_of_a_long_name_the_end_is_shown() -> None:
    assert with_transfer(name="folder/" * 20 + "disk.img")[0] == "…" + ("folder/" * 20 + "disk.img")[-47:]


def test_nothing_from_elsewhere_drives_the_terminal() -> None:
    hostile = "\x1b[2J\n\u202e"
    document = {**RECEIVER, "version": hostile, "folder": hostile, "listening": [hostile]}
    document["transfers"] = [{**TRANSFER, "name": hostile, "peer": hostile, "phase": hostile}]
    assert all(line.isprintable() for line in lines_of(document, None))


@pytest.mark.parametrize("document", [{}, {"transfers": 7, "listening": "x"}, {"transfers": [{}, 1]}])
def test_a_receiver_of_another_version_is_shown_as_far_as_it_says_something(
    document: dict[str, object],
) -> None:
    assert lines_of(document, None)[0].startswith("tdx - ")


# --- the command -------------------------------------------------------------


def test_a_receiver_is_found_by_its_state(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    for flags in ([], ["--state", tmp_path / "state"], ["--socket", tmp_path / "state" / "receiver.sock"]):
        done = tdx("status", *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"(pid {receiver.process.pid})" in done.stdout
        assert f"into {receiver.folder}: 0 B received" in done.stdout


def test_json_is_one_line_as_the_schema_has_it(tdx: Tdx, receiver: RunningReceiver) -> None:
    (found,) = parsed(tdx("status", "--json").stdout)
    assert (found["event"], found["pid"]) == ("status", receiver.process.pid)


def test_the_configuration_of_the_receiver_is_enough(tdx: Tdx, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir(mode=0o700)
    config = tmp_path / "tdx.toml"
    config.write_text('socket = "here.sock"\n')
    running = RunningReceiver(tdx, tmp_path / "inbox", tmp_path / "log", ("--config", str(config)))
    try:
        assert (tmp_path / "here.sock").is_socket()
        assert tdx("status", "--config", config).returncode == 0
        assert tdx("status").returncode == 69
    finally:
        assert running.stop() == 0
    assert not (tmp_path / "here.sock").exists()


def test_no_receiver_is_exit_69_and_how_to_start_one(tdx: Tdx, tmp_path: Path) -> None:
    done = tdx("status", "--json")
    assert (done.returncode, done.stdout) == (69, "")
    (line,) = done.stderr.splitlines()
    assert f"no receiver answers at {tmp_path}/state/receiver.sock" in line
    assert "tdx serve --dir DIR" in line


def test_what_a_killed_receiver_left_answers_as_none(tdx: Tdx, socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(socket_path))
    assert tdx("status").returncode == 69


def test_another_users_receiver_is_exit_77(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    stranger = as_stranger()
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    done = tdx("status", through=stranger)
    assert (done.returncode, done.stdout) == (77, "")
    assert "only the receiver's own user and root may ask" in done.stderr
    (tmp_path / "state" / "receiver.sock").chmod(0o666)
    done = tdx("status", through=stranger)
    assert (done.returncode, done.stdout) == (77, "")
    assert f"you are uid {STRANGER}" in done.stderr


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", 69),
        (b"SSH-2.0-OpenSSH\r\n", 76),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 76),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", 76),
        (b'HTTP/1.1 404 Not Found\r\nContent-Length: 16\r\n\r\n{"detail": "no"}', 76),
        (b'HTTP/1.1 403 Forbidden\r\nContent-Length: 16\r\n\r\n{"detail": "no"}', 77),
    ],
)
def test_what_is_no_receiver_is_told_in_a_line(tdx: Tdx, socket_path: Path, answer: bytes, code: int) -> None:
    stub = Stub(socket_path, answer)
    try:
        done = tdx("status")
    finally:
        stub.close()
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert str(socket_path) in done.stderr


def test_it_starts_without_what_a_push_needs(tdx: Tdx, receiver: RunningReceiver) -> None:
    heavy = "{'asyncio', 'rich', 'uvloop', 'xxhash', 'ssl', 'cryptography', 'prometheus_client'}"
    script = (
        "import sys; from tdx_cli.main import run; code = run(['status']);"
        f"sys.exit(' '.join([*({heavy} & set(sys.modules)), *map(str, [code] if code else [])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=tdx.env, capture_output=True, text=True, check=False
    )
    assert done.stderr == "\n"


# --- again and again -----------------------------------------------------------


@contextlib.contextmanager
def watching(tdx: Tdx, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    process = tdx.start("status", *flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_is_one_object_a_line_until_it_is_stopped(
    tdx: Tdx, receiver: RunningReceiver, number: int
) -> None:
    with watching(tdx, "--watch", "50ms", "--json") as process:
        events = events_of(process)
        lines: list[dict[str, Any]] = [next(events) for _ in range(3)]
        process.send_signal(number)
        lines += events
        assert process.wait(PATIENCE) == 75
        assert process.stderr is not None
        assert process.stderr.read() == b"tdx: interrupted\n"
    conform("status", lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(set(seconds))


def test_a_watch_ends_with_the_receiver(tdx: Tdx, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir(mode=0o700)
    running = RunningReceiver(tdx, tmp_path / "inbox", tmp_path / "log")
    with watching(tdx, "--watch", "20ms", "--json") as process:
        next(events_of(process))
        assert running.stop() == 0
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(PATIENCE) == 69
        assert process.stderr is not None
        assert b"no receiver answers" in process.stderr.read()


def test_a_watch_once_a_second_unless_told_otherwise(tdx: Tdx, receiver: RunningReceiver) -> None:
    with watching(tdx, "--watch", "--json") as process:
        events = events_of(process)
        first, second = next(events)["seconds"], next(events)["seconds"]
    assert 0.8 < second - first < 5


@pytest.mark.parametrize("value", ["0", "soon", "-1"])
def test_a_time_that_makes_no_sense_is_refused(tdx: Tdx, value: str) -> None:
    assert tdx("status", f"--watch={value}").returncode == 64


def on_terminal(tdx: Tdx, env: dict[str, str], pictures: int) -> str:
    """What a terminal is sent by a watch, until it has been drawn so often."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "tdx_cli", "status", "--watch=50ms"]
    process = subprocess.Popen(command, env=tdx.env | env, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + PATIENCE
    with process, contextlib.suppress(OSError):  # EIO: the other end has been closed
        try:
            while shown.count(b"listening on") < pictures and time.monotonic() < deadline:
                shown += os.read(ours, 65536)
            process.send_signal(signal.SIGINT)
            while data := os.read(ours, 65536):
                shown += data
        finally:
            if time.monotonic() >= deadline:
                process.kill()
    os.close(ours)
    assert process.returncode == 75
    return shown.decode()


def test_a_terminal_is_drawn_anew(tdx: Tdx, receiver: RunningReceiver) -> None:
    shown = on_terminal(tdx, {}, 3)
    assert "\x1b[1A" in shown
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]  # the cursor is back


def test_a_terminal_that_cannot_be_drawn_anew_gets_one_after_the_other(
    tdx: Tdx, receiver: RunningReceiver
) -> None:
    assert "\x1b" not in on_terminal(tdx, {"TERM": "dumb"}, 3)


def test_no_colour_is_used_where_none_is_wanted(tdx: Tdx, receiver: RunningReceiver) -> None:
    assert "\x1b[3" not in on_terminal(tdx, {"NO_COLOR": "1"}, 2)


def test_the_output_is_json_all_the_same_on_a_terminal(tdx: Tdx, receiver: RunningReceiver) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "tdx_cli", "status", "--json"]
    done = subprocess.run(command, env=tdx.env, stdout=theirs, check=False, timeout=PATIENCE)
    os.close(theirs)
    assert done.returncode == 0
    assert json.loads(os.read(ours, 65536))["event"] == "status"
    os.close(ours)
