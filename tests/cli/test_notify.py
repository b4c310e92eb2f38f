from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx
from support.supervisor import Supervisor
from tdx_cli.notify import notify, watchdog_seconds


def test_without_a_supervisor_nothing_happens() -> None:
    assert notify("READY=1", {}) is False


def test_an_abstract_socket_is_reached(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("")  # the kernel picks an abstract name
        name = supervisor.getsockname()
        assert name[:1] == b"\0"
        assert notify("READY=1", {"NOTIFY_SOCKET": "@" + name[1:].decode()})
        assert supervisor.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["relative", "/no/such/socket"])
def test_a_supervisor_that_cannot_be_reached_costs_a_warning(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": address}) is False
    assert capsys.readouterr().err.startswith("tdx: ")


def test_a_supervisor_that_does_not_read_holds_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdx_cli.notify.PATIENCE", 0.01)
    with Supervisor(tmp_path / "notify") as supervisor:
        for _ in range(1000):  # as many as fit
            if not notify("WATCHDOG=1", supervisor.env):
                break
    assert "cannot tell" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "42"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_whoever_systemd_says(env: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(env, 42) == seconds
    assert env == {}


@pytest.fixture(params=["uvloop", "asyncio"])
def told(
    request: pytest.FixtureRequest, tdx: Tdx, tmp_path: Path
) -> Iterator[tuple[Supervisor, RunningReceiver]]:
    """A receiver, and the supervisor that it tells of itself; on either loop."""
    folder = tmp_path / "inbox"
    folder.mkdir(mode=0o700)
    (tmp_path / "tdx.toml").write_text("")
    with Supervisor(tmp_path / "notify" if request.param == "uvloop" else None) as supervisor:
        tdx.env |= supervisor.env | {"WATCHDOG_USEC": "400000", "TDX_LOOP": request.param}
        receiver = RunningReceiver(tdx, folder, tmp_path / "log", ["--config", str(tmp_path / "tdx.toml")])
        try:
            yield supervisor, receiver
        finally:
            receiver.stop()


def test_a_receiver_tells_when_it_is_ready_that_it_lives_what_it_does_and_when_it_stops(
    told: tuple[Supervisor, RunningReceiver],
) -> None:
    supervisor, receiver = told
    assert supervisor.next() == "READY=1"
    for _ in range(3):
        supervisor.await_message("WATCHDOG=1")
    assert "STATUS=no transfer under way" in supervisor.told
    assert receiver.stop() == 0
    assert supervisor.rest()[-1] == "STOPPING=1"


@pytest.mark.parametrize("text", ["", "nonsense = 1"])
def test_reading_the_configuration_again_is_told_from_beginning_to_end(
    text: str, told: tuple[Supervisor, RunningReceiver], tmp_path: Path
) -> None:
    supervisor, receiver = told
    assert supervisor.next() == "READY=1"
    supervisor.await_message("WATCHDOG=1")
    (tmp_path / "tdx.toml").write_text(text)
    before = time.monotonic_ns() // 1000
    receiver.process.send_signal(signal.SIGHUP)
    message, when = supervisor.await_message("RELOADING=1").split("\n")
    assert message == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    supervisor.await_message("READY=1")
