from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import PATIENCE, Tdx, parsed


@pytest.fixture
def other(tmp_path: Path) -> Tdx:
    return Tdx(tmp_path / "other")


class Waiting:
    """``tdx pair`` on another machine, which waits."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "it says nothing"
        return self.process.stdout.readline().decode().rstrip("\n")

    def end(self) -> tuple[int, str, str]:
        """Its exit code and what else it said."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output.decode(), errors.decode()


@contextlib.contextmanager
def waiting(tdx: Tdx, *flags: str) -> Iterator[Waiting]:
    process = tdx.start(
        "pair",
        *("--listen", "127.0.0.1:0", "--name", "desk", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield Waiting(process)
        finally:
            if process.poll() is None:
                process.kill()


def offer(waits: Waiting) -> list[str]:
    """The command that it asks for, without `tdx`."""
    line = waits.line()
    assert line.startswith("pair with: tdx pair 127.0.0.1:")
    assert waits.line() == "waiting for 10:00; the code is good for one try"
    return line.removeprefix("pair with: tdx ").split()


def key_of(tdx: Tdx) -> str:
    return str(json.loads(tdx("id", "--json").stdout)["key"])


def test_two_machines_pair_by_what_one_of_them_prints(tdx: Tdx, other: Tdx) -> None:
    with waiting(other) as waits:
        done = tdx(*offer(waits), "--name", "laptop", "--port", "9002")
        code, said, errors = waits.end()
    assert (done.returncode, done.stderr) == (code, errors) == (0, "")
    assert done.stdout == f"paired with desk, key {key_of(other)}\n"
    assert said == f"paired with laptop, key {key_of(tdx)}\n"
    (mine,) = parsed(tdx("trust", "list", "--json").stdout)
    (theirs,) = parsed(other("trust", "list", "--json").stdout)
    assert (mine["name"], mine["key"], mine["addresses"]) == ("desk", key_of(other), ["127.0.0.1:8390"])
    assert (theirs["name"], theirs["key"], theirs["addresses"]) == ("laptop", key_of(tdx), ["127.0.0.1:9002"])


def test_scripts_get_events(tdx: Tdx, other: Tdx) -> None:
    with waiting(other, "--json", "--expires", "5m", "--as", "mine") as waits:
        offered = json.loads(waits.line())
        assert list(offered) == ["event", "addresses", "code", "expires_seconds"]
        assert (offered["event"], offered["expires_seconds"]) == ("waiting", 300.0)
        done = tdx("pair", offered["addresses"][0], offered["code"], "--json", "--as", "work")
        code, said, _ = waits.end()
    assert (done.returncode, code) == (0, 0)
    (event,), (theirs,) = parsed(done.stdout), parsed(said)
    assert list(event) == list(theirs) == ["event", "name", "key", "addresses", "added"]
    assert (event["event"], event["name"], event["key"]) == ("paired", "work", key_of(other))
    assert (theirs["event"], theirs["name"], theirs["key"]) == ("paired", "mine", key_of(tdx))


def test_a_wrong_code_is_77_on_both_sides_and_burns_the_right_one(tdx: Tdx, other: Tdx) -> None:
    with waiting(other) as waits:
        pair, address, code = offer(waits)
        wrong = "0000-0000" if code != "0000-0000" else "1111-1111"
        done = tdx(pair, address, wrong)
        status, said, errors = waits.end()
        again = tdx(pair, address, code)
    assert (done.returncode, done.stdout) == (status, said) == (77, "")
    assert errors.startswith("tdx: pairing failed: not the same code on both sides")
    assert done.stderr.startswith("tdx: pairing failed: the other end refused")
    assert len((done.stderr + errors).splitlines()) == 2
    assert (again.returncode, again.stdout) == (69, "")
    assert (tdx("trust", "list").stdout, other("trust", "list").stdout) == ("", "")


def test_an_expired_code_is_77(other: Tdx) -> None:
    done = other("pair", "--listen", "127.0.0.1:0", "--expires", "10ms")
    assert done.returncode == 77
    assert done.stderr.startswith("tdx: nobody answered in time")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_75(other: Tdx, number: signal.Signals) -> None:
    with waiting(other) as waits:
        offer(waits)
        waits.process.send_signal(number)
        assert waits.end() == (75, "", "tdx: interrupted\n")


def test_something_else_that_listens_is_76(tdx: Tdx) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = tdx.start(
            "pair", f"127.0.0.1:{listener.getsockname()[1]}", "0000-0000", stderr=subprocess.PIPE
        )
        with process:
            listener.settimeout(PATIENCE)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 76
    assert b"does not speak this version of tdx pairing" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("127.0.0.1:1",), 64, "or neither"),
        (("127.0.0.1:1", "0000-0000", "more"), 64, "or neither"),
        (("127.0.0.1", "0000-0000"), 64, "not an address"),
        (("127.0.0.1:1", "short"), 64, "not a code"),
        (("127.0.0.1:1", "0000-0000", "--listen", "127.0.0.1:0"), 64, "--listen is for"),
        (("127.0.0.1:1", "0000-0000", "--as", "a b"), 64, "cannot name a device"),
        (("--expires", "0"), 64, "would end before it began"),
        (("nowhere.invalid:1", "0000-0000"), 68, "no machine is called nowhere.invalid"),
        (("--listen", "192.0.2.1:1"), 78, "cannot listen on 192.0.2.1:1"),
    ],
)
def test_what_cannot_be_done_is_one_line(tdx: Tdx, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = tdx("pair", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_nobody_there_is_69(tdx: Tdx) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = tdx("pair", f"127.0.0.1:{port}", "0000-0000")
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith(f"tdx: cannot reach 127.0.0.1:{port}: connection refused; ")


def test_every_address_of_the_machine_is_offered(other: Tdx) -> None:
    process = other.start("pair", stdout=subprocess.PIPE)
    with process:
        waits = Waiting(process)
        lines: list[str] = []
        while not (line := waits.line()).startswith("waiting"):
            lines.append(line)
        process.kill()
    assert lines
    assert len({tuple(line.rpartition(":")[2].split()) for line in lines}) == 1
    assert not any("127.0.0.1:" in line for line in lines) or os.uname().nodename in ("", "localhost")
