"""tailscaled's LocalAPI: HTTP over a Unix socket, asked about nodes and never told anything.

Its documents come from a service that may be another version, or another program: what is
taken from them is checked member by member.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from tdx.errors import IdentityUnavailable
from tdx.identity.rows import pack
from tdx.model import shown

HOST: Final = "local-tailscaled.sock"
"""The only value of Host that the service takes."""

TIMEOUT: Final = 2.0
"""Seconds for one question as a whole."""

WHOIS_LIMIT: Final = 1 << 20
STATUS_LIMIT: Final = 32 << 20
"""Bytes of an answer: of a node a few thousand are usual, of a tailnet a thousand or two for each node."""

RUNNING: Final = "Running"
"""The only BackendState in which packets flow."""

_ID_LIMIT: Final = 128
_CREDENTIALS: Final = struct.Struct("=3i")  # struct ucred: pid, uid, gid

T = TypeVar("T")


def default_socket() -> Path:
    """Where tailscaled puts its socket on this platform."""
    if sys.platform == "darwin":
        return Path("/var/run/tailscaled.socket")
    return Path("/var/run/tailscale/tailscaled.sock")


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the tailnet.

    ``stable_id`` and ``name`` are never empty; ``name`` is the short one in one's own
    tailnet and the whole one for machines shared from another. ``user_id`` is 0 and
    ``login`` empty where not known. ``login`` of a tagged node means nobody.
    ``capabilities`` are what it may do at this machine, by the grants of the tailnet's policy.
    """

    stable_id: str
    name: str
    user_id: int
    login: str
    tags: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A machine as status shows it. ``names``: in lower case, the short one first, where it has one."""

    node: Node
    names: tuple[str, ...]
    online: bool | None
    path: str


@dataclass(frozen=True, slots=True)
class Status:
    """``own`` is this machine, None unless ``state`` is RUNNING. ``tun``: the mesh is an
    interface of this machine; otherwise tailscaled proxies (userspace networking)."""

    state: str
    tun: bool
    own: Node | None
    own_names: tuple[str, ...] = ()
    peers: tuple[PeerStatus, ...] = ()


class LocalApi:
    """The service behind one Unix socket. Nothing is kept between calls; thread-safe.

    Every method that asks raises IdentityUnavailable where the service is absent, slow, or
    answers anything but the documented shapes. A question takes at most ``timeout`` seconds.
    """

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout

    def daemon(self) -> int | None:
        """The process that listens: its id, 0 where it cannot be told. None where nobody does,
        so that there is no tailscaled behind this socket; a service that is merely busy or closed
        to this user is there."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._timeout)
            try:
                probe.connect(str(self.path))
            except OSError as error:
                return None if error.errno in {errno.ENOENT, errno.ECONNREFUSED} else 0
            if sys.platform != "linux":
                return 0
            found = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(found)[0])

    def whois(self, address: str) -> Node | None:
        """The node at ``address``, ``IP`` or ``IP:port`` (``[IPv6]:port``); None where there is none.

        With a port, it is also the node whose TCP connection tailscaled proxies from there. It then
        looks for a fifth of a second before it says no, and answers nobody else meanwhile.
        """
        answer = self._ask("whois", {"proto": "tcp", "addr": address}, WHOIS_LIMIT)
        return None if answer is None else self._read(answer, node_of)

    def status(self, *, peers: bool = False) -> Status:
        answer = self._ask("status", {"peers": "true" if peers else "false"}, STATUS_LIMIT)
        if answer is None:
            raise self._unavailable("answered 404 to status, so it is not tailscaled")
        return self._read(answer, status_of)

    def _ask(self, what: str, parameters: dict[str, str], limit: int) -> bytes | None:
        import http.client
        import urllib.parse

        connection = http.client.HTTPConnection(HOST)
        try:
            with _Hurried(time.monotonic() + self._timeout) as sock:
                sock.connect(str(self.path))
                connection.sock = sock
                connection.request("GET", f"/localapi/v0/{what}?{urllib.parse.urlencode(parameters)}")
                with connection.getresponse() as response:
                    status = response.status
                    body = response.read(limit + 1)
                    # A read of a given size takes the end of the stream for the end of the answer.
                    cut = bool(response.length) and len(body) <= limit
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._unavailable(self._reason(error)) from error
        finally:
            connection.close()
        if cut:
            raise self._unavailable("it closed the connection inside its answer")
        if len(body) > limit:
            raise self._unavailable(f"its answer to {what} is longer than {limit} bytes")
        if status == 404:
            return None
        if status != 200:
            said = shown(body[:120].decode("utf-8", "replace").strip())
            raise self._unavailable(f"it answered {what} with status {status}: {said}")
        return body

    def _read(self, body: bytes, reader: Callable[[object], T]) -> T:
        try:
            return reader(json.loads(body.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise self._unavailable(f"its answer makes no sense: {shown(str(error))[:200]}") from error

    def _unavailable(self, reason: str) -> IdentityUnavailable:
        return IdentityUnavailable(
            f"tailscaled ({self.path}) does not say who is who: {reason}; "
            "`tailscale status` shows how it is doing"
        )

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return "it is not running"
        if isinstance(error, ConnectionError):
            return "it closed the connection without an answer"
        if isinstance(error, OSError):
            return error.strerror or str(error)
        return "what it answered is not HTTP"


class _Hurried(socket.socket):
    """A Unix socket that is to be done by ``deadline`` (monotonic), however slowly bytes trickle in."""

    def __init__(self, deadline: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = deadline
        self._hurry()

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self._hurry()
        return super().recv_into(buffer, nbytes, flags)

    def _hurry(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no time is left")
        self.settimeout(left)


def node_of(document: object) -> Node:
    """What an answer to whois says. ValueError for anything but the documented shape."""
    answer = _object(document, "the answer")
    node, profile = _object(answer.get("Node"), "Node"), _object(answer.get("UserProfile"), "UserProfile")
    user = _number(node.get("User"), "Node.User")
    if _number(profile.get("ID"), "UserProfile.ID") != user:
        raise ValueError("UserProfile is not that of Node.User")
    tags = _texts(node.get("Tags"), "Node.Tags")
    full = _name(node.get("Name"), "Node.Name")
    return Node(
        _stable_id(node.get("StableID"), "Node.StableID"),
        _text(node.get("ComputedName", ""), "Node.ComputedName", empty=True) or _text(full, "Node.Name"),
        user,
        # Every tagged node has the same profile, which is nobody's.
        "" if tags else _text(profile.get("LoginName"), "UserProfile.LoginName"),
        tags,
        tuple(
            address
            for prefix in _texts(node.get("Addresses"), "Node.Addresses")
            if (address := _single(prefix)) is not None
        ),
        tuple(sorted(_text(name, "CapMap") for name in _mapping(answer.get("CapMap"), "CapMap"))),
    )


def status_of(document: object) -> Status:
    """What an answer to status says. ValueError for anything but the documented shape."""
    answer = _object(document, "the answer")
    state, tun = _text(answer.get("BackendState"), "BackendState"), _flag(answer.get("TUN"), "TUN")
    if state != RUNNING:
        return Status(state, tun, None)
    tailnet = _mapping(answer.get("CurrentTailnet"), "CurrentTailnet")
    suffix = _name(tailnet.get("MagicDNSSuffix", ""), "MagicDNSSuffix").lower()
    users = _mapping(answer.get("User"), "User")
    own = _status_node(_object(answer.get("Self"), "Self"), users, suffix)
    if own is None:
        raise ValueError("Self has no name")
    peers: list[PeerStatus] = []
    for each in _mapping(answer.get("Peer"), "Peer").values():
        member = _object(each, "Peer")
        peer = _status_node(member, users, suffix)
        # A sharee's machine is known only because it may call here; it cannot be called.
        if peer is not None and member.get("ShareeNode") is not True:
            peers.append(peer)
    return Status(state, tun, own.node, own.names, tuple(peers))


def _status_node(peer: dict[str, Any], users: dict[str, Any], suffix: str) -> PeerStatus | None:
    """None for a node without a name."""
    full = _name(peer.get("DNSName", ""), "DNSName").lower()
    if not full:
        return None
    short = full.removesuffix(f".{suffix}") if suffix else full
    user, tags = _number(peer.get("UserID"), "UserID"), _texts(peer.get("Tags"), "Tags")
    profile = _mapping(users.get(str(user)), "User")
    login = "" if tags else _text(profile.get("LoginName", ""), "LoginName", empty=True)
    addresses = _texts(peer.get("TailscaleIPs"), "TailscaleIPs")
    if any(pack(address) is None for address in addresses):
        raise ValueError("TailscaleIPs are not addresses")
    online = peer.get("Online")
    return PeerStatus(
        Node(_stable_id(peer.get("ID"), "ID"), short, user, login, tags, addresses),
        (short,) if short == full else (short, full),
        None if online is None else _flag(online, "Online"),
        _path(peer),
    )


def _path(peer: dict[str, Any]) -> str:
    # Relay is where the peer can be met, used or not: without traffic nobody knows the path.
    if peer.get("Active") is not True:
        return ""
    for member, said in (("CurAddr", "direct"), ("PeerRelay", "peer relay"), ("Relay", "relay")):
        if place := _text(peer.get(member, ""), member, empty=True):
            return f"{said} {place}"
    return ""


def _single(prefix: str) -> str | None:
    """The address of a network that is only one; None for others. ValueError for what is none."""
    address, _, length = prefix.partition("/")
    packed = pack(address)
    if packed is None or not (length.isascii() and length.isdigit()):
        raise ValueError(f"{prefix!r} is not an address of a node")
    return address if int(length) == 8 * len(packed) else None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return cast("dict[str, Any]", value)


def _mapping(value: object, what: str) -> dict[str, Any]:
    return {} if value is None else _object(value, what)  # null: how Go writes an empty one


def _text(value: object, what: str, *, empty: bool = False) -> str:
    # What is not printable (lone surrogates too) could neither be shown nor stored.
    if not isinstance(value, str) or not value.isprintable() or not (value or empty):
        raise ValueError(f"{what} is not a text")
    return value


def _name(value: object, what: str) -> str:
    return _text(value, what, empty=True).removesuffix(".")


def _stable_id(value: object, what: str) -> str:
    found = _text(value, what)
    if not found.isascii() or " " in found or len(found) > _ID_LIMIT:
        raise ValueError(f"{what} is not an id")
    return found


def _texts(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a list")
    return tuple(_text(each, what) for each in cast("list[object]", value))


def _number(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{what} is not a number")
    return value


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{what} is neither true nor false")
    return value
