"""A receiver that answers whatever a test makes up, and writes down what it was sent."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from support.listening import Listening


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


class Liar(Listening):
    """Answers every request with what ``lie(request)`` makes up, one connection a thread."""

    def __init__(self, lie: Callable[[Asked], Lie]) -> None:
        self.asked: list[Asked] = []
        self._lie = lie
        super().__init__("lying receiver")

    def _take(self, sock: socket.socket) -> None:
        self._run(lambda: self._serve(sock))

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


def lying(lie: Callable[[Asked], Lie]) -> Liar:
    return Liar(lie)
