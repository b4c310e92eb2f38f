from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.commands import RunningReceiver, Tdx
from tdx_cli.notify import notify


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


def test_a_receiver_tells_when_it_is_ready_and_when_it_stops(tdx: Tdx, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        supervisor.settimeout(30)
        tdx.env["NOTIFY_SOCKET"] = str(path)
        folder = tmp_path / "inbox"
        folder.mkdir(mode=0o700)
        receiver = RunningReceiver(tdx, folder, tmp_path / "log")
        try:
            assert supervisor.recv(100) == b"READY=1"
        finally:
            status = receiver.stop()
        assert supervisor.recv(100) == b"STOPPING=1"
        assert status == 0
