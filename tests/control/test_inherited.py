"""Sockets that a receiver is started with (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from tdx.control.inherited import take_inherited
from tdx.errors import ConfigError

PID = 4242


def variables(count: object, pid: int = PID, names: str = "") -> dict[str, str]:
    env = {"LISTEN_PID": str(pid), "LISTEN_FDS": str(count), "OTHER": "stays"}
    return env | ({"LISTEN_FDNAMES": names} if names else {})


@pytest.fixture
def high() -> Iterator[int]:
    """A number from which descriptors are free; what is left there is closed."""
    first = 700
    yield first
    for number in range(first, first + 4):
        try:
            os.close(number)
        except OSError:
            continue


def at(sock: socket.socket, number: int) -> None:
    """Pass it on as systemd does, open beyond exec, and close it here."""
    with sock:
        os.dup2(sock.fileno(), number, inheritable=True)


def test_what_was_passed_is_taken_and_the_variables_are_gone(high: int) -> None:
    at(socket.create_server(("127.0.0.1", 0)), high)
    at(socket.create_server(("127.0.0.1", 0)), high + 1)
    env = variables(2, names="one:two")
    taken = take_inherited(env, PID, high)
    assert [each.fileno() for each in taken] == [high, high + 1]
    assert not any(os.get_inheritable(each.fileno()) for each in taken)
    assert [each.gettimeout() for each in taken] == [0.0, 0.0]
    assert env == {"OTHER": "stays"}
    for each in taken:
        each.close()


@pytest.mark.parametrize("env", [{}, variables(1, pid=PID + 1), variables(0), variables("")])
def test_what_is_for_another_process_or_nobody_is_left_alone(env: dict[str, str]) -> None:
    assert take_inherited(env, PID) == []
    assert "LISTEN_FDS" not in env


@pytest.mark.parametrize("count", ["many", "-1", "1e3", "99999", "²"])
def test_a_number_that_is_none_is_an_error(count: str) -> None:
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        take_inherited(variables(count), PID)


def datagrams() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def unix() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def silent() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.bind(("127.0.0.1", 0))
    return bound


@pytest.mark.parametrize("make", [datagrams, unix, silent])
def test_what_is_no_listening_tcp_socket_is_an_error_that_says_which(
    make: Callable[[], socket.socket], high: int
) -> None:
    at(make(), high)
    with pytest.raises(
        ConfigError, match=rf"descriptor {high} \(web\).*no listening TCP socket; .*Accept=no"
    ):
        take_inherited(variables(1, names="web"), PID, high)


def test_what_is_no_socket_or_not_there_is_an_error(high: int) -> None:
    with pytest.raises(ConfigError, match="no socket: Bad file descriptor"):
        take_inherited(variables(1), PID, high)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, high)
    os.close(null)
    with pytest.raises(ConfigError, match="no socket: Socket operation on non-socket"):
        take_inherited(variables(1), PID, high)
