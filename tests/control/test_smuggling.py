"""Requests hidden in others: two readers of one connection must never see different ones."""

from __future__ import annotations

import pytest

from support.receiving import RunningReceiver
from support.wire import head
from tdx.proto.chunked import MAX_LINE, MAX_OVERHEAD, MAX_TRAILERS

HIDDEN = head("PUT", "/files/hidden", {"Content-Length": 4}) + b"evil"
CHUNKED = {"Transfer-Encoding": "chunked"}


def refused(receiver: RunningReceiver, sent: bytes, status: int = 400) -> None:
    """It is answered once, with an error that ends the connection, and nothing of it is stored."""
    before = receiver.visible()
    with receiver.connect() as wire:
        wire.send(sent)
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert wire.is_closed()
    assert receiver.visible() == before
    assert receiver.request("GET", "/v1/hello").status == 200
    receiver.is_quiet()


CODINGS = {
    "in capitals and alone": ("Transfer-Encoding: CHUNKED", 201),
    "with blanks around": ("Transfer-Encoding:   chunked  ", 201),
    "with tabs around": ("Transfer-Encoding: \tchunked\t", 400),
    "with a name in capitals": ("TRANSFER-ENCODING: chunked", 201),
    "in quotes": ('Transfer-Encoding: "chunked"', 400),
    "with a comma": ("Transfer-Encoding: chunked,", 400),
    "after a comma": ("Transfer-Encoding: , chunked", 400),
    "with a parameter": ("Transfer-Encoding: chunked;q=1", 400),
    "twice in a list": ("Transfer-Encoding: chunked, chunked", 400),
    "after identity": ("Transfer-Encoding: identity, chunked", 400),
    "with a vertical tab": ("Transfer-Encoding: \x0bchunked", 400),
    "with a byte behind": ("Transfer-Encoding: chunked\xa0", 400),
    "of nothing": ("Transfer-Encoding:", 400),
    "identity": ("Transfer-Encoding: identity", 400),
    "blank in the name": ("Transfer Encoding: chunked", 400),
    "blank before the name": (" Transfer-Encoding: chunked", 400),
    "byte in the name": ("Transfer-Encoding\xa0: chunked", 400),
}


@pytest.mark.parametrize(("field", "status"), CODINGS.values(), ids=CODINGS)
def test_a_coding_is_chunked_or_the_request_is_refused(
    receiver: RunningReceiver, field: str, status: int
) -> None:
    request = f"PUT /files/f HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n\r\n".encode("latin-1")
    body = b"3\r\nabc\r\n0\r\n\r\n"
    if status != 201:
        refused(receiver, request + body + HIDDEN, status)
        return
    with receiver.connect() as wire:
        wire.send(request + body + head("GET", "/v1/hello"))
        assert [wire.answer().status for _ in range(2)] == [201, 200]
    assert receiver.visible() == {"f": b"abc"}


CHUNKS = {
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-1\r\nabc\r\n0\r\n\r\n",
    "a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "an underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "a blank before": b" 3\r\nabc\r\n0\r\n\r\n",
    "a blank behind": b"3 \r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "an extension of no size": b";a=b\r\nabc\r\n0\r\n\r\n",
    "a size of 2**63": b"8000000000000000\r\nabc",
    "a size of 2**64 + 3": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "zeros before 2**64": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
    "bare line feeds": b"3\nabc\n0\n\n",
    "a bare line feed after the content": b"3\r\nabc\n0\r\n\r\n",
    "a bare carriage return": b"3\rabc\r\n0\r\n\r\n",
    "more content than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "a line feed in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a carriage return in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a NUL in an extension": b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "an extension without end": b"3;" + b"x" * MAX_LINE,
    "extensions without end": b"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\na\r\n" * MAX_OVERHEAD,
    "a trailer that is none": b"0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "a blank before the colon of a trailer": b"0\r\nX : y\r\n\r\n",
    "a NUL in a trailer": b"0\r\nX: \0\r\n\r\n",
    "a trailer without end": b"0\r\nX: " + b"y" * MAX_LINE,
    "trailers without end": b"0\r\n" + b"X: y\r\n" * MAX_TRAILERS,
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS)
def test_a_body_that_is_no_chunked_coding_stores_nothing_and_is_no_request(
    receiver: RunningReceiver, body: bytes
) -> None:
    refused(receiver, head("PUT", "/files/f", CHUNKED) + body + HIDDEN)


@pytest.mark.parametrize("trailer", ["Content-Length: 4", "Transfer-Encoding: chunked", "Host: evil.example"])
def test_trailers_frame_nothing(receiver: RunningReceiver, trailer: str) -> None:
    with receiver.connect() as wire:
        wire.send(head("PUT", "/files/f", CHUNKED) + f"3\r\nabc\r\n0\r\n{trailer}\r\n\r\n".encode())
        wire.send(head("GET", "/v1/hello"))
        assert [wire.answer().status for _ in range(2)] == [201, 200]
    assert receiver.visible() == {"f": b"abc"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_the_body_of_a_request_that_needs_none_is_no_request(
    receiver: RunningReceiver, method: str, framing: str
) -> None:
    if framing == "length":
        request = head(method, "/v1/hello", {"Content-Length": len(HIDDEN)}) + HIDDEN
    else:
        request = head(method, "/v1/hello", CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    with receiver.connect() as wire:
        wire.send(request)
        wire.answer(to_head=method == "HEAD")
        wire.end()
        while not wire.is_closed():
            wire.answer()
    assert receiver.visible() == {}
    receiver.is_quiet()


@pytest.mark.parametrize(
    "first",
    [
        b"GET /v1/hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\n\r\n",
        b"GET http://127.0.0.1/v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nX : y\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \0\r\n\r\n",
        b"GET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\n\r\n",
        b"GET /v1/hello HTTP/1.1\nHost: 127.0.0.1\n\n",
        b"GET /v1/hello HTTP/1.1\rHost: 127.0.0.1\r\r\n\r\n",
        b"GET\t/v1/hello\tHTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/hello HTTP/1.1 \r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/hello HTTP/1.10\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/hello http/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /v1/hello\r\n\r\n",
        b"\r\n\r\nGET /v1/hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"PUT /files/f HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_after_a_head_that_is_refused_nothing_is_read_as_a_request(
    receiver: RunningReceiver, first: bytes
) -> None:
    refused(receiver, first + HIDDEN + HIDDEN)


def test_a_line_of_http_0_9_is_given_up_or_refused(receiver: RunningReceiver) -> None:
    with receiver.connect() as wire:
        wire.send(b"GET /v1/hello\r\n").end()
        answered = not wire.is_closed()
        assert not answered or wire.answer().status == 400
    receiver.is_quiet()
