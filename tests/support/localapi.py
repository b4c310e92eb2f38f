"""A server that speaks tailscaled's LocalAPI on a Unix socket, and every kind of nonsense on request.

The documents are what tailscaled 1.102 answers, less what nobody here reads.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

SUFFIX: Final = "tailnet.test"
ALICE: Final = "alice@example.com"
BOB: Final = "bob@example.com"
USERS: Final = {ALICE: 1, BOB: 2}
TAGGED: Final = 2147455555
"""The user of every tagged node."""


def _user(login: str, tags: tuple[str, ...]) -> int:
    return TAGGED if tags else USERS[login]


def _profile(login: str, tags: tuple[str, ...]) -> dict[str, Any]:
    if tags:
        return {"ID": TAGGED, "LoginName": "tagged-devices", "DisplayName": "Tagged Devices"}
    return {"ID": USERS[login], "LoginName": login, "DisplayName": login}


def whois_of(
    stable_id: str,
    host: str,
    login: str = ALICE,
    *addresses: str,
    tags: tuple[str, ...] = (),
    capabilities: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What whois answers about a node."""
    node: dict[str, Any] = {
        "ID": 1,
        "StableID": stable_id,
        "Name": f"{host}.{SUFFIX}.",
        "User": _user(login, tags),
        "Addresses": [f"{each}/{128 if ':' in each else 32}" for each in addresses],
        "Hostinfo": {"OS": "linux", "Hostname": host},
        "Online": True,
        "MachineAuthorized": True,
        "ComputedName": host,
        "ComputedNameWithHost": host,
    }
    if tags:
        node["Tags"] = list(tags)
    return {"Node": node, "UserProfile": _profile(login, tags), "CapMap": capabilities}


def peer_of(
    stable_id: str,
    host: str,
    login: str = ALICE,
    *addresses: str,
    tags: tuple[str, ...] = (),
    **members: Any,
) -> dict[str, Any]:
    """What status says of one node, this machine included."""
    peer: dict[str, Any] = {
        "ID": stable_id,
        "HostName": "localhost",  # what the machine calls itself: by no means unique
        "DNSName": f"{host}.{SUFFIX}.",
        "UserID": _user(login, tags),
        "TailscaleIPs": list(addresses),
        "CurAddr": "",
        "Relay": "test",
        "PeerRelay": "",
        "Online": True,
        "Active": False,
    }
    if tags:
        peer["Tags"] = list(tags)
    return peer | members


def status_of(
    own: dict[str, Any], *peers: dict[str, Any], tun: bool = True, state: str = "Running"
) -> dict[str, Any]:
    users = [_profile(login, ()) for login in USERS] + [_profile("", ("tag:any",))]
    return {
        "Version": "1.102.5",
        "TUN": tun,
        "BackendState": state,
        "TailscaleIPs": own["TailscaleIPs"],
        "Self": own,
        "Health": [],
        "MagicDNSSuffix": SUFFIX,
        "CurrentTailnet": {"Name": "test", "MagicDNSSuffix": SUFFIX, "MagicDNSEnabled": True},
        "Peer": {f"nodekey:{number}": peer for number, peer in enumerate(peers)} or None,
        "User": {str(user["ID"]): user for user in users},
    }


class LocalApiServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """``status`` and ``nodes`` (by IP, or by IP:port where it proxies) are what it tells; ``trouble``
    takes the place of an answer to "status" or "whois". ``asked`` are the targets of all requests."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 16

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.path = path
        self.status: object = {}
        self.nodes: dict[str, object] = {}
        self.trouble: dict[str, Trouble] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: LocalApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        server = self.server
        server.asked.append(self.path)
        target = urllib.parse.urlsplit(self.path)
        asked = {name: values[0] for name, values in urllib.parse.parse_qs(target.query).items()}
        what = target.path.removeprefix("/localapi/v0/")
        with contextlib.suppress(OSError):
            if self.headers.get_all("Host") != ["local-tailscaled.sock"] or "Origin" in self.headers:
                self.say(403, b"invalid localapi request\n")
            elif what in server.trouble:
                server.trouble[what](self)
            elif what == "status":
                known = dict(server.status) if isinstance(server.status, dict) else server.status
                if asked.get("peers") == "false" and isinstance(known, dict):
                    known["Peer"] = None
                self.say(200, json.dumps(known).encode())
            elif what != "whois":
                self.say(404, b"404 page not found\n")
            elif asked["addr"] not in server.nodes:
                self.say(404, b"no match for IP:port\n")
            else:
                self.say(200, json.dumps(server.nodes[asked["addr"]]).encode())

    def say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


Trouble = Callable[[_Handler], None]


def silent(handler: _Handler) -> None:
    handler.server.closing.wait()


def trickling(handler: _Handler) -> None:
    """Bytes come all the time, the answer never."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b" ")


def trickling_head(handler: _Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b"x")


def mute(handler: _Handler) -> None:
    """The connection is closed instead of an answer."""


def cut(handler: _Handler) -> None:
    """Not even JSON would show that something is missing."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}")


def cut_chunks(handler: _Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")


def endless(handler: _Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not handler.server.closing.is_set():
        handler.wfile.write(b" " * 65536)


def raw(answer: bytes) -> Trouble:
    def write(handler: _Handler) -> None:
        handler.wfile.write(answer)

    return write


def body(text: bytes, status: int = 200) -> Trouble:
    return lambda handler: handler.say(status, text)


NONSENSE: Final[dict[str, Trouble]] = {
    "not HTTP": raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "mute": mute,
    "cut": cut,
    "cut chunks": cut_chunks,
    "endless": endless,
    "500": body(b"oops\n", 500),
    "403": body(b"whois access denied\n", 403),
    "a redirect": raw(b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"),
    "no JSON": body(b"<html>"),
    "nothing": body(b""),
    "not UTF-8": body(b'"\xff"'),
    "too deep": body(b"[" * 100_000),
    "too long a number": body(b"1" * 10_000),
    "null": body(b"null"),
    "a list": body(b"[]"),
    "an empty object": body(b"{}"),
    "wrong types": body(b'{"Node": [], "UserProfile": 1, "BackendState": {}, "TUN": "yes", "Self": true}'),
}
"""Answers that mean nothing, by what is wrong with them. All come at once."""

SLOW: Final[dict[str, Trouble]] = {
    "silent": silent,
    "trickling": trickling,
    "trickling head": trickling_head,
}


@contextlib.contextmanager
def serving() -> Iterator[LocalApiServer]:
    # Where the temporary folders of pytest are, the path of a socket may grow too long for one.
    with (
        tempfile.TemporaryDirectory(prefix="tdx-localapi-") as folder,
        LocalApiServer(Path(folder, "socket")) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def dead_socket() -> Iterator[Path]:
    """A socket's file that its daemon has left behind."""
    with tempfile.TemporaryDirectory(prefix="tdx-localapi-") as folder:
        path = Path(folder, "socket")
        LocalApiServer(path).server_close()
        yield path
