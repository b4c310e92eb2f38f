"""What a transfer waits for is named where people look: by the push, in the receiver's log, in its metrics.

One stage is made slow on purpose, by far, and nothing is said of how long anything takes.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support import slow_files, slow_stage
from support.content import MIB, random_file
from support.processes import PROGRAM, Processes, Push, Receiver, wait_until
from support.spaces import inside, namespaces, needs, or_skip

SIZE = 20 * MIB
SLOW = 10 * MIB
"""Bytes a second."""


@pytest.fixture
def source(area: Path) -> Path:
    return random_file(area / "source", SIZE)


def samples(text: str) -> dict[str, float]:
    """What a page of metrics says of the seconds by bottleneck."""
    lines = (line for line in text.splitlines() if line.startswith("tdx_bottleneck_seconds_total{"))
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def named(done: Push, receiver: Receiver, seconds: Mapping[str, float], bottleneck: str) -> None:
    """In all three places, and nothing else is."""
    event = done.ends(0, "done")
    assert event["bottleneck"] == bottleneck, event
    published = next(line for line in receiver.process.stderr.splitlines() if " published: " in line)
    assert published.endswith(f", limited by {bottleneck}"), published
    assert [name for name, spent in seconds.items() if spent] == [bottleneck]


def counted(receiver: Receiver) -> dict[str, float]:
    return {
        name.split('"')[1]: value
        for name, value in receiver.scrape().items()
        if name.startswith("tdx_bottleneck_seconds_total{")
    }


def pushed(processes: Processes, stage: str, *arguments: str | Path) -> Push:
    """A push with that stage slow, at its end."""
    program = [sys.executable, slow_stage.__file__, stage, "push", "--json"]
    done = Push(processes, "push", [*program, *map(str, arguments)], env=processes.environment)
    done.wait()
    return done


def ended(push: Push) -> Push:
    push.wait()
    return push


@pytest.fixture
def slow_source(processes: Processes, source: Path, area: Path) -> Iterator[Path]:
    """The source on a disk that is slow."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse")
    try:
        importlib.import_module("mfusepy")
    except OSError as error:
        pytest.skip(f"no libfuse: {error}")
    needs("fusermount3")
    mounted = area / "mounted"
    mounted.mkdir()
    command = [sys.executable, slow_files.__file__, str(mounted), str(source.parent), str(SLOW)]
    disk = processes.run("slow-files", command)
    try:
        wait_until(lambda: (mounted / source.name).exists() or not disk.running, "the disk is there")
        if not disk.running:
            pytest.skip(f"no file systems of a user's own: {disk.stderr.strip()}")
        yield mounted / source.name
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mounted)], check=False, capture_output=True)
        disk.wait()


def test_a_slow_disk_of_the_sender(processes: Processes, receiver: Receiver, slow_source: Path) -> None:
    done = ended(processes.push(slow_source, receiver.address))
    named(done, receiver, counted(receiver), "sender disk")
    assert done.last["stages"]["sender"]["read"] > 0


def test_a_slow_disk_of_the_receiver(processes: Processes, source: Path, area: Path) -> None:
    program = [sys.executable, slow_stage.__file__, "sync"]
    receiver = processes.receiver(area / "inbox", area / "state", program=program)
    done = ended(processes.push(source, receiver.address))
    named(done, receiver, counted(receiver), "receiver disk")
    assert done.last["stages"]["receiver"]["sync"] > 0


def test_a_slow_cpu_of_the_sender(processes: Processes, receiver: Receiver, source: Path) -> None:
    done = pushed(processes, "hash", source, receiver.address)
    named(done, receiver, counted(receiver), "CPU")


def test_a_slow_cpu_of_the_receiver(processes: Processes, source: Path, area: Path) -> None:
    program = [sys.executable, slow_stage.__file__, "hash"]
    receiver = processes.receiver(area / "inbox", area / "state", program=program)
    done = ended(processes.push(source, receiver.address))
    named(done, receiver, counted(receiver), "CPU")


def test_a_slow_network(processes: Processes, source: Path, area: Path) -> None:
    machine = inside(namespaces(processes, "net"), "net")
    needs("ip", "tc")
    or_skip([*machine, "ip", "link", "set", "lo", "up", "mtu", "1500"])
    rate = ["rate", f"{SLOW * 8}bit", "burst", "128k", "latency", "100ms"]
    or_skip([*machine, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", *rate])
    receiver = processes.receiver(area / "inbox", area / "state", program=[*machine, *PROGRAM])
    done = ended(processes.push(source, receiver.address, prefix=machine))
    host, port = receiver.metrics_address
    page = processes.curl(f"http://{host}:{port}/metrics", prefix=machine)
    page.wait()
    named(done, receiver, samples(page.stdout), "network")


def test_a_rate_limit_of_the_sender(processes: Processes, receiver: Receiver, source: Path) -> None:
    done = ended(processes.push(source, receiver.address, "--limit-rate", str(SLOW)))
    named(done, receiver, counted(receiver), "rate limit")


def test_a_rate_limit_of_the_receiver(processes: Processes, source: Path, area: Path) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", "--limit-rate", str(SLOW))
    done = ended(processes.push(source, receiver.address))
    named(done, receiver, counted(receiver), "rate limit")


def test_of_a_client_that_tells_nothing_only_the_receivers_side_is_known(
    processes: Processes, receiver: Receiver, source: Path
) -> None:
    url = f"{receiver.url}/files/f"
    assert processes.curl("-T", source, "--limit-rate", str(SLOW), url).status == 201
    published = next(line for line in receiver.process.stderr.splitlines() if " published: " in line)
    assert published.endswith(", limited by sender or network")
    assert [name for name, spent in counted(receiver).items() if spent] == ["sender or network"]
