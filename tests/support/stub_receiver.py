"""A receiver of bundles that answers as it is told and keeps nothing."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from support.listening import Listening
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


class StubReceiver(Listening):
    """Takes bundles, one connection a thread."""

    def __init__(self, answering: Answering) -> None:
        self.requests: list[Request] = []
        self._answering = answering
        self._lock = threading.Lock()
        super().__init__("stub receiver")

    def _take(self, sock: socket.socket) -> None:
        self._run(lambda: self._serve(sock))

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


def stub_receiver(answering: Answering) -> StubReceiver:
    return StubReceiver(answering)
