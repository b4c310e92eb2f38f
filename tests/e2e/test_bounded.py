"""A push ends when it was told to: --timeout bounds it in every phase, --retries is what it says."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from support.content import MIB, random_file
from support.listening import Listening
from support.lying import Asked, Lie, lying, message
from support.processes import PROGRAM, Processes, Receiver, Running, wait_until
from support.spaces import namespaces, needs, or_skip
from tdx.integrity import MIN_EXTENT

LIMIT: Final = ("--timeout", "1s")

BOUND: Final = 45.0
"""Seconds, on a busy machine, for a second, the five of an orderly end, and a start."""

HANGING_DISK: Final = """
import errno, stat, sys, threading, warnings
warnings.simplefilter("ignore")
import mfusepy

class Hanging(mfusepy.Operations):
    use_ns = True

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != "/file":
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": int(sys.argv[2])}

    def read(self, *arguments):
        threading.Event().wait()

mfusepy.FUSE(Hanging(), sys.argv[1], foreground=True, nothreads=False)
"""


def ends_in_time(push: Running, *, code: int = 75) -> str:
    """Its one line on standard error."""
    assert push.wait(BOUND) == code, push.log()
    (line,) = push.stderr.splitlines()
    assert line.startswith("tdx: not done after 1.0 s"), push.log()
    return line


# --- --timeout -------------------------------------------------------------------------


def test_a_name_service_that_does_not_answer(processes: Processes, area: Path) -> None:
    holder = namespaces(processes, "mount", "net")
    inside = ["nsenter", "-t", str(holder.pid), "--mount", "--net"]
    needs("ip")
    settings = area / "resolv.conf"
    settings.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    or_skip([*inside, "mount", "--bind", str(settings), "/etc/resolv.conf"])
    or_skip([*inside, "ip", "link", "set", "lo", "up"])
    deaf = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 53));"
    silent = processes.run(
        "names", [*inside, sys.executable, "-c", f"{deaf} print(1, flush=True); time.sleep(3600)"]
    )
    wait_until(lambda: silent.stdout, "the name service is there")
    push = processes.push(random_file(area / "f", 10), "nas.example", *LIMIT, prefix=inside)
    assert "nas.example:8390 had not been reached" in ends_in_time(push)


@contextmanager
def black_hole() -> Iterator[str]:
    """An address where whatever begins a connection is dropped: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_black_hole(processes: Processes, area: Path) -> None:
    with black_hole() as address:
        push = processes.push(random_file(area / "f", 10), address, *LIMIT)
        assert "had not been reached" in ends_in_time(push)


def test_a_huge_file_that_has_to_be_read_first(processes: Processes, receiver: Receiver, area: Path) -> None:
    huge = area / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 43)
    ends_in_time(processes.push(huge, receiver.address, *LIMIT, "--digest", "sha-256"))
    assert receiver.published == []


def on_and_on(sock: socket.socket) -> None:
    """Not done yet, and not done yet: often enough to be no silence, seldom enough to be no flood."""
    sock.settimeout(0.2)
    with suppress(ConnectionError):
        while True:
            sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
            with suppress(TimeoutError):
                if not sock.recv(1):
                    return


def hanging_commit(asked: Asked) -> Lie:
    if asked.target.endswith("/commit"):
        return on_and_on
    if asked.method == "POST":
        opened = {"id": "0" * 32, "epoch": 1, "extent_size": MIN_EXTENT, "held": [], "streams": 4}
        answer = json.dumps({**opened, "existing": False, "resumed": False, "unchanged": False}).encode()
        return message(201, answer, f"Location: /uploads/{'0' * 32}", "Content-Type: application/json")
    return message(200, b'{"stages": {}}', "Content-Type: application/json")


@pytest.mark.parametrize("size", [10, 9 * MIB], ids=["a small file", "a large file"])
def test_a_commit_that_hangs(processes: Processes, area: Path, size: int) -> None:
    source = random_file(area / "f", size)
    lie: Callable[[Asked], Lie] = hanging_commit if size > MIB else lambda _: on_and_on
    with lying(lie) as liar:
        push = processes.push(source, f"127.0.0.1:{liar.peer.port}", *LIMIT, "--retries", "0")
        ends_in_time(push)
        if size > MIB:
            assert any(event.get("phase") == "committing" for event in push.events), push.log()


STREAMS: Final = {
    "nothing": "sleep 600",
    "a trickle": "while :; do echo more; sleep 0.01; done",
    "a flood": "cat /dev/zero",
}


@pytest.mark.parametrize("writes", STREAMS)
def test_standard_input_that_never_ends(processes: Processes, receiver: Receiver, writes: str) -> None:
    source = processes.run("source", ["sh", "-c", f"mkfifo pipe; exec >pipe; {STREAMS[writes]}"])
    pipe = processes.logs / "pipe"
    wait_until(pipe.exists, "the pipe is there")
    with pipe.open("rb") as stdin:
        arguments = ("-", receiver.address, "--name", "endless", "--limit-rate", "20M", *LIMIT)
        push = processes.push(*arguments, stdin=stdin)
        ends_in_time(push)
        source.kill()
    assert receiver.published == []


def test_a_disk_that_does_not_answer(processes: Processes, receiver: Receiver, area: Path) -> None:
    pytest.importorskip("mfusepy")
    needs("fusermount3")
    mount = area / "mount"
    mount.mkdir()
    disk = processes.run("disk", [sys.executable, "-c", HANGING_DISK, str(mount), str(9 * MIB)])
    file = mount / "file"
    wait_until(lambda: file.exists() or not disk.running, "the disk is there")
    if not disk.running:
        pytest.skip(f"no FUSE: {disk.stderr.strip()}")
    try:
        push = processes.push(file, receiver.address, *LIMIT)
        line = ends_in_time(push)
        assert "still does not answer" in line
    finally:
        processes.run("unmount", ["fusermount3", "-u", "-z", str(mount)]).wait()
        disk.kill()


def full_pipe() -> tuple[int, int]:
    """A pipe that nobody reads and that takes nothing any more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for piece in (bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)), b"."):
        with suppress(BlockingIOError):
            while True:
                os.write(writer, piece)
    os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("outputs", [">$0", ">$0 2>$0"], ids=["standard output", "both"])
def test_outputs_that_nobody_reads(
    processes: Processes, receiver: Receiver, area: Path, outputs: str
) -> None:
    reader, writer = full_pipe()
    command = [*PROGRAM, "push", "--json", str(random_file(area / "f", 10)), receiver.address, *LIMIT]
    try:
        shell = ["sh", "-c", f'"$@" {outputs}', f"/proc/self/fd/{writer}", *command]
        push = processes.run("push", shell, pass_fds=[writer])
        assert push.wait(BOUND) == 75, push.log()
    finally:
        os.close(reader)
        os.close(writer)


# --- --retries -------------------------------------------------------------------------


class Counting(Listening):
    """Ends every connection, at once or when its request has begun, and counts them."""

    def __init__(self, *, after: int) -> None:
        self.connections = 0
        self._after = after
        super().__init__("counting listener")

    def _take(self, sock: socket.socket) -> None:
        self.connections += 1
        with suppress(OSError):
            sock.settimeout(10.0)
            if self._after:
                sock.recv(self._after)
        sock.close()


@pytest.mark.parametrize("after", [0, 1], ids=["at once", "inside the request"])
@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(
    "flags", [("small",), ("large",), ("large", "--streams", "4"), ("-r", "folder"), ("small", "large")]
)
def test_a_peer_that_ends_every_connection_is_tried_once_and_as_often_again_as_was_said(
    processes: Processes, area: Path, flags: Sequence[str], retries: int, after: int
) -> None:
    random_file(area / "small", 10)
    random_file(area / "large", 9 * MIB)
    (area / "folder").mkdir()
    for name in "abc":
        random_file(area / "folder" / name, 10)
    paths = [area / flag if (area / flag).exists() else flag for flag in flags]
    with Counting(after=after) as peer:
        address = f"127.0.0.1:{peer.peer.port}"
        arguments = [*paths, "--retries", str(retries)]
        first_flag = next((at for at, each in enumerate(arguments) if str(each) == "--streams"), len(paths))
        push = processes.push(*arguments[:first_flag], address, *arguments[first_flag:])
        assert push.wait(BOUND) == 75, push.log()
        tried = peer.connections
    # Several are asked about together, and none is tried where that was in vain.
    assert tried == retries + 1, push.log()
