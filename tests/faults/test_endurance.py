"""Two hundred connections at once, good ones and bad ones, for as long as it takes: whoever is honest is
served, and the receiver is afterwards what it was before."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pytest

from faults.honest import HONEST
from faults.hostile import HOSTILE, SIZE, left
from faults.traffic import POOL, Traffic
from support.content import MIB
from support.processes import Processes, Receiver, Running, wait_until
from support.soak import Soak
from support.spaces import as_stranger
from tdx.data.buffers import KEPT
from tdx.data.port import BUFFER

LIMITS: Final = """
[limits]
max_connections_per_owner = 400
head_timeout = {head}
idle_timeout = {idle}
stall_timeout = {stall}
"""
"""Short waits, so that whoever does nothing is met again and again. All but the strangers are one owner here,
who may otherwise have 256 connections; how many may come in all is left as it is."""

STRANGERS: Final = """
import random, socket, sys, threading
port, chance, refused = int(sys.argv[1]), random.Random(int(sys.argv[2])), 0
while True:
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        size = chance.choice([0, 10, 1 << 20])
        try:
            head = "PUT /files/stranger HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Length: %d\\r\\n\\r\\n"
            sock.sendall(head.encode() % size)
            sock.sendall(bytes(min(size, 65536)))
            answer = sock.recv(65536)
        except OSError:
            continue
        if answer:
            refused += 1
            print(refused, answer.split(b" ")[1].decode(), flush=True)
"""


@pytest.fixture
def area() -> Iterator[Path]:
    """On a disk, where what is published has to wait for it."""
    with tempfile.TemporaryDirectory(prefix="tdx-endurance-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@dataclass(frozen=True)
class Sample:
    """What a receiver takes: bytes of memory, its own and with its share of what others use too, descriptors,
    threads, connections."""

    own: int
    memory: int
    descriptors: int
    threads: int
    connections: int


def sample(receiver: Receiver) -> Sample:
    of = Path(f"/proc/{receiver.process.pid}")
    kib = dict(line.split()[:2] for line in (of / "smaps_rollup").read_text().splitlines()[1:])
    status = dict(line.split(":", 1) for line in (of / "status").read_text().splitlines())
    connections = int(receiver.scrape()["tdx_connections_active"])
    own, memory = int(kib["Anonymous:"]) << 10, int(kib["Pss:"]) << 10
    return Sample(own, memory, len(os.listdir(of / "fd")), int(status["Threads"]), connections)


@dataclass
class Watch:
    """Takes a sample each second, beside the traffic."""

    receiver: Receiver
    samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._go, name="watch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _go(self) -> None:
        while not self._stop.wait(1.0):
            self.samples.append(sample(self.receiver))

    def thirds(self, what: str) -> tuple[float, float]:
        """The medians of the first and of the last third of the time after the first fifth of it, in which
        buffers and threads come to be."""
        values = [getattr(each, what) for each in self.samples[len(self.samples) // 5 :]]
        third = max(1, len(values) // 3)
        return statistics.median(values[:third]), statistics.median(values[-third:])

    def most(self, what: str) -> int:
        return max(int(getattr(each, what)) for each in self.samples)


def test_two_hundred_connections_of_every_kind_leave_nothing_behind(
    area: Path, processes: Processes, soak: Soak
) -> None:
    waits = {"head": soak.seconds(3, 8), "idle": soak.seconds(5, 12), "stall": soak.seconds(5, 15)}
    receiver = processes.receiver(area / "inbox", area / "state", config=LIMITS.format(**waits))
    traffic = Traffic(receiver, processes, area, soak.seed)
    before = sample(receiver)
    strangers: Running | None = None
    if os.geteuid() == 0:
        command = [*as_stranger(), sys.executable, "-c", STRANGERS, str(receiver.port), str(soak.seed)]
        strangers = processes.run("strangers", command)
    with Watch(receiver) as watch:
        asyncio.run(traffic.run(soak.seconds(8, 600), HONEST, HOSTILE))
    if strangers is not None:
        strangers.kill()
    counted = receiver.scrape()
    requests = sum(value for name, value in counted.items() if name.startswith("tdx_http_requests_total"))
    received = sum(value for name, value in counted.items() if name.startswith("tdx_received_bytes_total"))
    own, descriptors, threads = (watch.thirds(each) for each in ("own", "descriptors", "threads"))
    at_once = watch.thirds("connections")
    told = {
        "connections": f"{traffic.counts['connections']}",
        "at once": _told(before.connections, at_once, watch.most("connections")),
        "requests": f"{requests:.0f}",
        "transfers done": f"{traffic.counts['transfers']} of {traffic.moved / 1e6:.0f} MB",
        "received": f"{received / 1e6:.0f} MB",
        "of them": _shown(traffic.counts),
        "refused": f"{_shown(traffic.refused)}, strangers {_last(strangers)}",
        "MiB of its own": _told(before.own / MIB, [each / MIB for each in own], watch.most("own") / MIB),
        "MiB in all": f"{before.memory / MIB:.0f} before, peak {watch.most('memory') / MIB:.0f}",
        "descriptors": _told(before.descriptors, descriptors, watch.most("descriptors")),
        "threads": _told(before.threads, threads, watch.most("threads")),
    }
    soak.tell("; ".join(f"{what}: {figures}" for what, figures in told.items()))
    assert traffic.wrong == [], "\n".join([f"held up for {traffic.held_up:.1f} s", *traffic.wrong])
    assert traffic.counts["transfers"] > 0
    assert watch.most("connections") >= 200
    _clean_up_after_the_hostile(receiver)
    receiver.await_silence()
    assert receiver.partials == []
    assert receiver.published == []
    wait_until(lambda: sample(receiver).descriptors <= before.descriptors, "every descriptor is closed")
    soak.tell(f"afterwards {sample(receiver).own / MIB:.0f} MiB of its own, and the descriptors of before")
    # A taste is over before the buffers that are kept have been filled.
    growth = soak.seconds(KEPT * BUFFER, 0) + SPARE_MEMORY
    assert own[1] <= own[0] + growth, [each.own >> 20 for each in watch.samples]
    assert watch.most("own") <= before.own + watch.most("threads") * (BUFFER + FOR_A_THREAD) + SPARE_MEMORY
    assert descriptors[1] <= descriptors[0] + 40
    assert threads[1] <= threads[0] + soak.seconds(100, 20)
    receiver.stop()
    assert "Traceback" not in receiver.process.stderr, receiver.process.log()


SPARE_MEMORY: Final = 24 * MIB
"""Of these the receipts' cache has 8 MiB in the end; others are buffers that few bodies needed before. It is
less than a kilobyte for each request of the whole run."""

FOR_A_THREAD: Final = 1 * MIB
"""Besides its buffer: its stack, and what its share of the allocator keeps for later."""


def _last(process: Running | None) -> str:
    return "none" if process is None else process.stdout.strip().rpartition("\n")[2]


def _told(before: float, thirds: Sequence[float], most: float) -> str:
    return f"{before:.0f} before, thirds {thirds[0]:.0f} and {thirds[1]:.0f}, peak {most:.0f}"


def _shown(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


def _clean_up_after_the_hostile(receiver: Receiver) -> None:
    """Send what they never sent whole, so that nothing of theirs is left: one partial of each at most."""
    names = {json.loads((partial / "meta").read_bytes())["name"] for partial in receiver.partials}
    assert all(name.startswith("left-") for name in names), names
    for name in names:
        number = int(name.removeprefix("left-"))
        fields = {"Upload-Complete": "?0", "Upload-Length": str(SIZE), "Tdx-Source": f"source-{number}"}
        status, answer, body = receiver.ask("POST", left(number), fields)
        assert status == 201, body
        epoch = {"Tdx-Epoch": str(json.loads(body)["epoch"])}
        status, _, body = receiver.ask("DELETE", answer["location"], epoch)
        assert status == 204, body
        status, _, body = receiver.ask("PUT", left(number), {}, POOL[:SIZE])
        assert status == 201, body
        (receiver.folder / name).unlink()
