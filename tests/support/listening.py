"""What listens on loopback in threads of the test's own."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from tdx.control.resolve import Peer


class Listening(ABC):
    """Takes connections, one after the other, until :meth:`close`, or the end of a ``with`` block, ends them
    all."""

    def __init__(self, name: str) -> None:
        """Begins at once, so it comes last in that of a class derived. ``name`` is that of the threads."""
        self._name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.peer = Peer("127.0.0.1", self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    @abstractmethod
    def _take(self, sock: socket.socket) -> None:
        """A connection has come. In the thread that waits for the next one."""

    def _run(self, work: Callable[[], None]) -> None:
        """Do it in a thread, which is joined at the end."""
        thread = threading.Thread(target=work, name=self._name)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._take(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
