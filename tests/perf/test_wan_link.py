"""The emulated link between real network namespaces: what it does to packets, what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from perf.model import Missing
from perf.wan.link import FAR, Link, link
from perf.wan.pipe import Conditions
from support.processes import wait_until

_ECHO = """
import socket
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.bind(("0.0.0.0", 9))
    print("up", flush=True)
    while True:
        data, sender = sock.recvfrom(2048)
        sock.sendto(data, sender)
"""
_SENDER = """
import json, socket, sys, time
host, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.connect((host, 9))
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.settimeout(1.0)
    back, quickest, sent, lost, pad = [], 9.0, 0, 0, bytes(size)
    while True:
        # No more under way than the queue has room for.
        for _ in range(min(50, count - sent, 1000 + lost + len(back) - sent)):
            sock.send(sent.to_bytes(4, "big") + time.monotonic_ns().to_bytes(8, "big") + pad)
            sent += 1
        full = sent - len(back) - lost >= 1000
        try:
            sock.settimeout(1.0 if full or sent == count else 0.001)
            data = sock.recv(2048)
            back.append(int.from_bytes(data[:4], "big"))
            quickest = min(quickest, (time.monotonic_ns() - int.from_bytes(data[4:12], "big")) / 1e9)
        except TimeoutError:
            if sent == count:
                break
            if full:
                lost = sent - len(back)
    print(json.dumps({"back": back, "quickest": quickest}))
"""


@contextmanager
def linked(conditions: Conditions, congestion_control: str = "cubic") -> Iterator[Link]:
    try:
        with link(conditions, congestion_control) as made:
            yield made
    except Missing as error:
        pytest.skip(str(error))


def echoed(over: Link, count: int, size: int = 64) -> tuple[list[int], float]:
    """The numbers of the datagrams that came back from the far end, and the quickest round trip."""
    echo = subprocess.Popen([*over.far, sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
    with echo:
        try:
            assert echo.stdout is not None
            assert echo.stdout.readline()
            command = [*over.near, sys.executable, "-c", _SENDER, FAR, str(count), str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        finally:
            echo.kill()
    told = json.loads(done.stdout)
    return cast("list[int]", told["back"]), float(told["quickest"])


def test_no_packet_is_quicker_than_the_delay_and_none_overtakes_another() -> None:
    with linked(Conditions(rate=1e8, delay=0.03)) as made:
        back, quickest = echoed(made, 2000)
        there, _ = made.counts()
    assert quickest >= 0.06
    assert back == sorted(back)
    assert there.lost == 0
    assert there.delivered >= 2000


def test_as_many_packets_are_lost_as_chance_would_have_it() -> None:
    with linked(Conditions(rate=1e8, delay=0.001, loss=0.02)) as made:
        back, _ = echoed(made, 20_000)
        there, home = made.counts()
    sigma = math.sqrt(20_000 * 0.02 * 0.98)
    assert abs(there.lost - 400) < 5 * sigma
    assert back == sorted(set(back))
    assert len(back) <= home.delivered < there.delivered < 20_000


def test_the_queue_holds_what_it_has_room_for_and_no_more() -> None:
    with linked(Conditions(rate=2e5, delay=0.001, queue=20_000)) as made:
        back, _ = echoed(made, 400, size=1000)
        there, _ = made.counts()
    assert there.overflowed > 0
    assert 15_000 < there.most_waiting <= 20_000
    assert len(back) <= 400 - there.overflowed


@pytest.mark.parametrize("congestion_control", ["cubic", "reno"])
def test_connections_use_the_congestion_control_that_was_asked_for(congestion_control: str) -> None:
    look = (
        "import socket, sys\n"
        "listener = socket.create_server(('0.0.0.0', 0))\n"
        "sock = socket.socket()\n"
        f"sock.connect(('{FAR}', int(sys.argv[1])))\n"
        "print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b'\\0').decode())\n"
    )
    listen = (
        "import socket, sys\n"
        "listener = socket.create_server(('0.0.0.0', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with linked(Conditions(rate=1e8, delay=0.001), congestion_control) as made:
        with subprocess.Popen(
            [*made.far, sys.executable, "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as listener:
            assert listener.stdout is not None
            port = listener.stdout.readline().decode().strip()
            command = [*made.near, sys.executable, "-c", look, port]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == congestion_control


def test_nothing_is_left_behind() -> None:
    with linked(Conditions(rate=1e8, delay=0.001)) as made:
        assert all(Path(f"/proc/{pid}").exists() for pid in made.pids)
        networks = {os.readlink(f"/proc/{pid}/ns/net") for pid in made.pids}
        assert len(networks) == 2
        assert os.readlink("/proc/self/ns/net") not in networks
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in made.pids), "the link's processes are gone"
    )
