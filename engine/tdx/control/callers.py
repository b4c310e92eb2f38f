"""Who is calling on a connection: at each request, and from time to time during a long one."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable
from typing import Final, TypeVar

from tdx.control import events
from tdx.control.connection import Connection
from tdx.control.messages import Exchange
from tdx.control.receiver import Receiver
from tdx.control.wire import TLS_HANDSHAKE, PlainWire, TlsWire, failure, first_byte
from tdx.errors import Forbidden, Stalled, TdxError
from tdx.identity.local import NAME as LOCAL
from tdx.model import Identity
from tdx.policy.flood import Flood
from tdx.policy.rules import Grant

T = TypeVar("T")

EXPECTED: Final = frozenset({"not-found", "offset-mismatch", "upload-busy"})
"""Codes of answers that senders ask for, in order to know where they stand."""


class Callers:
    """Knows who is at the other end of a receiver's connections. Used by the loop's thread only."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        # Nobody who is let in uses up the lines about those who are not.
        self._floods = {logging.WARNING: Flood(), logging.INFO: Flood(), logging.DEBUG: Flood()}

    def refused(self, remote: str, what: str, error: TdxError) -> None:
        """Count, and leave a line about, what was refused to whoever is at ``remote`` and not let in, who
        has chosen how long it is and how often there is one."""
        self._refused(logging.WARNING, remote, what, error)

    def turned_down(self, remote: str, what: str, error: TdxError) -> None:
        """The same of what is refused for another reason than who asks."""
        self._refused(logging.DEBUG if error.code in EXPECTED else logging.INFO, remote, what, error)

    def _refused(self, level: int, remote: str, what: str, error: TdxError) -> None:
        self._receiver.metrics.refused.add(1, (error.code,))
        held_back = self._floods[level].admit(asyncio.get_running_loop().time())
        if held_back is not None:
            events.refused(remote, what, error, level=level, held_back=held_back)

    async def welcome(self, sock: socket.socket, patience: float) -> Connection:
        """A connection, in TLS where its first byte begins a handshake, which is then done.
        That byte may take ``patience`` seconds.

        Forbidden for a device that was not paired, TlsFailed, ConnectionLost, Stalled. ``sock``
        itself is closed by whoever gave it.
        """
        receiver = self._receiver
        try:
            async with asyncio.timeout(patience):
                first = await first_byte(sock)
        except TimeoutError:
            raise Stalled("the caller sent nothing") from None
        except OSError as error:
            raise failure(error, "the caller") from None
        if first != TLS_HANDSHAKE:
            return Connection(PlainWire(sock), receiver.workers.bodies)
        return await self._handshake(sock)

    async def _handshake(self, sock: socket.socket) -> Connection:
        receiver = self._receiver
        context = await receiver.workers.on_disk(receiver.devices.server_context)
        wire = TlsWire(context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False))
        try:
            connection = Connection(wire, receiver.workers.bodies)
        except OSError:  # reset already
            wire.sock.close()
            raise
        try:
            async with asyncio.timeout(receiver.limits.head_timeout):
                await wire.handshake()
        except OSError as error:  # TimeoutError among them
            reason = (
                Stalled("the caller does not finish its TLS handshake")
                if isinstance(error, TimeoutError)
                else failure(error, connection.link.remote.host)
            )
            await connection.linger()  # a reset would overtake the alert that says why
            connection.close()
            raise reason from None
        except BaseException:
            connection.close()
            raise
        return connection

    async def identify(self, connection: Connection, known: Identity | None) -> Identity | None:
        """Who is calling now; ``known`` is who it was on this connection a moment ago.

        The uid at the other end of a connection stays what it was when it was made; all
        others are asked about again.
        """
        receiver = self._receiver
        if connection.tls is not None:
            return await receiver.workers.asked(receiver.devices.whois, connection.tls.certificate)
        if known is not None and known.provider == LOCAL:
            return known
        return await receiver.workers.asked(receiver.identities.identify, connection.link)

    def permit(self, connection: Connection, identity: Identity | None) -> Grant:
        """What the policy lets the caller do. Forbidden names the rule that refuses."""
        if identity is None and connection.tls is not None:
            raise Forbidden(
                "rule `identified`: the receiver does not trust this device's key any more; "
                "introduce the two with `tdx pair`"
            )
        return self._receiver.policy.decide(identity)

    async def watched(self, exchange: Exchange, work: Awaitable[T]) -> T:
        """Await ``work`` for the request of an identified caller, and cut its body off when
        the caller is no longer who it was, or no longer allowed."""
        loop = asyncio.get_running_loop()
        watch: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal watch
            watch = loop.create_task(self._watch(exchange))

        exchange.permit_again = lambda: self._permit_again(exchange)
        # Most requests are over before a task for them would be worth its making.
        timer = loop.call_later(self._receiver.limits.recheck_interval, begin)
        try:
            return await work
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()

    async def _watch(self, exchange: Exchange) -> None:
        while True:
            try:
                await self._permit_again(exchange)
            except TdxError as error:
                exchange.connection.revoke(error)
            await asyncio.sleep(self._receiver.limits.recheck_interval)

    async def _permit_again(self, exchange: Exchange) -> Grant:
        """What the caller of a request may do now. Forbidden where it is no longer who it was."""
        caller = exchange.identity
        now = await self.identify(exchange.connection, caller)
        grant = self.permit(exchange.connection, now)
        if now is None or now.owner != caller.owner:
            raise Forbidden(f"the caller is no longer {caller}")
        return grant
