"""Out of descriptors, threads or memory a receiver refuses, lives on, and goes on by itself."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Receiver, wait_until
from support.spaces import needs

ONCE = ("--retries", "1")


@pytest.fixture(autouse=True)
def _prlimit() -> None:
    needs("prlimit")


def limit(receiver: Receiver, *limits: str) -> None:
    subprocess.run(["prlimit", "--pid", str(receiver.process.pid), *limits], check=True)


def test_a_push_waits_for_descriptors_that_others_hold(processes: Processes, area: Path) -> None:
    receiver = processes.receiver(
        area / "inbox", area / "receiver-state", program=["prlimit", "--nofile=64", "--", *PROGRAM]
    )
    source = random_file(area / "source", 12 * MIB)
    idle = [socket.create_connection(("127.0.0.1", receiver.port)) for _ in range(70)]
    try:
        wait_until(lambda: "cannot accept connections" in receiver.process.stderr, "it has none left")
        push = processes.push(source, receiver.address)
    finally:
        for connection in idle:
            connection.close()
    push.ends(0, "done")
    assert sha256_of(receiver.folder / "source") == sha256_of(source)


def test_a_receiver_without_memory_for_a_thread_is_busy_and_goes_on_when_there_is_some(
    processes: Processes, receiver: Receiver, area: Path
) -> None:
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    taken = re.search(r"VmSize:\s+(\d+) kB", status)
    assert taken is not None
    source, small = random_file(area / "source", 32 * MIB), random_file(area / "small", 100)
    limit(receiver, f"--as={int(taken[1]) * 1024 + 4 * MIB}:")  # less than the stack of a thread
    error = processes.push(source, receiver.address, *ONCE).ends(75, "failed")["error"]
    assert error["code"] == "busy"
    assert "try again later" in error["message"]
    assert receiver.process.running
    assert receiver.published == []
    limit(receiver, "--as=unlimited:")
    processes.push(source, receiver.address, "--resume").ends(0, "done")
    processes.push(small, receiver.address).ends(0, "done")
    assert sha256_of(receiver.folder / "source") == sha256_of(source)
    assert "Traceback" not in receiver.process.stderr
