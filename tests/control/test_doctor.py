"""Looking at every step of a push, against real receivers and what only looks like one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Final

import pytest

from support.devices import introduce, trust
from support.processes import wait_until
from support.receiving import RunningReceiver, local_store, running
from support.vouching import Vouching
from tdx.control import messages, probing
from tdx.control.client import Answer, Client
from tdx.control.dial import Dialer
from tdx.control.doctor import Doctor, State, Step
from tdx.control.probing import LARGEST, SMALLEST, Probe
from tdx.control.resolve import Peer
from tdx.control.workers import Workers
from tdx.errors import ConnectionLost, UsageError
from tdx.identity.providers import identities_of
from tdx.identity.settings import IdentitySettings, TailscaleSettings
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.model import Conflict, FileName
from tdx.policy.retry import RetryPolicy
from tdx.policy.rules import Policy, Rule
from tdx.version import VERSION

SIZE: Final = 4 << 20
NO_MESHES: Final = IdentitySettings(tailscale=TailscaleSettings(enabled=False))
STEPS: Final = ["name", "reach", "identity", "path", "permission", "space", "clock", "throughput"]


def doctor(peer: Peer, state: Path, report: Callable[[Step], None], size: int = SIZE) -> Doctor:
    return Doctor(peer, NO_MESHES, state, size, report, lambda count: f"{count:.0f} bytes")


def examine(peer: Peer, state: Path, size: int = SIZE) -> tuple[int, list[Step]]:
    """The exit code, and what was reported."""
    steps: list[Step] = []

    async def go() -> int:
        return await doctor(peer, state, steps.append, size).run()

    return asyncio.run(go()), steps


def last_of(steps: list[Step]) -> tuple[str, State, int]:
    return steps[-1].name, steps[-1].state, steps[-1].exit_code


def is_empty(receiver: RunningReceiver) -> None:
    wait_until(lambda: receiver.staged() == [], "nothing is staged")
    assert receiver.visible() == {}
    assert not any(receiver.running.store.used(owner) for owner in (f"local:{os.getuid()}",))  # type: ignore[arg-type]


def test_a_receiver_of_this_machine_passes_every_step_and_keeps_nothing(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    code, steps = examine(receiver.peer, tmp_path)
    assert (code, [step.name for step in steps]) == (0, STEPS)
    assert {step.state for step in steps} == {State.OK}
    measured = steps[-1].facts
    assert measured["bytes"] == SIZE
    assert isinstance(measured["rate"], int)
    assert measured["rate"] > 0
    assert receiver.uploads_ended("tdx", "cancelled") == 1
    assert receiver.uploads_ended("tdx", "published") == 0
    is_empty(receiver)


def test_a_paired_device_is_known_by_its_key(receiver: RunningReceiver, tmp_path: Path) -> None:
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    code, steps = examine(Peer("nas"), state)
    assert (code, [step.name for step in steps]) == (0, STEPS)
    by_name = {step.name: step for step in steps}
    assert by_name["name"].facts["source"] == "the paired devices"
    assert by_name["identity"].facts["owner"] == f"tls:{TlsIdentities(receiver.state).device.key}"
    assert "over TLS 1.3" in by_name["identity"].text
    assert by_name["permission"].facts["you"] == {
        "owner": f"tls:{TlsIdentities(state).device.key}",
        "user": "",
        "node": "laptop",
        "provider": "tls",
    }
    is_empty(receiver)


def test_a_receiver_that_refuses_is_77_and_names_the_rule(tmp_path: Path) -> None:
    with running(tmp_path, providers=[Vouching("local:4242", own=False)]) as receiver:
        code, steps = examine(receiver.peer, tmp_path)
        assert (code, last_of(steps)) == (77, ("permission", State.FAILED, 77))
        assert "rule `default`" in steps[-1].text
        is_empty(receiver)


def test_a_device_that_the_receiver_does_not_trust_is_77_and_told_to_pair(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    state = tmp_path / "sender"
    trust(state, "nas", receiver.state, f"127.0.0.1:{receiver.port}")
    trust(receiver.state, "another", tmp_path / "another")
    code, steps = examine(Peer("nas"), state)
    assert (code, last_of(steps)) == (77, ("permission", State.FAILED, 77))
    assert "tdx pair" in steps[-1].text


def test_another_device_at_the_address_of_a_paired_one_is_77_before_anything_is_asked(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    state = tmp_path / "sender"
    trust(state, "nas", tmp_path / "the-real-one", f"127.0.0.1:{receiver.port}")
    code, steps = examine(Peer("nas"), state)
    assert (code, last_of(steps)) == (77, ("identity", State.FAILED, 77))
    assert receiver.metrics.requests.value(("GET", "hello", "200")) == 0


def test_nobody_there_is_69_and_told_to_start_a_receiver(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, steps = examine(Peer("127.0.0.1", unused.getsockname()[1]), tmp_path)
    assert (code, last_of(steps)) == (69, ("reach", State.FAILED, 69))
    assert "connection refused" in steps[-1].text
    assert "tdx serve" in steps[-1].advice


def test_an_unknown_name_is_68(tmp_path: Path) -> None:
    code, steps = examine(Peer("nobody.invalid"), tmp_path)
    assert code in (68, 69)  # 69 where the machine has no name server to ask
    assert last_of(steps) == ("name", State.FAILED, code)


def test_one_dead_address_of_several_is_a_warning(receiver: RunningReceiver, tmp_path: Path) -> None:
    state = tmp_path / "sender"
    introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")
    trust(state, "nas", receiver.state, "127.0.0.1:1", f"127.0.0.1:{receiver.port}")
    code, steps = examine(Peer("nas"), state)
    assert code == 0
    assert [(step.state, step.facts["port"]) for step in steps if step.name == "reach"] == [
        (State.WARN, 1),
        (State.OK, receiver.port),
    ]


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[Peer]:
    """Somebody who gives every connection the same answer."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                if not answer.startswith(b"SSH"):
                    connection.settimeout(1.0)
                    connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Peer("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"name":"other"}',
        b"HTTP/1.1 102 Processing\r\n\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n",
    ],
    ids=range(7),
)
def test_what_speaks_no_tdx_is_76(tmp_path: Path, answer: bytes) -> None:
    with answering(answer) as peer:
        code, steps = examine(peer, tmp_path)
    assert (code, last_of(steps)) == (76, ("permission", State.FAILED, 76))


def test_a_hello_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdx.control.doctor.STALL_SECONDS", 0.5)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    while not stop.wait(0.1):  # each well within the time for one answer
                        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            code, steps = examine(Peer("127.0.0.1", listener.getsockname()[1]), tmp_path)
        finally:
            stop.set()
            thread.join(30)
    assert (code, last_of(steps)) == (75, ("permission", State.FAILED, 75))
    assert "does not finish its answer" in steps[-1].text


@pytest.mark.parametrize("free", [b"true", b"-1", b"1e400", b"1" + b"0" * 400])
def test_a_hello_of_wrong_types_is_76_and_no_crash(tmp_path: Path, free: bytes) -> None:
    body = b'{"name":"tdx","version":[],"you":3,"grant":[],"limits":"","free_bytes":%s}' % free
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as peer:
        code, steps = examine(peer, tmp_path)
    assert code == 76
    assert [(step.name, step.state) for step in steps[-3:]] == [
        ("permission", State.OK),
        ("space", State.FAILED),
        ("clock", State.WARN),
    ]


def test_the_measurement_keeps_to_what_the_rule_grants(receiver: RunningReceiver, tmp_path: Path) -> None:
    rule = Rule(
        "guests",
        provider="local",
        into=FileName("guests"),
        conflict=frozenset({Conflict.ERROR}),
        quota=8 << 20,
        max_file=2 << 20,
    )
    receiver.running.policy = Policy([rule])
    code, steps = examine(receiver.peer, tmp_path)
    assert (code, last_of(steps)) == (0, ("throughput", State.OK, 0))
    assert steps[-1].facts["bytes"] == 2 << 20
    said = next(step.text for step in steps if step.name == "permission")
    assert "rule `guests`" in said
    assert f"into guests/, --conflict error only, quota {8 << 20} bytes, largest file {2 << 20} bytes" in said
    is_empty(receiver)


def test_a_full_quota_is_73(receiver: RunningReceiver, tmp_path: Path) -> None:
    receiver.running.policy = Policy([Rule("guests", provider="local", quota=2 << 20)])
    receiver.request("PUT", "/files/f", bytes(1 << 20))
    code, steps = examine(receiver.peer, tmp_path)
    assert (code, last_of(steps)) == (73, ("throughput", State.FAILED, 73))
    assert "rule `guests`" in steps[-1].text
    assert list(receiver.visible()) == ["f"]
    assert receiver.staged() == []


def test_what_is_too_small_is_not_measured(receiver: RunningReceiver, tmp_path: Path) -> None:
    receiver.running.policy = Policy([Rule("guests", provider="local", max_file=1000)])
    code, steps = examine(receiver.peer, tmp_path)
    assert (code, last_of(steps)) == (0, ("throughput", State.WARN, 0))


def test_no_space_is_73_and_nothing_is_sent(tmp_path: Path) -> None:
    with running(tmp_path, make_store=local_store(reserve=1 << 60)) as receiver:
        code, steps = examine(receiver.peer, tmp_path)
        assert code == 73
        assert [step.name for step in steps if step.state is State.FAILED] == ["space"]
        assert [step.name for step in steps][-1] == "clock"
        assert receiver.metrics.requests.value(("POST", "files", "201")) == 0


def test_clocks_that_differ_are_a_warning(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "formatdate", lambda usegmt: formatdate(1e9, usegmt=usegmt))
    code, steps = examine(receiver.peer, tmp_path)
    (clock,) = (step for step in steps if step.name == "clock")
    assert (code, clock.state) == (0, State.WARN)
    assert "behind this one" in clock.text
    assert "NTP" in clock.advice


@pytest.mark.parametrize("size", [0, SMALLEST - 1, LARGEST + 1])
def test_an_impossible_size_is_an_error_of_usage(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError):
        examine(Peer("127.0.0.1"), tmp_path, size)


# --- nothing is left behind -----------------------------------------------------


@pytest.mark.parametrize("paired", [False, True])
def test_a_measurement_that_is_stopped_in_its_middle_leaves_nothing(
    receiver: RunningReceiver, tmp_path: Path, paired: bool
) -> None:
    state, steps = tmp_path / "sender", list[Step]()
    if paired:
        introduce(receiver.state, state, f"127.0.0.1:{receiver.port}")

    async def go() -> None:
        peer = Peer("nas") if paired else receiver.peer
        task = asyncio.create_task(doctor(peer, state, steps.append, LARGEST // 2).run())
        while not receiver.metrics.received_bytes.value(("tdx",)):
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    is_empty(receiver)
    assert receiver.uploads_ended("tdx", "cancelled") == 1


def probing_with(receiver: RunningReceiver, state: Path, ask: Callable[[Client], None]) -> None:
    """A probe whose client was changed by ``ask``."""

    async def go() -> None:
        workers = Workers(bodies=4)
        identities = identities_of(NO_MESHES, os.getuid())
        dialer = Dialer(receiver.peer, identities, TlsIdentities(state), workers)
        client = Client(dialer, workers, Metrics(VERSION), RetryPolicy(retries=0), 10.0)
        ask(client)
        try:
            await Probe(client, SIZE, Conflict.RENAME).run()
        finally:
            client.close()
            workers.close()

    asyncio.run(go())


def test_an_upload_whose_name_was_lost_on_the_way_is_found_again_and_removed(
    receiver: RunningReceiver, tmp_path: Path
) -> None:
    lost: list[str] = []

    def lose_first_answer(client: Client) -> None:
        ask = client.request

        async def request(
            method: str, target: str, fields: list[tuple[str, str]], body: bytes = b""
        ) -> Answer:
            answer = await ask(method, target, fields, body)
            if method == "POST" and not lost:
                lost.append(target)
                assert len(receiver.staged()) == 1
                raise ConnectionLost("the answer got lost")
            return answer

        client.request = request  # type: ignore[method-assign,assignment]

    with pytest.raises(ConnectionLost):
        probing_with(receiver, tmp_path, lose_first_answer)
    assert lost
    is_empty(receiver)


def test_the_rate_of_a_slow_way_is_known_before_everything_is_sent(
    receiver: RunningReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "MEASURE_SECONDS", 0.05)
    code, steps = examine(receiver.peer, tmp_path, LARGEST)
    assert (code, last_of(steps)) == (0, ("throughput", State.OK, 0))
    sent = steps[-1].facts["bytes"]
    assert isinstance(sent, int)
    assert 0 < sent < LARGEST
    is_empty(receiver)
