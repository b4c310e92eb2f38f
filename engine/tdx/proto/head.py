"""Message heads: where one ends, what it says, how one is written (RFC 9112).

httptools tokenises; what it tolerates and a smuggler could use is refused here.
A head is framed exactly one way or it is an error: nothing is guessed or mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import httptools

from tdx.errors import HeadTooLarge, MethodNotAllowed, ProtocolError

MAX_HEAD: Final = 65536
"""Most bytes of a head, its final CRLFCRLF included."""

MAX_FIELDS: Final = 100

MAX_TARGET: Final = 16384
"""Most bytes of a request target: room for every name of 4096 bytes, percent-encoded."""

MAX_LENGTH: Final = 2**63 - 1
"""Largest Content-Length: what a file offset can hold."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIELD_LINES = rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*\r\n)*\r\n"
_REQUEST = re.compile(rb"(?:\r\n)?" + _TOKEN + rb" [!-~]+ HTTP/1\.[01]\r\n" + _FIELD_LINES)
_RESPONSE = re.compile(rb"HTTP/1\.1 [1-5][0-9][0-9](?: [\t -~\x80-\xff]*)?\r\n" + _FIELD_LINES)
_NAME = re.compile(_TOKEN.decode())
_START = re.compile(rb"(?:\r\n)?" + _TOKEN[:-1])
_NEVER_IN_A_HEAD = re.compile(rb"\x00|[^\r]\n")
_FAULTS = (
    (re.compile(rb"\x00"), "a NUL byte"),
    (re.compile(rb"(?<!\r)\n"), "a line that ends in a bare LF"),
    (re.compile(rb"\r(?!\n)"), "a bare CR"),
    (re.compile(rb"\r\n[ \t]"), "a folded field line"),
    (re.compile(rb"\r\n[^:\r]*[ \t]:"), "white space before a colon"),
)
_DIGITS = re.compile(r"[0-9]{1,19}")
_TARGET = re.compile(r"[!-~]+")
_UNWRITABLE = re.compile(r"[^\t -~\x80-\xff]")

_ONCE_ONLY = frozenset({"content-length", "transfer-encoding", "host", "content-range"})
_OURS = "tdx-"

_REASONS: Final = {
    100: "Continue",
    102: "Processing",
    104: "Upload Resumption Supported",
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    507: "Insufficient Storage",
}


class Headers:
    """The field lines of one head, in order; names are case-insensitive, values stripped."""

    __slots__ = ("_by_name", "_items")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._items = tuple((name.lower(), value.strip(" \t")) for name, value in items)
        self._by_name: dict[str, list[str]] = {}
        for name, value in self._items:
            self._by_name.setdefault(name, []).append(value)

    def get(self, name: str) -> str | None:
        """The value of a field that may be there once; ProtocolError where it is repeated."""
        values = self._by_name.get(name.lower())
        if values is None:
            return None
        if len(values) > 1:
            raise ProtocolError(f"the field {name} is repeated")
        return values[0]

    def get_all(self, name: str) -> list[str]:
        """Every value of a field, in order; empty where it is absent."""
        return list(self._by_name.get(name.lower(), ()))

    def items(self) -> Iterator[tuple[str, str]]:
        """Every field line in order, the name in lower case."""
        return iter(self._items)

    def repeated(self) -> Iterator[str]:
        """The names that are there more than once, in lower case."""
        return (name for name, values in self._by_name.items() if len(values) > 1)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._by_name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Headers({list(self._items)!r})"


@dataclass(frozen=True, slots=True)
class Framing:
    """How long the body is: ``length`` bytes, or chunked, or (a response with
    neither) until the connection closes. ``stated`` is whether the head said so."""

    length: int | None
    chunked: bool
    stated: bool = True


@dataclass(frozen=True, slots=True)
class RequestHead:
    """``target`` is in origin form, still percent-encoded, or ``*`` for OPTIONS. ``takes_interim``:
    HTTP/1.0 knows no interim responses (RFC 9110 section 15.2)."""

    method: str
    target: str
    headers: Headers
    keep_alive: bool
    framing: Framing
    takes_interim: bool = True


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """An interim (1xx) or final response."""

    status: int
    headers: Headers
    keep_alive: bool
    framing: Framing


class _Tokens:
    """What httptools calls back with."""

    __slots__ = ("fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def head_end(buffer: bytes | bytearray, scanned: int = 0) -> int | None:
    """The index just past the CRLFCRLF that ends the head; None while it has not arrived.

    ``scanned`` is how much of the buffer an earlier call has looked at. One CRLF
    before the head is tolerated (RFC 9112 2.2) and counts towards it. HeadTooLarge
    when the head cannot fit in MAX_HEAD any more; ProtocolError as soon as the bytes
    cannot be the beginning of a head.
    """
    if _START.match(buffer) is None and buffer not in (b"", b"\r", b"\r\n"):
        raise ProtocolError("what arrived is not HTTP")
    found = buffer.find(b"\r\n\r\n", max(0, scanned - 3), MAX_HEAD)
    if found >= 0:
        return found + 4
    if len(buffer) >= MAX_HEAD:
        raise HeadTooLarge(f"the head is longer than {MAX_HEAD} bytes")
    # A client that ends its lines in bare LFs would otherwise wait for an answer until it times out.
    if _NEVER_IN_A_HEAD.search(buffer, max(0, scanned - 1)) is not None:
        raise ProtocolError("not an HTTP/1.1 head: a NUL byte or a line that ends in a bare LF")
    return None


def parse_request(data: bytes) -> RequestHead:
    """The request whose head is exactly ``data`` (up to and including CRLFCRLF).

    HeadTooLarge (431), MethodNotAllowed (405) for a method that is not HTTP's,
    ProtocolError (400) for everything else that is not a head we serve. After any of
    them the connection's framing is unknown: answer and close.
    """
    _check_shape(data, _REQUEST, "request")
    tokens = _Tokens()
    parser = httptools.HttpRequestParser(tokens)
    upgrade = False
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        upgrade = True
    except httptools.HttpParserInvalidMethodError as error:
        raise MethodNotAllowed("the method is not one of HTTP's") from error
    except httptools.HttpParserError as error:
        raise ProtocolError(f"not an HTTP/1.1 request: {error}") from error
    method = parser.get_method().decode("ascii")
    if method == "CONNECT":
        raise MethodNotAllowed("this is not a proxy: CONNECT is not served")
    if upgrade:
        raise ProtocolError("this connection stays HTTP/1.1: send the request again without Upgrade")
    target = tokens.target.decode("ascii")
    _check_target(method, target)
    version = parser.get_http_version()
    headers = _headers(tokens.fields)
    if version == "1.1" and "host" not in headers:
        raise ProtocolError("an HTTP/1.1 request needs a Host field")
    if version == "1.0" and "transfer-encoding" in headers:
        raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
    framing = _framing(headers) or Framing(0, chunked=False, stated=False)
    newer = version == "1.1"
    return RequestHead(method, target, headers, newer and not _closes(headers), framing, takes_interim=newer)


def parse_response(data: bytes, *, to_head: bool = False) -> ResponseHead:
    """The response whose head is exactly ``data``; ``to_head`` where it answers a HEAD.

    Only HTTP/1.1, and no 101: nothing of ours asks for another protocol. ProtocolError
    or HeadTooLarge otherwise.
    """
    _check_shape(data, _RESPONSE, "response")
    tokens = _Tokens()
    parser = httptools.HttpResponseParser(tokens)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # a server may advertise protocols on any response (RFC 9110 7.8)
    except httptools.HttpParserError as error:
        raise ProtocolError(f"not an HTTP/1.1 response: {error}") from error
    status = parser.get_status_code()
    if status == 101:
        raise ProtocolError("the other end switched to a protocol that nobody asked for")
    headers = _headers(tokens.fields)
    framing = _framing(headers) or Framing(None, chunked=False)
    if to_head or status < 200 or status in (204, 304):
        framing = Framing(0, chunked=False)
    until_close = framing.length is None and not framing.chunked
    return ResponseHead(status, headers, not until_close and not _closes(headers), framing)


def _check_shape(data: bytes, shape: re.Pattern[bytes], kind: str) -> None:
    if len(data) > MAX_HEAD:
        raise HeadTooLarge(f"the head is longer than {MAX_HEAD} bytes")
    if data.count(b"\r\n") > MAX_FIELDS + 3:
        raise HeadTooLarge(f"the head has more than {MAX_FIELDS} fields")
    if shape.fullmatch(data) is None:
        fault = next((text for pattern, text in _FAULTS if pattern.search(data)), "a malformed line")
        raise ProtocolError(f"not an HTTP/1.1 {kind} head: {fault}")


def _check_target(method: str, target: str) -> None:
    if len(target) > MAX_TARGET:
        raise HeadTooLarge(f"the request target is longer than {MAX_TARGET} bytes")
    if target == "*" and method == "OPTIONS":
        return
    if not target.startswith("/") or "#" in target:
        raise ProtocolError(f"not a target in origin form: {target!r:.80}")


def _headers(fields: list[tuple[bytes, bytes]]) -> Headers:
    if len(fields) > MAX_FIELDS:
        raise HeadTooLarge(f"the head has more than {MAX_FIELDS} fields")
    headers = Headers((name.decode("ascii"), value.decode("latin-1")) for name, value in fields)
    for name in headers.repeated():
        if name in _ONCE_ONLY or name.startswith(_OURS):
            raise ProtocolError(f"the field {name} is repeated")
    return headers


def _framing(headers: Headers) -> Framing | None:
    """What the fields say about the body; None where they say nothing."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or coding.lower() != "chunked":
            raise ProtocolError("Transfer-Encoding may only be chunked, and without Content-Length")
        return Framing(None, chunked=True)
    if length is not None:
        if _DIGITS.fullmatch(length) is None or int(length) > MAX_LENGTH:
            raise ProtocolError(f"not a Content-Length: {length!r:.80}")
        return Framing(int(length), chunked=False)
    return None


def _closes(headers: Headers) -> bool:
    options = ",".join(headers.get_all("connection")).lower().split(",")
    return any(option.strip(" \t") == "close" for option in options)


def reason(status: int) -> str:
    """The reason phrase of a status, empty for one we never send."""
    return _REASONS.get(status, "")


def format_request(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request; ValueError for control characters or what a line cannot carry."""
    if _NAME.fullmatch(method) is None or _TARGET.fullmatch(target) is None:
        raise ValueError(f"not a request line: {method!r} {target!r}")
    return _format(f"{method} {target} HTTP/1.1\r\n", fields)


def format_response(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """The head of a response; ValueError for control characters or what a line cannot carry."""
    if not 100 <= status <= 599:
        raise ValueError(f"not a status: {status}")
    return _format(f"HTTP/1.1 {status} {reason(status)}\r\n", fields)


def _format(start: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [start]
    for name, value in fields:
        if _NAME.fullmatch(name) is None or _UNWRITABLE.search(value) is not None:
            raise ValueError(f"not a field: {name!r}: {value!r}")
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


PROCESSING: Final = format_response(102, [])
"""What tells a sender that its request is being worked on (RFC 2518 section 10.1)."""
