"""A client that writes bytes as they are told, and reads answers without help from tdx."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

PATIENCE: Final = 30.0
"""Seconds after which something that should have happened is held to be stuck."""

T = TypeVar("T")


@dataclass
class Answer:
    """``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, object]:
        parsed = json.loads(self.body)
        assert isinstance(parsed, dict)
        return parsed

    @property
    def problem(self) -> str:
        """The last part of the problem's type."""
        return str(self.document["type"]).replace("#", ":").rpartition(":")[2]

    @property
    def detail(self) -> str:
        return str(self.document["detail"])


def head(method: str, target: str, fields: Mapping[str, object] | None = None) -> bytes:
    """A request's head, with a Host field unless there is one."""
    given = {"Host": "127.0.0.1", **(fields or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


def chunked(parts: Iterable[bytes]) -> bytes:
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return coded + b"0\r\n\r\n"


class Wire:
    """One connection to a receiver on loopback."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with a reset instead of an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> Self:
        self.sock.sendall(data)
        return self

    def request(
        self, method: str, target: str, body: bytes = b"", fields: Mapping[str, object] | None = None
    ) -> Answer:
        """One request with a Content-Length unless ``fields`` say otherwise, and its answer."""
        given = dict(fields or {})
        if "Transfer-Encoding" not in given:
            given.setdefault("Content-Length", len(body))
        self.send(head(method, target, given) + body)
        return self.answer(to_head=method == "HEAD")

    def answer(self, *, to_head: bool = False) -> Answer:
        """The next final answer."""
        while True:
            found = self.message(to_head=to_head)
            if found.status >= 200:
                return found

    def message(self, *, to_head: bool = False) -> Answer:
        """The next message, interim answers included."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        block, _, self._read = self._read.partition(b"\r\n\r\n")
        start, *lines = block.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if to_head else int(headers.get("content-length", 0))
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        return Answer(int(start.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Wait for the end of the stream; False where something else comes."""
        try:
            return not self._read and not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def is_silent(self) -> bool:
        """Whether nothing has arrived by now."""
        self.sock.setblocking(False)
        try:
            self._read += self.sock.recv(65536)
        except BlockingIOError:
            return not self._read
        finally:
            self.sock.settimeout(PATIENCE)
        return False

    def _more(self) -> None:
        data = self.sock.recv(65536)
        assert data, f"the connection ended after {self._read!r}"
        self._read += data
