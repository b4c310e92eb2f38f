from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.commands import COMMAND, PATIENCE, RunningReceiver, Tdx, events_of, parsed
from support.devices import trust
from tdx.integrity import MIB

RESULT_KEYS = [
    *("event", "name", "size", "sent_bytes", "resumed_bytes", "reused_bytes"),
    *("seconds", "root", "path", "error", "stages", "bottleneck", "retries"),
]
AS_ROOT = os.getuid() == 0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.bin"
    path.write_bytes(os.urandom(1024))
    return path


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener that does what ``talk`` does with each connection, and is no tdx receiver."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                accepted.append(sock)
                talk(sock)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for sock in accepted:
                sock.close()


def stay_silent(sock: socket.socket) -> None:
    """Take the connection and never answer."""


# --- what arrives ---------------------------------------------------------------


def test_a_file_arrives_and_a_line_says_so(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    done = tdx("push", file, receiver.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"f.bin -> f.bin at {receiver.address}  1.0 KiB in ")
    assert done.stdout.count("\n") == 1
    assert (receiver.folder / "f.bin").read_bytes() == file.read_bytes()


def test_quiet_says_nothing(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    done = tdx("push", "-q", file, receiver.address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert receiver.visible() == ["f.bin"]


def test_the_last_json_line_is_the_result(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    first = tdx("push", file, receiver.address, "--json", "--resume")
    started, *_, result = parsed(first.stdout)
    assert started == {"event": "started", "name": "f.bin", "size": 1024, "peer": receiver.address}
    assert list(result) == RESULT_KEYS
    assert (result["event"], result["size"], result["path"], result["error"]) == ("done", 1024, "f.bin", None)
    assert (result["sent_bytes"], result["resumed_bytes"]) == (1024, 0)
    assert tdx("verify", receiver.folder / "f.bin", result["root"]).returncode == 0
    again = parsed(tdx("push", file, receiver.address, "--json").stdout)[-1]
    assert (again["event"], again["root"], again["path"]) == ("identical", result["root"], "f.bin")


def test_standard_input_arrives_under_its_name(tdx: Tdx, receiver: RunningReceiver) -> None:
    done = tdx("push", "-", receiver.address, "--name", "piped.txt", "--json", input="from a pipe")
    assert done.returncode == 0
    assert parsed(done.stdout)[-1]["size"] == 11
    assert (receiver.folder / "piped.txt").read_text() == "from a pipe"


def test_long_standard_input_arrives(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    content = os.urandom(17 * MIB)
    (tmp_path / "long").write_bytes(content)
    with (tmp_path / "long").open("rb") as stream:
        done = tdx("push", "-", receiver.address, "--name", "long", "-q", stdin=stream)
    assert (done.returncode, done.stderr) == (0, "")
    assert (receiver.folder / "long").read_bytes() == content


def test_a_folder_arrives_with_what_it_holds(tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_text("a")
    (top / "sub" / "b").write_text("b")
    (top / "link").symlink_to("a")
    done = tdx("push", "-r", top, receiver.address, "--json")
    assert done.returncode == 0
    assert done.stderr == f"tdx: {top}/link is a symbolic link; left out\n"
    assert receiver.visible() == ["tree/a", "tree/sub/b"]
    summary = parsed(done.stdout)[-1]
    assert (summary["event"], summary["files"], summary["done"], summary["exit_code"]) == ("summary", 2, 2, 0)


@pytest.mark.parametrize("name", ["ä ö 100% 🎉.txt", "-dash", "%2F", "x" * 255])
def test_unusual_names_arrive(name: str, tdx: Tdx, receiver: RunningReceiver, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content")
    assert tdx("push", "--", tmp_path / name, receiver.address).returncode == 0
    assert receiver.visible() == [name]


def test_a_trailing_colon_is_accepted(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    assert tdx("push", file, receiver.address + ":").returncode == 0


# --- conflicts --------------------------------------------------------------------


def other_content(receiver: RunningReceiver) -> None:
    (receiver.folder / "f.bin").write_bytes(b"another")


def test_a_taken_name_with_error_is_73(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    other_content(receiver)
    done = tdx("push", file, receiver.address, "--conflict", "error", "--json")
    assert done.returncode == 73
    assert parsed(done.stdout)[-1]["error"]["code"] == "exists"
    assert (receiver.folder / "f.bin").read_bytes() == b"another"


def test_a_taken_name_with_skip_is_0_and_said(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    other_content(receiver)
    done = tdx("push", file, receiver.address, "--conflict", "skip", "--json")
    assert (done.returncode, parsed(done.stdout)[-1]["event"]) == (0, "skipped")
    assert (receiver.folder / "f.bin").read_bytes() == b"another"


def test_a_taken_name_is_numbered_unless_told_otherwise(
    tdx: Tdx, receiver: RunningReceiver, file: Path
) -> None:
    other_content(receiver)
    assert parsed(tdx("push", file, receiver.address, "--json").stdout)[-1]["path"] == "f (1).bin"
    assert tdx("push", file, receiver.address, "--conflict", "overwrite").returncode == 0
    assert (receiver.folder / "f.bin").read_bytes() == file.read_bytes()


# --- exit codes -------------------------------------------------------------------


def failed(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The exit code and the stable code of the error, having checked the form of both reports."""
    assert done.stderr.startswith("tdx: ")
    assert done.stderr.count("\n") == 1
    event = json.loads(done.stdout.splitlines()[-1])
    assert list(event) == RESULT_KEYS
    assert (event["event"], event["root"], event["path"]) == ("failed", None, None)
    assert event["error"]["exit_code"] == done.returncode
    assert event["error"]["message"] in done.stderr
    return done.returncode, event["error"]["code"]


def test_a_folder_without_r_is_64(tdx: Tdx, tmp_path: Path) -> None:
    done = tdx("push", tmp_path, "127.0.0.1:1", "--json")
    assert failed(done) == (64, "usage")
    assert "is a directory" in done.stderr


@pytest.mark.parametrize("path", ["missing", "f.bin/below", "x" * 300], ids=["missing", "below", "too long"])
def test_a_file_that_cannot_be_read_is_66(path: str, tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    assert failed(tdx("push", file.parent / path, receiver.address, "--json")) == (66, "source")


def test_a_file_without_permission_is_66(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    file.chmod(0)
    # Root may read everything, but for the capability that says so.
    through = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if AS_ROOT else []
    assert failed(tdx("push", file, receiver.address, "--json", through=through)) == (66, "source")


def test_a_name_that_does_not_resolve_is_68(tdx: Tdx, file: Path) -> None:
    assert failed(tdx("push", file, "no..such..peer", "--json")) == (68, "unknown-peer")


def test_a_port_that_refuses_is_69(tdx: Tdx, file: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and it refuses
        done = tdx("push", file, f"127.0.0.1:{closed.getsockname()[1]}", "--json")
    assert failed(done) == (69, "unreachable")


@pytest.mark.parametrize("name", ["../f", "/f", "a//b", ".tdx", "é" * 128, "a\tb", ""])
def test_a_name_that_no_receiver_stores_is_73(
    name: str, tdx: Tdx, receiver: RunningReceiver, file: Path
) -> None:
    assert failed(tdx("push", file, receiver.address, "--json", "--name", name)) == (73, "bad-name")
    assert receiver.visible() == []


def test_a_peer_that_falls_silent_is_75(tdx: Tdx, file: Path) -> None:
    with listening(stay_silent) as address:
        flags = ("--stall-timeout", "200ms", "--retries", "1", "--json")
        assert failed(tdx("push", file, address, *flags)) == (75, "stalled")


def test_a_peer_that_hangs_up_is_75(tdx: Tdx, file: Path) -> None:
    with listening(socket.socket.close) as address:
        done = tdx("push", file, address, "--retries", "0", "--json")
    assert failed(done) == (75, "connection-lost")


def test_a_peer_that_does_not_speak_it_is_76(tdx: Tdx, file: Path) -> None:
    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with listening(talk) as address:
        assert failed(tdx("push", file, address, "--json")) == (76, "protocol")


@pytest.mark.skipif(not AS_ROOT, reason="needs to become another user")
def test_a_receiver_of_another_user_is_77_and_gets_nothing(tdx: Tdx, file: Path) -> None:
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); c, _ = s.accept(); sys.exit(len(c.recv(100)))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        done = tdx("push", file, f"127.0.0.1:{other.stdout.readline().strip()}", "--json")
        assert other.wait(PATIENCE) == 0, "something was sent"
    assert failed(done) == (77, "forbidden")


def test_a_run_that_takes_too_long_is_75(tdx: Tdx, receiver: RunningReceiver) -> None:
    reader, writer = os.pipe()
    try:
        flags = ("--name", "endless", "--timeout", "300ms", "--json")
        done = tdx("push", "-", receiver.address, *flags, stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert failed(done) == (75, "timeout")


def test_of_a_peer_that_was_not_reached_in_time_nothing_is_said_to_be_kept(
    tdx: Tdx, file: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # which never answers a handshake
        trust(tmp_path / "own", "nas", tmp_path / "theirs", f"127.0.0.1:{listener.getsockname()[1]}")
        done = tdx("push", file, "nas", "--timeout", "300ms", "--state", tmp_path / "own")
    assert (done.returncode, done.stderr) == (
        75,
        "tdx: not done after 0.3 s; nas:8390 had not been reached\n",
    )


def test_events_that_nobody_reads_end_it_quietly(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    pipe = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    pipe.wait()
    assert pipe.stdin is not None
    done = tdx("push", file, receiver.address, "--json", stdout=pipe.stdin)
    pipe.stdin.close()
    assert (done.returncode, done.stderr) == (74, "")


# --- several paths ----------------------------------------------------------------


def test_of_several_paths_all_are_tried_and_the_worst_code_counts(
    tdx: Tdx, receiver: RunningReceiver, file: Path
) -> None:
    missing = file.parent / "missing"
    done = tdx("push", missing, file, file.parent, receiver.address, "--json")
    assert done.returncode == 66
    results = [event for event in parsed(done.stdout) if list(event) == RESULT_KEYS]
    codes = {event["name"]: event["error"] and event["error"]["exit_code"] for event in results}
    assert codes == {"missing": 66, "f.bin": None, file.parent.name: 64}
    summary = parsed(done.stdout)[-1]
    assert summary["event"] == "summary"
    assert (summary["files"], summary["done"], summary["failed"], summary["exit_code"]) == (3, 1, 2, 66)
    assert sorted(done.stderr.splitlines()) == sorted(
        [
            f"tdx: missing: {missing}: cannot be read: No such file or directory",
            f"tdx: {file.parent.name}: {file.parent}: is a directory; push it with -r",
        ]
    )


def test_a_peer_that_is_not_there_is_asked_for_once(tdx: Tdx, file: Path) -> None:
    done = tdx("push", file, "second", "third", "no..such..peer", "--json")
    assert done.returncode == 68
    assert parsed(done.stdout)[-1]["failed"] == 3


def test_two_paths_of_one_name_are_refused_before_anything_is_sent(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same").write_text(folder)
    paths = (tmp_path / "one" / "same", tmp_path / "two" / "same")
    done = tdx("push", *paths, receiver.address, "--conflict", "overwrite")
    assert (done.returncode, done.stdout) == (64, "")
    assert all(str(path) in done.stderr for path in paths)
    assert receiver.visible() == []


# --- outlets that are not there ---------------------------------------------------


def through_shell(
    tdx: Tdx, redirection: str, *arguments: object, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, env=tdx.env, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


def test_a_closed_standard_input_is_66_and_not_waited_for(tdx: Tdx, receiver: RunningReceiver) -> None:
    done = through_shell(tdx, "<&-", "push", "-", receiver.address, "--name", "x", "--json")
    assert failed(done) == (66, "source")
    assert "standard input is closed" in done.stderr
    assert receiver.visible() == []


def test_with_all_standard_streams_closed_a_file_arrives_whole(
    tdx: Tdx, receiver: RunningReceiver, file: Path
) -> None:
    assert through_shell(tdx, "<&- >&- 2>&-", "push", file, receiver.address).returncode == 0
    assert (receiver.folder / "f.bin").read_bytes() == file.read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">/dev/full 2>/dev/full"])
def test_an_error_that_cannot_be_written_keeps_its_code(
    redirection: str, tdx: Tdx, receiver: RunningReceiver
) -> None:
    done = through_shell(tdx, redirection, "push", "missing", receiver.address)
    assert (done.returncode, done.stdout, done.stderr) == (66, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_report_that_cannot_be_written_is_74(tdx: Tdx, receiver: RunningReceiver, file: Path) -> None:
    done = through_shell(tdx, ">/dev/full", "push", file, receiver.address)
    assert (done.returncode, done.stderr) == (74, "tdx: No space left on device: standard output\n")
    done = through_shell(tdx, ">/dev/full 2>/dev/full", "push", file, receiver.address)
    assert done.returncode == 74


# --- stopping ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice, as timeout does"])
def test_a_stopped_push_of_standard_input_leaves_nothing_and_says_so(
    number: int, times: int, tdx: Tdx, receiver: RunningReceiver
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "push", "-", receiver.address, "--name", "endless", "--json"],
        env=tdx.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(bytes(17 * MIB))
        events = events_of(process)
        next(event for event in events if event["event"] == "progress" and event["sent_bytes"] == 16 * MIB)
        for _ in range(times):
            process.send_signal(number)
        *_, last = events
        said = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 75
    assert last["error"]["code"] == "interrupted"
    assert "push it again from its beginning" in said
    assert "--resume" not in said
    assert receiver.partials() == []


@pytest.mark.parametrize("since", ["started", "progress", "done"])
def test_signals_without_end_never_kill_once_it_has_started(
    since: str, tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(5 * MIB))
    flags = ("--limit-rate", "20M") if since == "progress" else ()
    for _ in range(10):
        process = tdx.start("push", source, receiver.address, "--json", *flags, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            next(event for event in events_of(process) if event["event"] in {since, "identical"})
            numbers = itertools.cycle((signal.SIGINT, signal.SIGTERM))
            while process.poll() is None:
                process.send_signal(next(numbers))
        assert process.returncode in {0, 75}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_push_is_75_and_keeps_its_partial_for_a_resume(
    number: int, tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(20 * MIB))
    arguments = ("push", source, receiver.address, "--json")
    process = tdx.start(*arguments, "--limit-rate", "10M", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        events = events_of(process)
        next(event for event in events if event["event"] == "progress" and event["sent_bytes"] > 9 * MIB)
        process.send_signal(number)
        *_, last = events
        said = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 75
    assert (last["event"], last["error"]["code"]) == ("failed", "interrupted")
    assert said.startswith(f"tdx: stopped by {signal.Signals(number).name}; ")
    assert receiver.visible() == []
    assert len(receiver.partials()) == 1
    result = parsed(tdx(*arguments, "--resume").stdout)[-1]
    assert result["event"] == "done"
    assert result["resumed_bytes"] >= 4 * MIB
    assert result["resumed_bytes"] + result["sent_bytes"] == 20 * MIB
    assert (receiver.folder / "big").read_bytes() == source.read_bytes()
    assert receiver.partials() == []


STUCK = """
import sys, threading
from tdx_cli import pushing
from tdx_cli.main import run

class StuckSender(pushing.Sender):
    async def __aexit__(self, *raised):
        threading.Event().wait()  # as for a disk that does not answer

pushing.Sender = StuckSender
sys.exit(run(sys.argv[1:]))
"""


def test_a_second_signal_ends_at_once_what_the_first_could_not(tdx: Tdx, file: Path) -> None:
    with listening(stay_silent) as address:
        process = subprocess.Popen(
            [sys.executable, "-c", STUCK, "push", str(file), address, "--json"],
            env=tdx.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            events = events_of(process)
            assert next(events)["event"] == "started"
            process.send_signal(signal.SIGINT)
            assert next(event for event in events if event["event"] != "progress")["event"] == "failed"
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 75


# --- many files -------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of 300 small files and two large ones among them."""
    top = tmp_path / "tree"
    for number in range(300):
        path = top / f"d{number % 3}" / f"f{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(20_000))
    for name in ("large", "d1/large"):
        (top / name).write_bytes(os.urandom(5 * MIB))
    return top


def test_of_many_files_each_has_its_events_and_the_last_line_sums_up(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / "d0" / "f000").unlink()
    (tree / "d0" / "f000").symlink_to("/nowhere")
    done = tdx("push", "-r", tree, receiver.address, "--json")
    assert done.returncode == 0
    assert done.stderr == f"tdx: {tree}/d0/f000 is a symbolic link; left out\n"
    *events, summary = parsed(done.stdout)
    names = sorted(f"tree/{path.relative_to(tree)}" for path in tree.rglob("*") if path.is_file())
    started = [event["name"] for event in events if event["event"] == "started"]
    results = {event["name"]: event for event in events if list(event) == RESULT_KEYS}
    assert started == ["tree/large", *(name for name in names if name != "tree/large")]
    assert sorted(results) == names
    assert {event["event"] for event in results.values()} == {"done"}
    assert all(event["sent_bytes"] == event["size"] for event in results.values())
    assert (summary["files"], summary["done"], summary["exit_code"]) == (301, 301, 0)
    assert summary["sent_bytes"] == 299 * 20_000 + 10 * MIB
    sample = "tree/d2/f101"
    assert tdx("verify", receiver.folder / sample, results[sample]["root"]).returncode == 0
    assert len(receiver.visible()) == 301


def test_people_get_a_line_for_each_of_many_files_and_a_sum(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (tree / "d2" / "f299").write_bytes(os.urandom(20_000))
    done = tdx("push", "-r", tree, receiver.address)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 302
    assert f"tree/d0/f000 -> tree/d0/f000 at {receiver.address}  19.5 KiB" in lines
    assert last.startswith("302 files: 302 done; 4 folders; 15.7 MiB sent in ")


def test_failures_among_many_files_are_named_one_by_one(
    tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    (receiver.folder / "tree" / "d1").mkdir(parents=True)
    for name in ("f001", "f100"):
        (receiver.folder / "tree" / "d1" / name).write_text("there")
    done = tdx("push", "-q", "-r", tree, receiver.address, "--conflict", "error")
    assert (done.returncode, done.stdout) == (73, "")
    said = sorted(done.stderr.splitlines())
    assert len(said) == 2
    assert said[0].startswith("tdx: tree/d1/f001: ")
    assert said[1].startswith("tdx: tree/d1/f100: ")
    assert len(receiver.visible()) == 302


@pytest.mark.parametrize("how", ["signal", "timeout"])
def test_a_stop_among_many_files_is_75_said_once_and_leaves_whole_files_only(
    how: str, tdx: Tdx, receiver: RunningReceiver, tree: Path
) -> None:
    flags = ("--timeout", "1s") if how == "timeout" else ()
    process = tdx.start(
        *("push", "-r", tree, receiver.address, "--json", "--limit-rate", "2M", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        events = []
        for event in events_of(process):
            if how == "signal" and event["event"] == "progress" and event["sent_bytes"]:
                process.send_signal(signal.SIGINT)
            events.append(event)
        said = process.stderr.read().decode()
        assert process.wait(PATIENCE) == 75
    assert said.count("\n") == 1
    assert "run again with --resume" in said
    started = {event["name"] for event in events if event["event"] == "started"}
    ended = {event["name"] for event in events if list(event) == RESULT_KEYS}
    assert started == ended
    assert events[-1]["exit_code"] == 75
    for name in receiver.visible():
        assert (receiver.folder / name).read_bytes() == (tree.parent / name).read_bytes()
    assert tdx("push", "-q", "-r", tree, receiver.address, "--resume").returncode == 0
    assert len(receiver.visible()) == 302


def test_the_configuration_says_how_fast_unless_a_flag_does(
    tdx: Tdx, receiver: RunningReceiver, tmp_path: Path
) -> None:
    config, source = tmp_path / "tdx.toml", tmp_path / "source"
    config.write_text('limit_rate = "1K"\n')
    source.write_bytes(bytes(2 << 20))
    limited = tdx("push", source, receiver.address, "-q", "--config", config, "--timeout", "1s")
    assert limited.returncode == 75
    options = ["--name", "f", "-q", "--limit-rate", "off"]
    free = tdx("push", source, receiver.address, *options, env={"TDX_CONFIG": str(config)})
    assert (free.returncode, free.stderr) == (0, "")
