"""The exit codes: what each means, which errors end with it, and that the real command ends with it for real
causes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.content import MIB, random_file
from support.devices import trust
from support.disks import failing_ext4, receiver_on
from support.lying import Asked, lying, message
from support.processes import PROGRAM, ROOT, Processes, Push, Receiver, Running, reserve_port, wait_until
from support.proxy import Fault, always, mistreating, once
from support.spaces import as_stranger
from tdx.errors import by_code, leaves

TEMPORARY: Final = """
    busy connection-lost identity-unavailable interrupted seal-broken stalled superseded timeout upload-busy
"""
NO_PROTOCOL: Final = """
    head-too-large illegal-transition length-required method-not-allowed not-found offset-mismatch overrun
    protocol range-not-satisfiable tls unsupported-coding
"""

CONTRACT: Final = {
    0: ("done", ""),
    64: ("usage", "usage"),
    65: ("verification failed", "digest-mismatch extents-differ verification-failed"),
    66: ("the source is missing, unreadable, or changed while it was sent", "source source-changed"),
    68: ("the peer's name does not resolve", "unknown-peer"),
    69: ("the peer refuses the connection, there is no route", "unreachable"),
    70: ("a defect of tdx", ""),
    73: ("the destination refuses", "bad-name exists no-space precondition-failed too-large"),
    74: ("a disk, or an output of the command, failed", "internal storage storage-unusable"),
    75: ("interrupted or temporary", TEMPORARY),
    76: ("the other end does not speak the protocol", NO_PROTOCOL),
    77: ("not permitted", "forbidden pairing-failed"),
    78: ("the configuration, or the receiver's folder, cannot be used", "config"),
}
"""Code → what it means, in the words that docs/cli.md begins with, and the errors that end with it. A later
version may add lines, and errors to a line; scripts break where one is changed."""

WRONG_ROOT = "xxh3-128:4194304:" + "0" * 32
ONCE = ("--retries", "1")


# --- the table -----------------------------------------------------------------------


@pytest.mark.parametrize("code", CONTRACT)
def test_every_error_of_the_table_ends_with_its_code(code: int) -> None:
    for name in CONTRACT[code][1].split():
        error = by_code(name)
        assert error is not None, name
        assert error.exit_code == code, name


def test_every_error_is_in_the_table() -> None:
    ours = {cls.code for cls in leaves() if cls.__module__ == "tdx.errors"}
    assert ours == {name for _, names in CONTRACT.values() for name in names.split()}


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    missing = [code for code, (meaning, _) in CONTRACT.items() if f"\n| {code} | {meaning}" not in page]
    assert missing == []


# --- the causes ----------------------------------------------------------------------


@dataclass
class World:
    """What a cause is made of. ``reports``: the error has an event and a line, as it has without tricks."""

    processes: Processes
    receiver: Receiver
    area: Path
    reports: bool = True

    def source(self, size: int = 10) -> Path:
        return random_file(self.area / "source", size)

    def push(self, *arguments: str | Path) -> Running:
        return self.processes.push(*arguments)

    def tdx(self, *arguments: str | Path, through: Sequence[str] = (), **environment: str) -> Running:
        """Another command than push, or one that has no events."""
        self.reports = False
        env = {**self.processes.environment, **environment}
        return self.processes.run("tdx", [*through, *PROGRAM, *map(str, arguments)], env=env)

    def configured(self, text: str) -> Receiver:
        """Another receiver, with this configuration."""
        return self.processes.receiver(self.area / "other", self.area / "other-state", config=text)


Cause = Callable[[World], Running]


def done(world: World) -> Running:
    world.reports = False
    return world.push(world.source(9 * MIB), world.receiver.address)


def stopped_in_order(world: World) -> Running:
    world.reports = False
    world.receiver.process.signal(signal.SIGTERM)
    return world.receiver.process


def a_folder_without_r(world: World) -> Running:
    return world.push(world.area, world.receiver.address)


def no_root(world: World) -> Running:
    return world.tdx("verify", world.source(), "beef")


def no_folder(world: World) -> Running:
    return world.tdx("serve")


def another_content(world: World) -> Running:
    return world.tdx("verify", world.source(), WRONG_ROOT)


def bits_flip_on_the_way(world: World) -> Running:
    """In every extent, each time that it is sent."""
    source = world.source(9 * MIB)
    with mistreating(world.receiver.port, always(Fault("flip", 500_000, every=1_000_000))) as proxy:
        push = world.push(source, f"127.0.0.1:{proxy.peer.port}")
        push.wait()
    assert world.receiver.published == []
    return push


def a_receiver_that_finds_another_digest(world: World) -> Running:
    problem = b'{"type":"urn:tdx:problem:digest-mismatch","status":400,"detail":"not those bytes"}'
    refusal = message(400, problem, "Content-Type: application/problem+json")
    with lying(lambda _: refusal) as liar:
        push = world.push(world.source(), f"127.0.0.1:{liar.peer.port}")
        push.wait()
    return push


def no_source(world: World) -> Running:
    return world.push(world.area / "missing", world.receiver.address)


def closed_input(world: World) -> Running:
    command = ["sh", "-c", '"$@" <&-', "sh", *PROGRAM, "push", "-", world.receiver.address, "--name", "x"]
    world.reports = False
    return world.processes.run("tdx", command)


def a_source_that_grows(world: World) -> Running:
    source = world.source(24 * MIB)
    push = world.processes.push(source, world.receiver.address, "--limit-rate", "10M")
    world.receiver.await_staged(4 * MIB)
    with source.open("ab") as file:
        file.write(b"more")
    return push


def no_such_name(world: World) -> Running:
    return world.push(world.source(), "no..such..peer")


def nobody_known(world: World) -> Running:
    return world.tdx("whois", "127.0.0.1:1")


def nobody_listens(world: World) -> Running:
    with reserve_port() as nobody:
        push = world.push(world.source(), f"127.0.0.1:{nobody.getsockname()[1]}")
        push.wait()
    return push


def a_broken_installation(world: World) -> Running:
    broken = world.area / "broken"
    broken.mkdir()
    (broken / "xxhash.py").write_text("raise ImportError('libxxhash.so.0: cannot open shared object file')\n")
    path = os.pathsep.join([str(broken), world.processes.environment["PYTHONPATH"]])
    return world.tdx("hash", world.source(), PYTHONPATH=path)


def a_name_that_is_taken(world: World) -> Running:
    (world.receiver.folder / "source").write_bytes(b"here before")
    return world.push(world.source(), world.receiver.address, "--conflict", "error")


def a_name_that_escapes(world: World) -> Running:
    return world.push(world.source(), world.receiver.address, "--name", "../escape")


def no_space(world: World) -> Running:
    return world.push(world.source(MIB), world.configured(f"reserve = {1 << 62}").address)


def too_large(world: World) -> Running:
    return world.push(world.source(MIB), world.configured("[limits]\nmax_file = 1000").address)


def an_output_that_is_full(world: World) -> Running:
    command = [*PROGRAM, "push", "--json", str(world.source()), world.receiver.address]
    world.reports = False
    return world.processes.run("tdx", ["sh", "-c", '"$@" >/dev/full', "sh", *command])


def a_disk_that_fails(world: World) -> Running:
    disk = failing_ext4(world.processes, world.area / "disk", 48 * MIB)
    receiver = receiver_on(disk, world.processes, world.area)
    with disk.broken():
        push = world.push(world.source(20 * MIB), receiver.address, *ONCE)
        push.wait()
    return push


def a_receiver_whose_disk_failed(world: World) -> Running:
    problem = b'{"type":"urn:tdx:problem:storage","status":500,"detail":"the disk failed"}'
    refusal = message(500, problem, "Content-Type: application/problem+json")
    with lying(lambda _: refusal) as liar:
        push = world.push(world.source(), f"127.0.0.1:{liar.peer.port}", *ONCE)
        push.wait()
    return push


def a_signal(world: World) -> Running:
    push = world.push(world.source(24 * MIB), world.receiver.address, "--limit-rate", "5M")
    world.receiver.await_staged(MIB)
    push.signal(signal.SIGTERM)
    return push


def no_time(world: World) -> Running:
    flags = ("--limit-rate", "1M", "--timeout", "1s")
    return world.push(world.source(24 * MIB), world.receiver.address, *flags)


def a_connection_that_breaks(world: World) -> Running:
    with mistreating(world.receiver.port, once(Fault("cut", 1000))) as proxy:
        push = world.push(world.source(9 * MIB), f"127.0.0.1:{proxy.peer.port}", "--retries", "0")
        push.wait()
    return push


def a_peer_that_falls_silent(world: World) -> Running:
    def wait(sock: socket.socket) -> None:
        sock.recv(1)

    def silence(_: Asked) -> Callable[[socket.socket], None]:
        return wait

    with lying(silence) as liar:
        flags = ("--stall-timeout", "300ms", "--retries", "0")
        push = world.push(world.source(), f"127.0.0.1:{liar.peer.port}", *flags)
        push.wait()
    return push


def another_protocol(world: World) -> Running:
    with lying(lambda _: b"SSH-2.0-OpenSSH_9.6\r\n") as liar:
        push = world.push(world.source(), f"127.0.0.1:{liar.peer.port}")
        push.wait()
    return push


def another_server(world: World) -> Running:
    with lying(lambda _: message(200, b"<html>It works!</html>", "Content-Type: text/html")) as liar:
        push = world.push(world.source(), f"127.0.0.1:{liar.peer.port}")
        push.wait()
    return push


def an_unpaired_device(world: World) -> Running:
    here, there = world.area / "laptop", world.area / "receiver-state"
    trust(here, "nas", there, world.receiver.address)
    return world.push(world.source(), "nas", "--state", here)


def another_user(world: World) -> Running:
    stranger = as_stranger()
    return world.processes.push(world.source(), world.receiver.address, prefix=stranger)


def nobody_in_the_rules(world: World) -> Running:
    return world.tdx("policy", "check", "tailscale:n1")


def a_folder_that_others_may_write(world: World) -> Running:
    folder = world.area / "open"
    folder.mkdir()
    folder.chmod(0o777)
    return world.tdx("serve", "--dir", folder, "--listen", "127.0.0.1:0")


def a_key_that_is_unknown(world: World) -> Running:
    config = world.area / "tdx.toml"
    config.write_text("nonsense = 1\n")
    return world.tdx("push", world.source(), world.receiver.address, "--config", config)


def trust_that_is_damaged(world: World) -> Running:
    state = world.area / "damaged"
    state.mkdir(mode=0o700)
    (state / "trust.json").write_text("{")
    return world.push(world.source(), world.receiver.address, "--state", state)


CAUSES: Final[dict[int, Sequence[Cause]]] = {
    0: (done, stopped_in_order),
    64: (a_folder_without_r, no_root, no_folder),
    65: (another_content, bits_flip_on_the_way, a_receiver_that_finds_another_digest),
    66: (no_source, closed_input, a_source_that_grows),
    68: (no_such_name, nobody_known),
    69: (nobody_listens,),
    70: (a_broken_installation,),
    73: (a_name_that_is_taken, a_name_that_escapes, no_space, too_large),
    74: (an_output_that_is_full, a_disk_that_fails, a_receiver_whose_disk_failed),
    75: (a_signal, no_time, a_connection_that_breaks, a_peer_that_falls_silent),
    76: (another_protocol, another_server),
    77: (an_unpaired_device, another_user, nobody_in_the_rules),
    78: (a_folder_that_others_may_write, a_key_that_is_unknown, trust_that_is_damaged),
}


def test_every_code_has_a_cause() -> None:
    assert set(CAUSES) == set(CONTRACT)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        pytest.param(code, cause, id=f"{code} {cause.__name__.replace('_', ' ')}")
        for code, causes in CAUSES.items()
        for cause in causes
    ],
)
def test_a_real_cause_ends_the_real_command_with_its_code(
    code: int, cause: Cause, processes: Processes, receiver: Receiver, area: Path
) -> None:
    world = World(processes, receiver, area)
    ended = cause(world)
    assert ended.wait() == code, ended.log()
    assert "Traceback" not in ended.stderr
    if code and ended is not receiver.process:
        assert ended.stderr.startswith("tdx: "), ended.log()
        assert ended.stderr.count("\n") == 1, ended.log()
    if world.reports:
        assert isinstance(ended, Push)
        error = ended.ends(code, "failed")["error"]
        assert error["exit_code"] == code
        assert error["code"] in CONTRACT[code][1].split()
        assert error["message"] in ended.stderr


def test_a_receiver_that_cannot_go_on_says_why(processes: Processes, receiver: Receiver) -> None:
    """Its folder is removed under it."""
    shutil.rmtree(receiver.folder)
    wait_until(lambda: not receiver.process.running, "it has ended")
    assert receiver.process.code == 78
    assert receiver.process.stderr.splitlines()[-1].startswith("tdx: ")
