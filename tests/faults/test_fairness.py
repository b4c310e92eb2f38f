"""One greedy sender does not starve others, and slow ones cost little: real processes, two users."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Receiver, Running, wait_until
from support.spaces import STRANGER, as_stranger
from support.wire import Wire, head
from tdx.data.buffers import KEPT
from tdx.data.port import BUFFER
from tdx.policy.admission import Limits

SLOW = 200
PUSHED = 96 * MIB

FOR_A_BODY = 192 << 10
"""Bytes of memory that a body may take besides its buffer: a thread's stack, a connection, an upload."""

SPARE = 24 * MIB

BESIDE = f"""
[[rule]]
name = "another user"
key = "local:{STRANGER}"
"""

GREEDY = """
import socket, sys, threading
port, connections, size = (int(argument) for argument in sys.argv[1:])
block = bytes(1 << 20)
def put(number):
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while True:
            sock.sendall(f"PUT /files/greedy-{number} HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n".encode())
            sock.sendall(f"Tdx-Conflict: overwrite\\r\\nContent-Length: {size}\\r\\n\\r\\n".encode())
            for _ in range(size >> 20):
                sock.sendall(block)
            answer = b""
            while b"\\r\\n\\r\\n" not in answer:
                answer += sock.recv(65536)
            print(answer.split(b" ")[1].decode(), flush=True)
for number in range(connections):
    threading.Thread(target=put, args=(number,)).start()
"""

CROWD = """
import socket, sys, time
port, connections = (int(argument) for argument in sys.argv[1:])
kept = []
for _ in range(connections):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(b"GET /v1/hello HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    kept.append(sock)
    print(sock.recv(65536).split(b" ")[1].decode(), flush=True)
print("all", flush=True)
time.sleep(3600)
"""


def another_user(processes: Processes, program: str, *arguments: object) -> Running:
    command = [*as_stranger(), sys.executable, "-c", program, *map(str, arguments)]
    return processes.run("another-user", command)


def received(receiver: Receiver, protocol: str) -> float:
    return receiver.scrape().get(f'tdx_received_bytes_total{{protocol="{protocol}"}}', 0.0)


def memory(receiver: Receiver) -> int:
    text = Path(f"/proc/{receiver.process.pid}/smaps_rollup").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) << 10


def test_a_push_beside_a_greedy_owner_gets_a_share_of_its_own(area: Path, processes: Processes) -> None:
    receiver = processes.receiver(area / "inbox", area / "state", config=BESIDE)
    source = random_file(area / "source", PUSHED)
    greedy = another_user(processes, GREEDY, receiver.port, 64, 32 * MIB)
    wait_until(
        lambda: received(receiver, "http") > 256 * MIB or not greedy.running, "the greedy one is at it"
    )
    push = processes.push(source, receiver.address)
    wait_until(lambda: received(receiver, "tdx") or not push.running, "the push is under way")
    begun = received(receiver, "http")
    assert push.ends(0, "done")["size"] == PUSHED
    meanwhile = received(receiver, "http") - begun
    assert greedy.running, greedy.log()
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
    # By the number of its connections the greedy one would have 32 times as much. With equal shares it has as
    # much, and what it is given while the push waits for a processor itself.
    assert meanwhile <= 12 * PUSHED
    # It was told to wait, not refused.
    assert set(greedy.stdout.split()) <= {"201", "200"}


def test_whoever_takes_every_connection_that_it_may_leaves_room_for_another(
    area: Path, processes: Processes
) -> None:
    most = Limits().max_connections_per_owner
    receiver = processes.receiver(area / "inbox", area / "state", config=BESIDE)
    source = random_file(area / "source", MIB)
    crowd = another_user(processes, CROWD, receiver.port, most + 10)
    wait_until(lambda: "all" in crowd.stdout or not crowd.running, "the crowd has been answered")
    assert crowd.stdout.split() == ["200"] * most + ["503"] * 10 + ["all"], crowd.log()
    processes.push(source, receiver.address).ends(0, "done")
    assert crowd.running


def test_two_hundred_slow_bodies_hold_up_nobody_and_cost_a_buffer_each(
    area: Path, processes: Processes
) -> None:
    receiver = processes.receiver(area / "inbox", area / "state")
    processes.push(random_file(area / "first", PUSHED), receiver.address).ends(0, "done")
    before = memory(receiver)
    with ExitStack() as slow:
        wires = [slow.enter_context(Wire(receiver.port)) for _ in range(SLOW)]
        for number, wire in enumerate(wires):
            # A buffer full and then nothing but a byte now and then: each has all that it can have.
            wire.send(head("PUT", f"/files/slow-{number}", {"Content-Length": 4 * MIB}))
            wire.send(bytes(2 * MIB - 1))
        wait_until(
            lambda: received(receiver, "http") >= SLOW * MIB, "every body has brought its first buffer"
        )
        for wire in wires:
            wire.send(b"x")
        for number in range(3):
            source = random_file(area / f"fast-{number}", PUSHED // 3)
            processes.push(source, receiver.address).ends(0, "done")
            put = processes.curl("-T", source, f"{receiver.url}/files/curl-{number}")
            assert put.status == 201
        at_once = memory(receiver)
        assert all(wire.is_silent() for wire in wires), "a slow body was cut off"
        assert receiver.scrape()["tdx_connections_active"] >= SLOW
    assert at_once <= before + SLOW * (BUFFER + FOR_A_BODY) + SPARE, (before, at_once)
    receiver.await_silence()
    # Buffers are kept for later, and threads too.
    kept = before + KEPT * BUFFER + SLOW * FOR_A_BODY + SPARE
    wait_until(lambda: memory(receiver) <= kept, f"the memory of slow bodies is given back: {at_once}")
    assert len(receiver.partials) == SLOW
