"""Heads and the chunked coding: two readers of the same bytes must see the same messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from fuzz.target import Target, cut_up
from tdx.errors import MethodNotAllowed, ProtocolError
from tdx.proto.chunked import MAX_LINE, MAX_OVERHEAD, MAX_TRAILERS, ChunkedDecoder
from tdx.proto.head import (
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LENGTH,
    Framing,
    RequestHead,
    ResponseHead,
    format_request,
    format_response,
    head_end,
    parse_request,
    parse_response,
)

REFUSED = "refused"
PROBE = b"0\r\n\r\n"
"""An empty body in chunked coding, or five bytes of any other."""

# --- heads ------------------------------------------------------------------------------


def _end_of(pieces: Iterable[bytes]) -> int | None:
    """Where the head ends, looked for as a connection does. ProtocolError."""
    buffer, scanned = bytearray(), 0
    for piece in pieces:
        buffer += piece
        end = head_end(buffer, scanned)
        if end is not None:
            return end
        scanned = len(buffer)
    return None


def _read_request(data: bytes, pieces: Iterable[bytes]) -> tuple[int, RequestHead] | str | None:
    try:
        end = _end_of(pieces)
        return None if end is None else (end, parse_request(data[:end]))
    except (ProtocolError, MethodNotAllowed):
        return REFUSED


def request_head(data: bytes) -> None:
    """A head is read alike in any pieces, survives a round trip, and no other reader frames its body
    differently."""
    way, message = (data[0], data[1:]) if data else (0, b"")
    whole = _read_request(message, [message])
    assert whole == _read_request(message, cut_up(message, way))
    if whole is None or isinstance(whole, str):
        return
    end, head = whole
    fields = list(head.headers.items())
    assert end <= MAX_HEAD
    assert len(fields) <= MAX_FIELDS
    assert head.target.startswith("/") or (head.method, head.target) == ("OPTIONS", "*")
    _check_framing(head.framing)
    written = format_request(head.method, head.target, fields)
    if b" HTTP/1.1\r\n" in message[: message.index(b"\r\n", 2) + 2]:
        assert parse_request(written) == head
    conn = h11.Connection(h11.SERVER)
    seen = _framing_by_h11(conn, message[:end], head.framing)
    if seen is not None:
        event, length = seen
        assert isinstance(event, h11.Request)
        assert (event.method.decode(), event.target.decode()) == (head.method, head.target)
        assert length == _described(head.framing)


def _read_response(
    data: bytes, pieces: Iterable[bytes], *, to_head: bool
) -> tuple[int, ResponseHead] | str | None:
    try:
        end = _end_of(pieces)
        return None if end is None else (end, parse_response(data[:end], to_head=to_head))
    except ProtocolError:
        return REFUSED


def response_head(data: bytes) -> None:
    """The same for responses, also to HEAD."""
    way, message = (data[0], data[1:]) if data else (0, b"")
    to_head = way % 4 == 3
    whole = _read_response(message, [message], to_head=to_head)
    assert whole == _read_response(message, cut_up(message, way), to_head=to_head)
    if whole is None or isinstance(whole, str):
        return
    end, head = whole
    fields = list(head.headers.items())
    assert end <= MAX_HEAD
    assert 100 <= head.status <= 599
    assert head.status != 101
    _check_framing(head.framing)
    assert parse_response(format_response(head.status, fields), to_head=to_head) == head
    if head.framing.length is None and not head.framing.chunked:
        assert not head.keep_alive
    conn = h11.Connection(h11.CLIENT)
    conn.send(h11.Request(method="HEAD" if to_head else "GET", target="/", headers=[("Host", "a")]))
    conn.send(h11.EndOfMessage())
    seen = _framing_by_h11(conn, message[:end], head.framing)
    if seen is not None and head.status >= 200:
        event, length = seen
        assert isinstance(event, h11.Response)
        assert event.status_code == head.status
        assert length == _described(head.framing)


def _check_framing(framing: Framing) -> None:
    assert not (framing.chunked and framing.length is not None)
    assert framing.length is None or 0 <= framing.length <= MAX_LENGTH


def _described(framing: Framing) -> str:
    if framing.chunked:
        return "chunked"
    if framing.length is None:
        return "until close"
    return str(framing.length) if framing.length <= MAX_HEAD else "long"


def _framing_by_h11(
    conn: h11.Connection, head: bytes, ours: Framing
) -> tuple[h11.Request | h11.Response | h11.InformationalResponse, str] | None:
    """What h11 takes the head for, and how it would read the body; None where it refuses it."""
    conn.receive_data(head)
    try:
        event = conn.next_event()
        assert isinstance(event, h11.Request | h11.Response | h11.InformationalResponse), "another end"
        if isinstance(event, h11.InformationalResponse):
            return event, ""
        assert conn.trailing_data == (b"", False)
        if isinstance(conn.next_event(), h11.EndOfMessage):
            return event, "0"
        conn.receive_data(PROBE.ljust(min(ours.length or 0, MAX_HEAD), b"x"))
        body = b""
        while isinstance(ended := conn.next_event(), h11.Data):
            body += ended.data
        if isinstance(ended, h11.EndOfMessage):
            return event, str(len(body)) if body else "chunked"
    except h11.RemoteProtocolError:
        return None
    try:
        conn.receive_data(b"")
        return event, "until close" if isinstance(conn.next_event(), h11.EndOfMessage) else "long"
    except h11.RemoteProtocolError:
        return event, "long"


def _requests() -> list[bytes]:
    fields = [
        [("Host", "a")],
        [("Host", "127.0.0.1:8390"), ("Content-Length", "5")],
        [("Host", "a"), ("Transfer-Encoding", "chunked"), ("Expect", "100-continue")],
        [("Host", "[::1]:1"), ("Content-Range", "bytes 0-4/5"), ("Tdx-Epoch", "1"), ("Connection", "close")],
    ]
    heads = [
        format_request(method, target, each)
        for method, target in (("GET", "/v1/hello"), ("PUT", "/files/a%20b"), ("OPTIONS", "*"))
        for each in fields
    ]
    return [b"\1" + each for each in heads] + [b"\0GET / HTTP/1.0\r\n\r\n", b"\2\r\n" + heads[0]]


def _responses() -> list[bytes]:
    fields = [
        [("Content-Length", "5")],
        [("Transfer-Encoding", "chunked")],
        [("Connection", "keep-alive, close"), ("Date", "now")],
        [],
    ]
    return [
        bytes([way]) + format_response(status, each)
        for way, status in ((0, 200), (1, 100), (2, 204), (3, 200), (4, 409))
        for each in fields
    ]


_HEAD_TOKENS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b"\x0b",
        b"\xa0",
        b"\r\n\r\n",
        b"chunked, ",
        b"Content-Length: ",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
    *b": , HTTP/1.0 HTTP/2.0 +5 0x5 http://a/ identity".split(),
]

# --- the chunked coding -----------------------------------------------------------------

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")


@dataclass
class Coded:
    """What a body in chunked coding is; ``rest`` is what follows it, None where it has not ended."""

    payload: bytes = b""
    rest: bytes | None = None
    refused: bool = False
    large: bool = False
    """Beyond what the decoder need take: there only it may refuse what is right."""


def _decoded(data: bytes, pieces: Iterable[bytes]) -> Coded:
    decoder, found = ChunkedDecoder(), Coded()
    fed = 0
    try:
        for piece in pieces:
            fed += len(piece)
            parts = decoder.feed(piece)
            assert all(parts)
            found.payload += b"".join(parts)
            assert len(decoder._line) <= MAX_LINE, "a line is kept that is too long"
    except ProtocolError:
        return Coded(refused=True)
    if decoder.finished:
        found.rest = decoder.leftover
        fed -= len(found.rest)
    # What a chunk costs beyond its payload: its line, whose fair share is 18 bytes and twice the payload,
    # and the CRLF after it.
    bound = 23 * len(found.payload) + MAX_OVERHEAD + MAX_TRAILERS + 3 * MAX_LINE
    assert fed <= bound, "more is read than the payload is worth"
    return found


def _by_the_book(data: bytes) -> Coded:
    """RFC 9112 section 7.1, word by word, of a body that is there as a whole."""
    found, at, overhead = Coded(), 0, 0
    while True:
        line, end, _ = data[at:].partition(b"\n")
        if not end:
            found.large = found.large or len(line) >= MAX_LINE
            return found
        match = _SIZE.fullmatch(line.removesuffix(b"\r"))
        size = -1 if match is None else int(match[1], 16)
        if not line.endswith(b"\r") or not 0 <= size < 1 << 63:
            return Coded(refused=True)
        overhead += max(0, len(line) + 1 - 18)
        found.large = found.large or overhead > MAX_OVERHEAD or len(line) >= MAX_LINE
        at += len(line) + 1
        if not size:
            break
        found.payload += data[at : at + size]
        at += size
        if at < len(data) and not b"\r\n".startswith(data[at : at + 2]):
            # The decoder looks at whole lines only.
            tail = data[at:]
            found.large = found.large or len(tail) >= MAX_LINE
            return Coded(refused=True) if b"\n" in tail else found
        at += 2
        if at > len(data):
            return found
    trailers = 0
    while True:
        line, end, rest = data[at:].partition(b"\n")
        if not end:
            found.large = found.large or len(line) >= MAX_LINE
            return found
        at += len(line) + 1
        if line == b"\r":
            found.rest = rest
            return found
        if not line.endswith(b"\r") or _TRAILER.fullmatch(line[:-1]) is None:
            return Coded(refused=True)
        trailers += len(line) + 1
        found.large = found.large or trailers > MAX_TRAILERS or len(line) >= MAX_LINE


def _by_h11(data: bytes) -> Coded:
    conn = h11.Connection(h11.SERVER)
    conn.receive_data(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    found = Coded()
    try:
        assert isinstance(conn.next_event(), h11.Request)
        while isinstance(event := conn.next_event(), h11.Data):
            found.payload += event.data
    except h11.RemoteProtocolError:
        return Coded(refused=True)
    if isinstance(event, h11.EndOfMessage):
        found.rest = conn.trailing_data[0]
    return found


def chunked(data: bytes) -> None:
    """A body is decoded alike in any pieces, as the standard says, and no other reader sees another end of
    it; what is read is in proportion to its payload."""
    way, message = (data[0], data[1:]) if data else (0, b"")
    whole = _decoded(message, [message])
    assert whole == _decoded(message, cut_up(message, way))
    right = _by_the_book(message)
    if not right.large:
        assert whole == right
    elif not whole.refused:
        assert (whole.payload, whole.rest) == (right.payload, right.rest)
    theirs = _by_h11(message)
    if not whole.refused and not theirs.refused:
        assert (whole.payload, whole.rest) == (theirs.payload, theirs.rest)


def _bodies() -> list[bytes]:
    return [
        b"\1" + body
        for body in (
            b"0\r\n\r\n",
            b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
            b'1;a=b\r\nx\r\n00000002 ; c="d"\r\nyz\r\n0\r\nTrailer: v\r\n\r\n',
            b"A\r\n0123456789\r\n" * 3 + b"000\r\n\r\n",
        )
    ]


TARGETS = {
    "request_head": Target(request_head, _requests, _HEAD_TOKENS),
    "response_head": Target(response_head, _responses, _HEAD_TOKENS),
    "chunked": Target(
        chunked,
        _bodies,
        [b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"1\r\n", b"\0", *b"; 7fffffffffffffff 0x1 -1 +1".split()],
        longest=40_000,
    ),
}
