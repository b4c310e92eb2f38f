"""The process between two network namespaces, started by :mod:`perf.wan.link`; one child for each direction.

It is told everything on its command line, makes both namespaces, and writes the process ids of its children
to standard output: each lives in the namespace that it brings packets to. It ends when it is killed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final

from perf.wan.kernel import die_with, enter_network, new_network, open_tun
from perf.wan.pipe import MTU, Conditions, Pipe

PAUSE: Final = 0.0002
"""Seconds between two looks at a busy device: a look for each packet would cost more than carrying it."""

BATCH: Final = 512
RING: Final = 20_000
"""Packets that wait in the kernel to be taken: more than come while this process does not run, so that
only the rules of :class:`Pipe` drop any."""

COUNTERS: Final = struct.Struct("@5q")
"""Of one direction: packets lost, overflowed, delivered; bytes delivered; the most bytes that waited."""


def carry(source: int, sink: int, pipe: Pipe, shared: memoryview) -> None:
    """Move packets for ever."""
    poller = select.poll()
    poller.register(source, select.POLLIN)
    read, write, monotonic, sleep = os.read, os.write, time.monotonic, time.sleep
    while True:
        packets: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while len(packets) < BATCH:
                packets.append(read(source, MTU))
        now = monotonic()
        if packets:
            pipe.enter(packets, now)
        for packet in pipe.leave(now):
            write(sink, packet)
        COUNTERS.pack_into(
            shared, 0, pipe.lost, pipe.overflowed, pipe.delivered, pipe.bytes, pipe.most_waiting
        )
        if pipe.next_at is None and not packets:
            poller.poll()
        elif len(packets) < BATCH:
            sleep(PAUSE)


def main(arguments: str) -> None:
    told = json.loads(arguments)
    die_with(told["parent"])
    conditions = Conditions(**told["conditions"])
    shared = memoryview(mmap.mmap(told["counters"], 2 * COUNTERS.size))
    tuns: list[int] = []
    networks: list[int] = []
    for name, address in told["ends"]:
        new_network()
        networks.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        # Every run starts from the same knowledge of the path: none.
        Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        with contextlib.suppress(FileNotFoundError):
            # What it sends of its own accord would be counted.
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
        control = told["congestion_control"]
        tuns.append(open_tun(name, address, mtu=MTU, ring=RING, congestion_control=control))
    children: list[int] = []
    parent = os.getpid()
    for number in range(2):
        source, sink = number, 1 - number
        # Before the fork: whoever is told of the child enters the network that it lives in, at once.
        enter_network(networks[sink])
        child = os.fork()
        if not child:
            die_with(parent)
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, -10)
            pipe = Pipe(conditions, seed=2 * conditions.seed + number)
            carry(tuns[source], tuns[sink], pipe, shared[number * COUNTERS.size :])
        children.append(child)
    # The one that brings packets to the far end lives there, and the other way round.
    print(json.dumps({"far": children[0], "near": children[1]}), flush=True)
    os.waitpid(-1, 0)


if __name__ == "__main__":
    main(sys.argv[1])
