"""A receiver of bundles and trees that answers as it is told and keeps nothing."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from support.listening import Listening
from tdx.integrity import MIN_EXTENT, Root
from tdx.proto import bundle
from tdx.proto.bundle import Entry
from tdx.proto.chunked import ChunkedDecoder


@dataclass
class Request:
    """One request: its fields by lower-case names, and the entries of its bundle, or its other body."""

    line: str
    fields: dict[str, str]
    entries: list[tuple[Entry, bytes]]
    body: bytes = b""

    @property
    def tree(self) -> list[list[Any]] | None:
        """The entries of a request about a tree; None for another one."""
        return json.loads(self.body)["entries"] if self.line.startswith("POST /v1/tree ") else None

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


Answering = Callable[[int, Request], "list[dict[str, object]] | dict[str, object] | bytes | None"]
"""The answer to a request of this number, counted from 0: one object for each entry of a bundle, another
document, or raw bytes; None closes the connection."""


def answer_of(status: str, document: object, media_type: str = "application/json") -> bytes:
    """Raw bytes of an answer."""
    raw = json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


class StubReceiver(Listening):
    """Takes bundles and trees, one connection a thread. ``refuses_first``: a request that asks whether it may
    send its body may not."""

    def __init__(self, answering: Answering, *, refuses_first: bool = False) -> None:
        self.requests: list[Request] = []
        self._refuses_first = refuses_first
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
                asks = fields.get("expect") == "100-continue"
                if asks and not self._refuses_first:
                    sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                length = 0 if asks and self._refuses_first else int(fields.get("content-length", "0"))
                while len(rest) < length:
                    if not (part := sock.recv(1 << 20)):
                        return
                    rest += part
                plain, rest = rest[:length], rest[length:]
                if "chunked" in fields.get("transfer-encoding", ""):
                    while True:
                        for payload in decoder.feed(rest):
                            body += payload
                        if decoder.finished:
                            break
                        if not (rest := sock.recv(1 << 20)):
                            return
                    rest = decoder.leftover
                request = Request(line, fields, parse(bytes(body)), plain)
                with self._lock:
                    number = len(self.requests)
                    self.requests.append(request)
                answer = self._answering(number, request)
                if answer is None:
                    sock.shutdown(socket.SHUT_RDWR)
                    return
                if isinstance(answer, list):
                    answer = {"files": answer}
                if isinstance(answer, dict):
                    answer = answer_of("200 OK", answer)
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


def stub_receiver(answering: Answering, *, refuses_first: bool = False) -> StubReceiver:
    return StubReceiver(answering, refuses_first=refuses_first)
