"""A proxy on loopback that mistreats connections, the same way for the same seed."""

from __future__ import annotations

import contextlib
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from support.listening import Listening

PIECE: Final = 65536
DELAY: Final = 0.02

ENDING: Final = frozenset({"cut", "reset", "half-close", "stall"})
"""Faults after which nothing more is forwarded."""


@dataclass(frozen=True)
class Fault:
    """What happens to one connection once ``after`` bytes have gone to the receiver.

    ``cut`` closes both ends, ``reset`` both with a reset, ``half-close`` tells the
    receiver that nothing more will come, ``stall`` forwards nothing more, ``delay`` only for
    DELAY seconds. ``flip`` inverts a byte there, and from there on one in each ``every`` bytes.
    ``lose-answers`` drops what the receiver says from there on and closes when it has said
    something. ``duplicate`` sends all bytes up to there over a second connection too.
    """

    kind: str
    after: int
    every: int | None = None


Plan = Callable[[int], Fault | None]
"""What happens to the connection of this number, counted from 0."""


class CuttingProxy(Listening):
    """Forwards to ``port``. ``forwarded`` counts the bytes that reached the receiver, ``content`` those of
    them that were bodies of PUT requests, ``returned`` those that came from it."""

    def __init__(self, port: int, plan: Plan) -> None:
        self.port = port
        self.accepted = 0
        self.forwarded = 0
        self.content = 0
        self.returned = 0
        self._plan = plan
        super().__init__("proxy")

    def _take(self, sock: socket.socket) -> None:
        fault = self._plan(self.accepted)
        self.accepted += 1
        try:
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            return
        self._sockets.append(server)
        link = _Link(self, sock, server, fault)
        self._run(link.there)
        self._run(link.back)
        if fault is not None and fault.kind == "duplicate":
            self._run(link.echo)


class _Link:
    """One connection through the proxy. Whichever direction ends last closes the sockets."""

    def __init__(
        self, proxy: CuttingProxy, client: socket.socket, server: socket.socket, fault: Fault | None
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._fault = fault
        self._bodies = _Bodies()
        self._done = 0
        self._lock = threading.Lock()
        self._going = 2
        self._copy: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def there(self) -> None:
        """Client to receiver."""
        with contextlib.suppress(OSError):
            while data := self._client.recv(PIECE):
                if not self._forward(data):
                    break
            else:
                self._server.shutdown(socket.SHUT_WR)
        self._copy.put(b"")
        self._ended()

    def _forward(self, data: bytes) -> bool:
        """Whether the connection goes on."""
        fault = self._fault
        if fault is not None and fault.kind == "flip":
            data = self._flipped(data, fault)
        elif fault is not None and fault.kind in ENDING and self._done + len(data) >= fault.after:
            self._send(data[: fault.after - self._done])
            self._strike(fault.kind)
            return False
        elif fault is not None and fault.kind == "delay" and 0 <= fault.after - self._done < len(data):
            time.sleep(DELAY)
        elif fault is not None and fault.kind == "duplicate" and self._done < fault.after:
            self._copy.put(data[: fault.after - self._done])
        self._send(data)
        return True

    def echo(self) -> None:
        """What was copied, over a connection of its own, whose answers nobody reads to the end."""
        with contextlib.suppress(OSError):
            twin = socket.create_connection(("127.0.0.1", self._proxy.port), timeout=1.0)
            with twin:
                while data := self._copy.get():
                    twin.sendall(data)
                twin.shutdown(socket.SHUT_WR)
                while twin.recv(PIECE):
                    pass

    def _send(self, data: bytes) -> None:
        self._server.sendall(data)
        self._done += len(data)
        self._proxy.forwarded += len(data)
        self._proxy.content += self._bodies.of_puts(data)

    def _flipped(self, data: bytes, fault: Fault) -> bytes:
        changed = bytearray(data)
        at = fault.after
        if fault.every is not None and self._done > at:
            at += -(-(self._done - at) // fault.every) * fault.every
        while at < self._done + len(data):
            if at >= self._done:
                changed[at - self._done] ^= 0xFF
            if fault.every is None:
                break
            at += fault.every
        return bytes(changed)

    def _strike(self, kind: str) -> None:
        if kind == "stall":
            return
        if kind == "half-close":
            self._server.shutdown(socket.SHUT_WR)
            return
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                if kind == "reset":
                    # Reading ends without a word to the other side; the close that follows resets.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.shutdown(socket.SHUT_RD)
                else:
                    sock.shutdown(socket.SHUT_RDWR)

    def back(self) -> None:
        """Receiver to client."""
        with contextlib.suppress(OSError):
            while data := self._server.recv(PIECE):
                if self._loses_answers():
                    self._strike("cut")
                    break
                self._client.sendall(data)
                self._proxy.returned += len(data)
            else:
                self._client.shutdown(socket.SHUT_WR)
        self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._going -= 1
            if self._going:
                return
        self._client.close()
        self._server.close()

    def _loses_answers(self) -> bool:
        fault = self._fault
        return fault is not None and fault.kind == "lose-answers" and self._done >= fault.after


class _Bodies:
    """Looks for the bodies in a stream of requests, all of which have a Content-Length."""

    def __init__(self) -> None:
        self._begun = b""
        self._left = 0
        self._put = False

    def of_puts(self, data: bytes) -> int:
        """How many of the next bytes are such."""
        found = 0
        while data:
            if not self._left:
                head, end, data = (self._begun + data).partition(b"\r\n\r\n")
                self._begun = b"" if end else head
                if end:
                    length = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
                    self._left = int(length[1]) if length is not None else 0
                    self._put = head.startswith(b"PUT ")
            n = min(self._left, len(data))
            found += n if self._put else 0
            self._left -= n
            data = data[n:]
        return found


def at_random(seed: int, connections: int, within: int, kinds: tuple[str, ...] = ("cut", "reset")) -> Plan:
    """One fault on each of the first ``connections``, after at most ``within`` bytes; then none."""
    chance = random.Random(seed)
    faults = [Fault(chance.choice(kinds), chance.randrange(within)) for _ in range(connections)]
    return lambda number: faults[number] if number < len(faults) else None


def once(fault: Fault, connection: int = 0) -> Plan:
    return lambda number: fault if number == connection else None


def always(fault: Fault) -> Plan:
    return lambda _: fault


def mistreating(port: int, plan: Plan) -> CuttingProxy:
    return CuttingProxy(port, plan)
