"""A receiver that is told to stop: soon, with everything that arrived kept, whatever is going on."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from support import slow_disk
from support.content import MIB, random_file, sha256_of
from support.processes import Processes, Push, Receiver, wait_until
from support.soak import Soak
from support.wire import Wire, head

EXTENT: Final = 4 * MIB
SIZE: Final = 24 * MIB + 4321
RATE: Final = "12M"

STREAMS: Final = 2
"""Of a push to this very machine."""


def held_on(connections: ExitStack, receiver: Receiver, each: int) -> list[Wire]:
    """``each`` connections of every kind that a receiver may find open when it is to stop."""

    def those(first: bytes) -> list[Wire]:
        wires = [connections.enter_context(Wire(receiver.port)) for _ in range(each)]
        for wire in wires:
            wire.send(first)
        return wires

    silent = those(b"") + those(b"GET /v1/hel") + those(b"\x16\x03\x01\x02\x00\x01")
    kept_alive = those(head("GET", "/v1/hello"))
    for wire in kept_alive:
        assert wire.answer().status == 200
    bodies = [
        connections.enter_context(Wire(receiver.port)).send(
            head("PUT", f"/files/half-{number}", {"Content-Length": 2 * EXTENT}) + bytes(EXTENT + 1)
        )
        for number in range(each)
    ]
    unread = [connections.enter_context(Wire(receiver.port)) for _ in range(each)]
    for wire in unread:
        wire.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while wire.sock.send(head("GET", "/v1/hello") * 500):
                pass
    return silent + kept_alive + bodies + unread


def test_a_receiver_with_two_hundred_connections_stops_with_0_and_keeps_what_arrived(
    area: Path, processes: Processes
) -> None:
    receiver, each = processes.receiver(area / "inbox", area / "state"), 34
    with ExitStack() as connections:
        wires = held_on(connections, receiver, each)
        wait_until(lambda: receiver.staged >= each * EXTENT, "an extent of each body is stored")
        receiver.stop()
        assert "Traceback" not in receiver.process.stderr, receiver.process.log()
        for wire in wires[: 4 * each]:
            wire.sock.settimeout(30)
            assert wire.is_closed()
    receiver.restart()
    for number in range(each):
        _, fields, _ = receiver.ask("HEAD", f"/files/half-{number}")
        assert int(fields["upload-offset"]) >= EXTENT


def _begun(receiver: Receiver) -> int:
    return len(receiver.partials) + sum(name.startswith("source-") for name in receiver.published)


def has_received(receiver: Receiver, size: int) -> bool:
    return receiver.scrape().get('tdx_received_bytes_total{protocol="tdx"}', 0.0) >= size


def discarded(receiver: Receiver) -> float:
    return receiver.scrape().get('tdx_discarded_bytes_total{reason="held"}', 0.0)


def test_pushes_go_on_through_restarts_and_send_nothing_again_that_was_held(
    area: Path, processes: Processes, soak: Soak
) -> None:
    receiver, chance = processes.receiver(area / "inbox", area / "state"), soak.dice
    sources = [random_file(area / f"source-{number}", SIZE) for number in range(4)]
    folder = area / "folder"
    folder.mkdir()
    for number in range(200):
        random_file(folder / str(number), chance.randrange(200_000))
    restarts, sent = soak.rounds(2, 40), 0
    for _ in range(max(1, restarts // 4)):
        # Whoever has not met its receiver yet takes it for one that is not there.
        many = processes.push("-r", folder, receiver.address, "--limit-rate", RATE)
        wait_until(lambda: "folder" in receiver.published, "the folder's push has begun")
        pushes: list[Push] = []
        for source in sources:
            pushes.append(processes.push(source, receiver.address, "--limit-rate", RATE))
            wait_until(lambda: _begun(receiver) == len(pushes), "the push has begun")  # noqa: B023
        for _ in range(min(restarts, 4)):
            wanted = chance.randrange(SIZE)
            wait_until(lambda: has_received(receiver, wanted) or not _any(pushes), "the pushes go on")  # noqa: B023
            assert discarded(receiver) == 0
            receiver.stop()
            assert "Traceback" not in receiver.process.stderr, receiver.process.log()
            receiver.restart()
        ends = [push.ends(0, "done") for push in pushes]
        assert many.wait() == 0, many.log()
        assert discarded(receiver) == 0
        sent += sum(end["sent_bytes"] - SIZE for end in ends)
        for source in sources:
            assert sha256_of(receiver.folder / source.name) == sha256_of(source)
            (receiver.folder / source.name).unlink()
        for path in folder.iterdir():
            arrived = receiver.folder / "folder" / path.name
            assert sha256_of(arrived) == sha256_of(path)
            arrived.unlink()
        assert receiver.published == ["folder"]
        assert receiver.partials == []
    soak.tell(f"{restarts} restarts in the middle of 5 pushes; {sent / MIB:.1f} MiB sent beyond the files")


def _any(pushes: list[Push]) -> bool:
    return any(push.running for push in pushes)


def test_a_second_signal_ends_at_once_a_receiver_that_still_waits_for_its_disk(
    area: Path, processes: Processes
) -> None:
    gate = area / "gate"
    receiver = processes.receiver(
        area / "inbox", area / "state", program=[sys.executable, slow_disk.__file__, str(gate)]
    )
    source = random_file(area / "source", SIZE)
    gate.touch()
    push = processes.push(source, receiver.address)
    wait_until(gate.with_name("gate.reached").exists, "a commit waits for the disk")
    receiver.process.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in receiver.process.stderr, "the receiver stops")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", receiver.port), 30)
    receiver.process.signal(signal.SIGINT)
    assert receiver.process.wait() == 75
    gate.unlink()
    receiver.restart()
    end = push.ends(0)
    assert end["event"] in {"done", "identical"}
    assert end["sent_bytes"] <= SIZE + STREAMS * EXTENT
    assert sha256_of(receiver.folder / source.name) == sha256_of(source)
