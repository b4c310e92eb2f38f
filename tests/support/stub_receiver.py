"""A receiver of bundles that answers as it is told and keeps nothing."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tdx.control.resolve import Peer
from tdx.integrity import MIN_EXTENT, Root
from tdx.proto import bundle
from tdx.proto.bundle import Entry
from tdx.proto.chunked import ChunkedDecoder


@dataclass
class Request:
    """One request: its fields by lower-case names, and the entries of its bundle."""

    line: str
    fields: dict[str, str]
    entries: list[tuple[Entry, bytes]]

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry, _ in self.entries]


def receipt(entry: Entry) -> dict[str, object]:
    digests = [entry.digest] if entry.size else []
    return {
        "outcome": "published",
        "name": entry.name,
        "path": entry.name,
        "size": entry.size,
        "root": str(Root.over(digests, entry.size, MIN_EXTENT)),
        "verified": True,
    }


def refusal(code: str, status: int) -> dict[str, object]:
    return {"problem": {"type": f"urn:tdx:problem:{code}", "status": status, "detail": f"it is {code}"}}


Answering = Callable[[int, Request], "list[dict[str, object]] | bytes | None"]
"""The answer to a request of this number, counted from 0: one object for each entry, or raw bytes; None
closes the connection."""


class StubReceiver:
    """Takes bundles, one connection a thread."""

    def __init__(self, answering: Answering) -> None:
        self.requests: list[Request] = []
        self._answering = answering
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.peer = Peer("127.0.0.1", self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="stub receiver")
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._run(lambda sock=sock: self._serve(sock))  # type: ignore[misc]

    def _serve(self, sock: socket.socket) -> None:
        rest = b""
        with sock, suppress(OSError):
            while True:
                while b"\r\n\r\n" not in rest:
                    if not (part := sock.recv(65536)):
                        return
                    rest += part
                head, _, rest = rest.partition(b"\r\n\r\n")
                line, *lines = head.decode().split("\r\n")
                fields = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
                decoder = ChunkedDecoder()
                body = bytearray()
                if "chunked" in fields.get("transfer-encoding", ""):
                    while True:
                        for payload in decoder.feed(rest):
                            body += payload
                        if decoder.finished:
                            break
                        if not (rest := sock.recv(1 << 20)):
                            return
                    rest = decoder.leftover
                request = Request(line, fields, parse(bytes(body)))
                with self._lock:
                    number = len(self.requests)
                    self.requests.append(request)
                answer = self._answering(number, request)
                if answer is None:
                    sock.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(answer, list):
                    raw = json.dumps({"files": answer}).encode()
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw)
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


def parse(body: bytes) -> list[tuple[Entry, bytes]]:
    found: list[tuple[Entry, bytes]] = []
    at = 0
    while body:
        (length,) = struct.unpack_from(">I", body, at)
        at += 4
        if not length:
            assert at == len(body)
            break
        entry = bundle.parse_head(body[at : at + length])
        at += length
        found.append((entry, body[at : at + entry.size]))
        at += entry.size
    return found


@contextmanager
def stub_receiver(answering: Answering) -> Iterator[StubReceiver]:
    stub = StubReceiver(answering)
    try:
        yield stub
    finally:
        stub.close()
