"""What a script, or cron, may take for granted: silence, no questions, no colours, no environment."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PATIENCE, PROGRAM, Processes, Receiver, Running, reserve_port, wait_until
from support.spaces import as_stranger, needs

CRON: Final = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "somebody", "HOME": "/"}
"""About all that cron sets."""


def bare(processes: Processes, **variables: str) -> dict[str, str]:
    """An environment with nothing but these, and what a tdx that is not installed needs to be found."""
    return {"PYTHONPATH": processes.environment["PYTHONPATH"], **variables}


def tdx(processes: Processes, *arguments: str | Path, **options: Any) -> Running:
    return processes.run("tdx", [*PROGRAM, *map(str, arguments)], **options)


def folder_of(area: Path) -> Path:
    folder = area / "folder"
    folder.mkdir()
    for name in "abc":
        random_file(folder / name, 10)
    return folder


# --- -q --------------------------------------------------------------------------------


def test_quiet_prints_nothing_where_all_went_well(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    small, large, folder = random_file(area / "s", 10), random_file(area / "l", 9 * MIB), folder_of(area)
    (folder / "link").symlink_to("a")
    for arguments in (
        (small, receiver.address),
        (large, receiver.address, "--streams", "4"),
        ("-", receiver.address, "--name", "piped"),
        ("-r", folder, receiver.address),
        ("-r", folder, receiver.address),
        (small, large, receiver.address, "--conflict", "skip"),
    ):
        with small.open("rb") as stdin:
            push = tdx(processes, "push", "-q", *arguments, stdin=stdin)
            assert (push.wait(), push.stdout, push.stderr) == (0, "", ""), push.log()


def test_quiet_prints_one_line_where_it_did_not(processes: Processes, receiver: Receiver, area: Path) -> None:
    (receiver.folder / "f").write_bytes(b"here before")
    file = random_file(area / "f", 10)
    with reserve_port() as nobody:
        runs = [
            tdx(processes, "push", "-q", *arguments)
            for arguments in (
                (file, f"127.0.0.1:{nobody.getsockname()[1]}"),
                (file, receiver.address, "--conflict", "error"),
                (area / "missing", receiver.address),
                (area, receiver.address),
                (file, "no..such..peer"),
                (file, receiver.address, "--frob"),
                (file,),
            )
        ]
        for run, code in zip(runs, (69, 73, 66, 64, 68, 64, 64), strict=True):
            assert (run.wait(), run.stdout) == (code, ""), run.log()
            assert re.fullmatch(r"tdx: [^\n]+\n", run.stderr), run.log()


# --- terminals -------------------------------------------------------------------------


@dataclass
class OnTerminal:
    """How a command ended that had a terminal for all its standard streams, and what it wrote there."""

    code: int
    wrote: bytes
    left: bytes
    """What was typed ahead and nobody has read."""


TYPED: Final = b"typed ahead\n"


def on_terminal(
    processes: Processes, arguments: Sequence[str | Path], variables: Mapping[str, str]
) -> OnTerminal:
    kept = {name: value for name, value in processes.environment.items() if name not in {"TERM", "NO_COLOR"}}
    ours, theirs = pty.openpty()
    script = (
        # Its own session, so that the terminal is its controlling one, which a question would be asked on.
        "import fcntl, os, subprocess, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "code = subprocess.call(sys.argv[2:]); open(sys.argv[1], 'w').write(str(code))"
    )
    ended = processes.logs / f"ended-{len(processes.started)}"
    wrote = bytearray()
    try:
        os.write(ours, TYPED)
        command = [sys.executable, "-c", script, str(ended), *PROGRAM, *map(str, arguments)]
        streams = {"stdin": theirs, "preexec_fn": lambda: [os.dup2(theirs, to) for to in (1, 2)]}
        process = processes.run("terminal", command, env={**kept, **variables}, **streams)
        os.set_blocking(ours, False)
        os.set_blocking(theirs, False)

        def over() -> bool:
            with suppress(BlockingIOError):
                while data := os.read(ours, 65536):
                    wrote.extend(data)
            return not process.running

        wait_until(over, "it has ended", PATIENCE)
        over()
        left = b""
        with suppress(BlockingIOError):
            left = os.read(theirs, 1000)
    finally:
        os.close(ours)
        os.close(theirs)
    echo = TYPED.replace(b"\n", b"\r\n")
    return OnTerminal(int(ended.read_text()), bytes(wrote).removeprefix(echo), left)


def looking(area: Path, receiver: Receiver) -> dict[str, tuple[int, Sequence[str | Path]]]:
    """Commands of every kind, and how they end."""
    return {
        "push": (0, ("push", random_file(area / "p", 10), receiver.address)),
        "push to nobody": (68, ("push", area / "p", "no..such..peer")),
        "push with a name that is taken": (0, ("push", area / "p", receiver.address, "--name", "taken")),
        "peers": (0, ("peers",)),
        "whois": (0, ("whois", receiver.address)),
        "doctor": (0, ("doctor", receiver.address, "--size", "1M")),
        "policy": (77, ("policy", "check", "tailscale:n1")),
        "trust": (0, ("trust", "list")),
        "remove": (68, ("trust", "remove", "nobody")),
        "id": (0, ("id",)),
        "gc": (0, ("gc", "--dir", receiver.folder)),
        "hash": (0, ("hash", area / "p")),
        "help": (0, ("--help",)),
        "no command": (64, ("frobnicate",)),
    }


@pytest.mark.parametrize("terminal", ["dumb", "", "unknown"])
def test_nothing_is_asked_and_a_terminal_that_can_do_nothing_is_not_driven(
    processes: Processes, receiver: Receiver, area: Path, terminal: str
) -> None:
    (receiver.folder / "taken").write_bytes(b"here before")
    for name, (code, arguments) in looking(area, receiver).items():
        ended = on_terminal(processes, arguments, {"TERM": terminal} if terminal else {})
        assert ended.code == code, (name, ended)
        assert ended.left == TYPED, name
        assert b"\x1b" not in ended.wrote, (name, ended.wrote)
        assert b"\r" not in ended.wrote.replace(b"\r\n", b""), (name, ended.wrote)


def slow_push(area: Path, receiver: Receiver, name: str) -> Sequence[str | Path]:
    source = random_file(area / "slow", 6 * MIB)
    return ("push", source, receiver.address, "--name", name, "--limit-rate", "4M", "--conflict", "overwrite")


def test_where_a_line_could_be_drawn_it_depends_on_the_terminal(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    """A push that takes long enough for its live line, on four terminals and on none."""
    drawn = {
        name: on_terminal(processes, slow_push(area, receiver, name), variables).wrote
        for name, variables in {
            "able": {"TERM": "xterm-256color"},
            "plain": {"TERM": "xterm-256color", "NO_COLOR": "1"},
            "dumb": {"TERM": "dumb"},
            "none": {},
        }.items()
    }
    assert b"\x1b[3" in drawn["able"]
    assert b"\x1b[?25l" in drawn["plain"]
    assert not re.search(rb"\x1b\[[0-9;]*m", drawn["plain"])
    for name in ("dumb", "none"):
        assert b"\x1b" not in drawn[name]
    able = {**processes.environment, "TERM": "xterm-256color", "FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}
    piped = tdx(processes, *slow_push(area, receiver, "piped"), env=able)
    assert (piped.wait(), piped.stderr) == (0, "")
    assert "\x1b" not in piped.stdout


def test_what_is_typed_ahead_is_left_to_who_comes_next_on_an_able_terminal(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    ended = on_terminal(processes, slow_push(area, receiver, "f"), {"TERM": "xterm-256color"})
    assert (ended.code, ended.left) == (0, TYPED)


# --- standard streams --------------------------------------------------------------------


CLOSED: Final = [streams for streams in product(("<&-", ""), (">&-", ""), ("2>&-", "")) if any(streams)]


@pytest.mark.parametrize("streams", CLOSED, ids=" ".join)
def test_with_standard_streams_closed_a_push_does_what_it_does(
    processes: Processes, receiver: Receiver, area: Path, streams: Sequence[str]
) -> None:
    shell = ["sh", "-c", f'"$@" {" ".join(streams)}', "sh", *PROGRAM]
    large, folder = random_file(area / "large", 9 * MIB), folder_of(area)
    for arguments in ([str(large)], ["-r", str(folder)]):
        push = processes.run("push", [*shell, "push", *arguments, receiver.address, "--json"])
        assert push.wait() == 0, push.log()
    assert sha256_of(receiver.folder / "large") == sha256_of(large)
    assert receiver.published == ["folder", "folder/a", "folder/b", "folder/c", "large"]
    missing = processes.run("push", [*shell, "push", str(area / "missing"), receiver.address])
    assert missing.wait() == 66, missing.log()


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&-", ">/dev/null 2>/dev/full"])
def test_a_receiver_serves_whatever_its_standard_streams_are(
    processes: Processes, area: Path, streams: str
) -> None:
    inbox = area / "quiet"
    inbox.mkdir(mode=0o700)
    with reserve_port() as port:
        address = f"127.0.0.1:{port.getsockname()[1]}"
        shell = ["sh", "-c", f'exec "$@" {streams}', "sh", *PROGRAM, "serve", "--dir", str(inbox)]
        flags = ["--listen", address, "--log-level", "debug", "--state", str(area / "quiet-state")]
        serving = processes.run("serve", [*shell, *flags])
        large = random_file(area / "large", 9 * MIB)
        wait_until(
            lambda: tdx(processes, "push", "-q", large, address).wait() == 0 or not serving.running,
            "it serves",
        )
        refused = tdx(processes, "push", "-q", large, address, "--name", "../x")
        assert refused.wait() == 73
        assert serving.terminate() == 0, serving.log()
    assert sha256_of(inbox / "large") == sha256_of(large)
    assert serving.stderr == ""


# --- the environment -----------------------------------------------------------------------


@pytest.mark.parametrize("cron", [True, False], ids=["cron's", "none"])
def test_what_the_environment_lacks_is_not_needed(
    processes: Processes, receiver: Receiver, area: Path, cron: bool
) -> None:
    """Neither HOME nor XDG_RUNTIME_DIR, TERM or a locale; only where state is kept is said here, so that
    the tests write into no home."""
    given = CRON if cron else {}
    environment = bare(processes, **given, TDX_STATE_DIR=str(area / "state"))
    large, folder = random_file(area / "large", 9 * MIB), folder_of(area)
    for arguments in (("push", large), ("push", "-r", folder)):
        push = tdx(processes, *arguments, receiver.address, env=environment)
        assert (push.wait(), push.stderr) == (0, ""), push.log()
    for command in (("peers",), ("id",), ("gc",), ("trust", "list"), ("doctor", receiver.address)):
        assert tdx(processes, *command, env=environment).wait() == 0
    assert sha256_of(receiver.folder / "large") == sha256_of(large)


def test_a_receiver_runs_in_an_empty_environment(processes: Processes, area: Path) -> None:
    serving = processes.receiver(
        area / "inbox", area / "receiver-state", program=["env", "-i", _path(processes), *PROGRAM]
    )
    push = processes.push(random_file(area / "f", 10), serving.address)
    push.ends(0, "done")
    serving.stop()


def _path(processes: Processes) -> str:
    return f"PYTHONPATH={processes.environment['PYTHONPATH']}"


def test_who_has_no_home_is_told_what_to_say_instead(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    """A user that no password database knows, as in containers."""
    stranger, file = as_stranger(), random_file(area / "f", 10)
    file.chmod(0o644)
    nowhere = [*stranger, *PROGRAM, "push", str(file), receiver.address]
    homeless = processes.run("push", nowhere, env=bare(processes))
    assert homeless.wait() == 78, homeless.log()
    assert (
        homeless.stderr
        == "tdx: no home to keep state in: name a folder with --state, or with TDX_STATE_DIR\n"
    )
    # So far, that is: the receiver is another user's.
    told = processes.run("push", [*nowhere, "--state", "/tmp/tdx-no-such-state"], env=bare(processes))
    assert told.wait() == 77, told.log()


NAMES: Final = ("ä ö 100% 🎉.txt", "日本語", "-dash", "ends\u200b", "e\u0301")


@pytest.mark.parametrize(
    "locale", [{}, {"LANG": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "no_SUCH.locale"}], ids=str
)
def test_names_are_utf_8_in_every_locale(
    processes: Processes, receiver: Receiver, area: Path, locale: Mapping[str, str]
) -> None:
    environment = bare(processes, **locale, TDX_STATE_DIR=str(area / "state"))
    for name in NAMES:
        file = random_file(area / name, 10)
        push = tdx(processes, "push", "--json", "--", file, receiver.address, env=environment)
        assert push.wait() == 0, push.log()
        assert push.stdout.isascii()
        assert json.loads(push.stdout.splitlines()[-1])["path"] == name
        assert tdx(processes, "push", "--", file, receiver.address, env=environment).wait() == 0
    missing = tdx(processes, "push", area / "fehlt ä", receiver.address, env=environment)
    assert (missing.wait(), missing.stderr.count("\n")) == (66, 1), missing.log()
    assert set(receiver.published) == set(NAMES)


def test_a_name_that_is_no_text_is_refused_by_a_line(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    raw = os.fsencode(area) + b"/\xff\xfe"
    with open(raw, "wb") as file:
        file.write(b"x")
    for environment in ({}, {"LANG": "C"}, {"LC_ALL": "C.UTF-8"}):
        given = bare(processes, **environment, TDX_STATE_DIR=str(area / "state"))
        push = tdx(processes, "push", "--json", os.fsdecode(raw), receiver.address, env=given)
        assert push.wait() == 73, push.log()
        assert json.loads(push.stdout.splitlines()[-1])["error"]["code"] == "bad-name"
        assert push.stderr.count("\n") == 1
    assert receiver.published == []


def test_a_push_that_is_run_again_and_again_is_there_once(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    needs("timeout")
    large = random_file(area / "large", 24 * MIB)
    ended: list[int] = []
    while not ended or ended[-1] != 0:
        assert len(ended) < 20, ended
        flags = ["--resume", "--limit-rate", "8M", "--timeout", "2s"]
        ended.append(tdx(processes, "push", "-q", large, receiver.address, *flags).wait())
    assert set(ended) <= {0, 75}
    assert len(ended) > 1
    assert tdx(processes, "push", "-q", large, receiver.address).wait() == 0
    assert receiver.published == ["large"]
    assert sha256_of(receiver.folder / "large") == sha256_of(large)
