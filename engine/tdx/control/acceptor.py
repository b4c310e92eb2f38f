"""Connections that come in: taken from listening sockets, each held by a task of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Final

from tdx.control.wire import readable

log = logging.getLogger(__name__)

OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE: Final = 0.1
"""Seconds until it is tried again where there are none."""

Hold = Callable[[socket.socket], Coroutine[None, None, None]]


class Acceptor:
    """Gives each connection to ``hold``, which raises nothing, and closes it after that."""

    def __init__(self, hold: Hold, most: int | None = None) -> None:
        """``most`` connections are open at a time. Where one more comes, the oldest has to go, so that those
        who connect and say nothing keep nobody out."""
        self._hold = hold
        self._most = most
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._held: dict[asyncio.Task[None], None] = {}
        """In the order in which they came."""

    @property
    def listeners(self) -> list[socket.socket]:
        """The sockets that connections are taken from, which are listening and do not block."""
        return list(self._accepting)

    def listen(self, listener: socket.socket) -> None:
        """Take connections from ``listener`` too."""
        self._accepting[listener] = asyncio.create_task(self._accept(listener))

    async def leave(self, *listeners: socket.socket) -> None:
        """Take no more from those, which stay open; connections that were taken go on."""
        await _end([self._accepting.pop(listener) for listener in listeners])

    async def close(self) -> None:
        """End every connection, and take no more."""
        await self.leave(*self.listeners)
        await _end(list(self._held))

    async def _accept(self, listener: socket.socket) -> None:
        told = False
        while True:
            # Not sock_accept: cancelled at the wrong moment, it loses the connection that it has taken.
            await readable(listener)
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:  # or one that has gone already
                if error.errno in OUT_OF_DESCRIPTORS:
                    if not told:
                        log.warning("cannot accept connections: %s", error.strerror)
                    told = True
                    await asyncio.sleep(PAUSE)
                continue
            told = False
            sock.setblocking(False)
            if self._most is not None and len(self._held) >= self._most:
                next(iter(self._held)).cancel()
            self._converse(sock)

    def _converse(self, sock: socket.socket) -> None:
        task = asyncio.create_task(self._hold(sock))
        self._held[task] = None

        def over(task: asyncio.Task[None]) -> None:
            self._held.pop(task, None)
            sock.close()  # also of one that was cancelled before it began

        task.add_done_callback(over)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
