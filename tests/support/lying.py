"""A receiver that answers whatever a test makes up, and writes down what it was sent."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tdx.control.resolve import Peer


@dataclass
class Asked:
    """A request and its body; ``fields`` have lower-case names."""

    method: str
    target: str
    fields: dict[str, str]
    body: bytes

    @property
    def start(self) -> int:
        """Where in the file its body begins."""
        found = re.match(r"bytes ([0-9]+)-", self.fields.get("content-range", "bytes 0-"))
        assert found is not None
        return int(found[1])


Lie = bytes | Callable[[socket.socket], None]
"""An answer as it goes over the wire, or what is done on the connection instead, which then ends."""


def message(status: int, body: bytes = b"", *more: str) -> bytes:
    fields = "".join(f"{each}\r\n" for each in (f"Content-Length: {len(body)}", *more))
    return f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode() + body


class Liar:
    """Answers every request with what ``lie(request)`` makes up, one connection a thread."""

    def __init__(self, lie: Callable[[Asked], Lie]) -> None:
        self.asked: list[Asked] = []
        self._lie = lie
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.peer = Peer("127.0.0.1", self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="lying receiver")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._run(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file, suppress(OSError):
            while line := file.readline():
                method, target, _ = line.decode().split(" ")
                fields: dict[str, str] = {}
                while (line := file.readline()).strip():
                    name, _, value = line.decode().partition(": ")
                    fields[name.lower()] = value.strip()
                if "expect" in fields:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                asked = Asked(method, target, fields, file.read(int(fields.get("content-length", 0))))
                self.asked.append(asked)
                answer = self._lie(asked)
                if callable(answer):
                    answer(sock)
                    return
                sock.sendall(answer)

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


@contextmanager
def lying(lie: Callable[[Asked], Lie]) -> Iterator[Liar]:
    liar = Liar(lie)
    try:
        yield liar
    finally:
        liar.close()
