"""Connections are taken, held by one task each, and closed at its end."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support.wire import PATIENCE
from tdx.control import acceptor as accepting
from tdx.control.acceptor import Acceptor


class Failing(socket.socket):
    """A listener that cannot accept as often as there are ``errors``."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, "cannot")
        return super().accept()


def listener(*errors: int) -> Failing:
    sock = Failing()
    sock.errors = list(errors)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    return sock


class Caller:
    def __init__(self, at: socket.socket) -> None:
        self.sock = socket.create_connection(at.getsockname(), PATIENCE)
        self.sock.setblocking(False)

    async def hears(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.sock, 100)


@asynccontextmanager
async def greeting(*listeners: socket.socket, most: int | None = None) -> AsyncIterator[Acceptor]:
    """Those who connect are greeted, and kept until they say something."""

    async def hold(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"hello")
        await loop.sock_recv(sock, 1)

    acceptor = Acceptor(hold, most)
    try:
        for each in listeners:
            acceptor.listen(each)
        yield acceptor
    finally:
        await acceptor.close()
        for each in listeners:
            each.close()


async def test_connections_are_taken_from_every_listener_and_closed_at_their_end() -> None:
    one, two = listener(), listener()
    async with greeting(one, two) as acceptor:
        assert acceptor.listeners == [one, two]
        callers = Caller(one), Caller(two)
        for caller in callers:
            assert await caller.hears() == b"hello"
            caller.sock.send(b"!")
            assert await caller.hears() == b""
            caller.sock.close()


async def test_a_listener_that_was_left_stays_open_and_its_connections_go_on() -> None:
    one, two = listener(), listener()
    async with greeting(one, two) as acceptor:
        before = Caller(one)
        assert await before.hears() == b"hello"
        await acceptor.leave(one)
        assert acceptor.listeners == [two]
        after, other = Caller(one), Caller(two)
        assert await other.hears() == b"hello"
        with pytest.raises(BlockingIOError):
            after.sock.recv(1)
        with pytest.raises(BlockingIOError):
            before.sock.recv(1)
        acceptor.listen(one)
        assert await after.hears() == b"hello"
        for caller in (before, after, other):
            caller.sock.close()


async def test_the_oldest_connection_goes_where_there_are_too_many() -> None:
    at = listener()
    async with greeting(at, most=2):
        callers = []
        for _ in range(3):
            callers.append(Caller(at))
            assert await callers[-1].hears() == b"hello"
        assert await callers[0].hears() == b""
        for caller in callers[1:]:
            with pytest.raises(BlockingIOError):
                caller.sock.recv(1)
        for caller in callers:
            caller.sock.close()


@pytest.mark.parametrize("error", sorted(accepting.OUT_OF_DESCRIPTORS))
async def test_without_descriptors_it_says_so_once_and_tries_again(
    error: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.001)
    at = listener(error, error)
    async with greeting(at):
        for _ in range(2):
            caller = Caller(at)
            assert await caller.hears() == b"hello"
            caller.sock.close()
            at.errors = [error]
    assert [record.message for record in caplog.records] == ["cannot accept connections: cannot"] * 2


async def test_one_that_has_gone_already_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    at = listener(errno.ECONNABORTED, errno.EPROTO)
    async with greeting(at):
        caller = Caller(at)
        assert await caller.hears() == b"hello"
        caller.sock.close()
    assert not caplog.records


async def test_closing_ends_every_connection_also_one_that_has_not_begun() -> None:
    at = listener()
    async with greeting(at) as acceptor:
        caller, late = Caller(at), Caller(at)
        assert await caller.hears() == b"hello"
        await acceptor.close()
        assert await caller.hears() == b""
        assert acceptor.listeners == []
    late.sock.close()
    caller.sock.close()
