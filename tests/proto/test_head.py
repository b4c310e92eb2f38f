from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import HeadTooLarge, MethodNotAllowed, ProtocolError, TdxError
from tdx.proto.head import (
    MAX_FIELDS,
    MAX_HEAD,
    MAX_TARGET,
    Framing,
    Headers,
    format_request,
    format_response,
    head_end,
    parse_request,
    parse_response,
    reason,
)

NAMES = st.from_regex(r"x-[a-z0-9]{1,12}", fullmatch=True)
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=40
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=MAX_FIELDS - 1)
TARGETS = st.from_regex(r"/[!-\"$-~]{0,60}", fullmatch=True)

GET = b"GET /v1/hello HTTP/1.1\r\nHost: a\r\n\r\n"


def request(line: bytes = b"PUT /files/a HTTP/1.1", *fields: bytes) -> bytes:
    return b"\r\n".join([line, *(fields or (b"Host: a",)), b"", b""])


def put(*fields: bytes) -> bytes:
    return request(b"PUT /files/a HTTP/1.1", b"Host: a", *fields)


def response(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


class TestHeaders:
    def test_names_are_case_insensitive_and_values_are_stripped(self) -> None:
        headers = Headers([("Tdx-Epoch", " 7\t"), ("X", "")])
        assert headers.get("tdx-epoch") == headers.get("TDX-EPOCH") == "7"
        assert "TDX-epoch" in headers
        assert headers.get("x") == ""

    def test_an_absent_field_is_none_or_no_value(self) -> None:
        assert Headers().get("host") is None
        assert Headers().get_all("host") == []
        assert "host" not in Headers()

    def test_a_repeated_field_has_every_value_but_not_one(self) -> None:
        headers = Headers([("A", "1"), ("B", "2"), ("a", "3")])
        assert headers.get_all("A") == ["1", "3"]
        assert list(headers.repeated()) == ["a"]
        with pytest.raises(ProtocolError, match="repeated"):
            headers.get("a")

    def test_nobody_changes_them_through_what_they_hand_out(self) -> None:
        headers = Headers([("A", "1")])
        headers.get_all("a").append("2")
        assert headers.get_all("a") == ["1"]

    def test_items_keep_their_order(self) -> None:
        assert list(Headers([("B", "1"), ("A", "2"), ("B", "3")]).items()) == [
            ("b", "1"),
            ("a", "2"),
            ("b", "3"),
        ]

    def test_equal_field_lines_are_equal_headers(self) -> None:
        headers = Headers([("A", "1")])
        assert headers == Headers([("a", "1 ")])
        assert hash(headers) == hash(Headers([("a", "1")]))
        assert headers != Headers([("a", "2")])
        assert headers != "a"
        assert repr(headers) == "Headers([('a', '1')])"


class TestHeadEnd:
    @given(FIELDS, st.binary(max_size=50), st.booleans(), st.data())
    def test_any_split_finds_the_same_end(
        self, fields: list[tuple[str, str]], body: bytes, after_crlf: bool, data: st.DataObject
    ) -> None:
        head = b"\r\n" * after_crlf + format_request("PUT", "/files/a", [("Host", "a"), *fields])
        buffer, scanned, stream = bytearray(), 0, head + body
        while True:
            step = data.draw(st.integers(1, max(1, len(stream) - len(buffer))))
            buffer += stream[len(buffer) : len(buffer) + step]
            end = head_end(buffer, scanned)
            if end is not None:
                break
            assert len(buffer) < len(head)
            scanned = len(buffer)
        assert end == len(head)
        assert parse_request(bytes(buffer[:end])).headers.get("host") == "a"

    def test_byte_by_byte_too(self) -> None:
        for after_crlf in (b"", b"\r\n"):
            stream = after_crlf + GET
            ends = [head_end(stream[:n], max(0, n - 1)) for n in range(len(stream) + 1)]
            assert ends == [None] * len(stream) + [len(stream)]

    def test_what_follows_the_head_may_be_anything(self) -> None:
        assert head_end(GET + b"\x00\n\r\n\r\n") == len(GET)

    @pytest.mark.parametrize(
        "beginning",
        [
            b"\x16\x03\x01",
            b"\x00",
            b" GET",
            b"\nGET",
            b"\r\r",
            b"\rGET",
            b"\r\n\r",
            b"\r\n\r\nGET",
            b"\r\n GET",
            b"\xffGET",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\nHost: a\n\n",
            b"GET /\x00",
        ],
    )
    def test_what_cannot_be_a_head_is_refused_before_it_ends(self, beginning: bytes) -> None:
        with pytest.raises(ProtocolError):
            head_end(beginning)

    def test_a_bare_line_feed_is_seen_across_two_reads(self) -> None:
        stream = b"GET / HTTP/1.1\n"
        assert head_end(stream[:-1]) is None
        with pytest.raises(ProtocolError, match="bare LF"):
            head_end(stream, len(stream) - 1)

    def test_a_head_of_exactly_the_limit_ends(self) -> None:
        head = format_request("GET", "/", [("X", "")])
        longest = format_request("GET", "/", [("X", "x" * (MAX_HEAD - len(head)))])
        assert len(longest) == MAX_HEAD
        assert head_end(longest[:-1]) is None
        assert head_end(longest + b"body") == MAX_HEAD

    def test_a_head_beyond_the_limit_is_too_large_with_or_without_an_end(self) -> None:
        head = b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD
        with pytest.raises(HeadTooLarge):
            head_end(head[:MAX_HEAD])
        with pytest.raises(HeadTooLarge):
            head_end(head + b"\r\n\r\n")


class TestRequests:
    def test_are_parsed(self) -> None:
        head = parse_request(
            b"PUT /files/a%20b?x=1 HTTP/1.1\r\nHost: b:8390\r\nContent-Length: 12\r\n"
            b"tdx-epoch:  3 \t\r\nX: 1\r\nX: caf\xe9\r\n\r\n"
        )
        assert (head.method, head.target, head.keep_alive) == ("PUT", "/files/a%20b?x=1", True)
        assert head.framing == Framing(12, chunked=False)
        assert head.headers.get("Tdx-Epoch") == "3"
        assert head.headers.get_all("x") == ["1", "caf\xe9"]

    @given(st.sampled_from(["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD"]), TARGETS, FIELDS)
    def test_are_read_as_they_were_written(
        self, method: str, target: str, fields: list[tuple[str, str]]
    ) -> None:
        head = parse_request(format_request(method, target, [("Host", "a"), *fields]))
        assert (head.method, head.target) == (method, target)
        assert list(head.headers.items()) == [("host", "a")] + [
            (name, value.strip(" ")) for name, value in fields
        ]

    @pytest.mark.parametrize(
        ("fields", "framing"),
        [
            ([], Framing(0, chunked=False, stated=False)),
            ([b"Content-Length: 0"], Framing(0, chunked=False)),
            ([b"Content-Length: 9223372036854775807"], Framing(2**63 - 1, chunked=False)),
            ([b"Transfer-Encoding: chunked"], Framing(None, chunked=True)),
            ([b"transfer-encoding:CHUNKED"], Framing(None, chunked=True)),
        ],
    )
    def test_are_framed_by_their_fields(self, fields: list[bytes], framing: Framing) -> None:
        assert parse_request(put(*fields)).framing == framing

    @pytest.mark.parametrize(
        ("head", "keep_alive"),
        [
            (put(), True),
            (put(b"Connection: keep-alive"), True),
            (put(b"Connection: close"), False),
            (put(b"Connection: Foo , CLOSE"), False),
            (put(b"Connection: foo", b"Connection: close"), False),
            (put(b"Connection: closed"), True),
            (request(b"GET / HTTP/1.0", b"Connection: keep-alive"), False),
            (request(b"GET / HTTP/1.0", b"Host: a"), False),
        ],
    )
    def test_keep_the_connection_unless_they_say_close_or_are_http_1_0(
        self, head: bytes, keep_alive: bool
    ) -> None:
        assert parse_request(head).keep_alive is keep_alive

    def test_may_come_after_one_empty_line(self) -> None:
        assert parse_request(b"\r\n" + GET) == parse_request(GET)

    def test_may_ask_what_the_server_can_do(self) -> None:
        assert parse_request(request(b"OPTIONS * HTTP/1.1")).target == "*"

    def test_may_have_an_upgrade_that_their_connection_field_does_not_ask_for(self) -> None:
        assert parse_request(put(b"Upgrade: h2c")).headers.get("upgrade") == "h2c"

    def test_may_have_as_many_fields_as_the_limit(self) -> None:
        head = parse_request(put(*[b"X: 1"] * (MAX_FIELDS - 1)))
        assert len(head.headers.get_all("x")) == MAX_FIELDS - 1

    def test_may_have_a_target_as_long_as_the_limit(self) -> None:
        target = b"/" + b"a" * (MAX_TARGET - 1)
        assert parse_request(request(b"GET " + target + b" HTTP/1.1")).target == target.decode()


REFUSED: dict[str, tuple[bytes, type[TdxError]]] = {
    "nothing": (b"", ProtocolError),
    "not ended": (GET[:-1], ProtocolError),
    "more than one head": (GET + GET, ProtocolError),
    "a body after the head": (GET + b"x", ProtocolError),
    "two empty lines first": (b"\r\n\r\n" + GET, ProtocolError),
    "bare LF everywhere": (GET.replace(b"\r\n", b"\n"), ProtocolError),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", ProtocolError),
    "bare LF in a value": (put(b"X: a\nContent-Length: 5"), ProtocolError),
    "bare CR in a value": (put(b"X: a\rContent-Length: 5"), ProtocolError),
    "bare CR before CRLF": (put(b"X: a\r"), ProtocolError),
    "NUL in a value": (put(b"X: a\x00b"), ProtocolError),
    "NUL in a name": (put(b"X\x00: a"), ProtocolError),
    "NUL in the target": (request(b"GET /a\x00b HTTP/1.1"), ProtocolError),
    "another control character in a value": (put(b"X: a\x01b"), ProtocolError),
    "DEL in a value": (put(b"X: a\x7fb"), ProtocolError),
    "a folded line": (put(b"X: a", b" b"), ProtocolError),
    "a folded line of a tab": (put(b"Transfer-Encoding: chunked", b"\tfoo"), ProtocolError),
    "white space before the first field": (request(b"GET / HTTP/1.1", b" Host: a"), ProtocolError),
    "a space before a colon": (put(b"Content-Length : 5"), ProtocolError),
    "a tab before a colon": (put(b"Transfer-Encoding\t: chunked"), ProtocolError),
    "a line without a colon": (put(b"Content-Length 5"), ProtocolError),
    "a field without a name": (put(b": 5"), ProtocolError),
    "a name that is no token": (put(b"Content(Length): 5"), ProtocolError),
    "a name beyond ASCII": (put("Größe: 5".encode()), ProtocolError),
    "two Hosts": (put(b"Host: b"), ProtocolError),
    "two equal Hosts": (put(b"host: a"), ProtocolError),
    "no Host": (request(b"GET / HTTP/1.1", b"X: 1"), ProtocolError),
    "two Hosts in HTTP/1.0": (request(b"GET / HTTP/1.0", b"Host: a", b"Host: a"), ProtocolError),
    "two lengths": (put(b"Content-Length: 5", b"Content-Length: 6"), ProtocolError),
    "two equal lengths": (put(b"Content-Length: 5", b"content-length: 5"), ProtocolError),
    "a list of lengths": (put(b"Content-Length: 5, 5"), ProtocolError),
    "a signed length": (put(b"Content-Length: +5"), ProtocolError),
    "a negative length": (put(b"Content-Length: -5"), ProtocolError),
    "a hexadecimal length": (put(b"Content-Length: 0x5"), ProtocolError),
    "a length with an underscore": (put(b"Content-Length: 1_0"), ProtocolError),
    "a length of spaces": (put(b"Content-Length: 1 0"), ProtocolError),
    "an empty length": (put(b"Content-Length:"), ProtocolError),
    "a length of 2^63": (put(b"Content-Length: 9223372036854775808"), ProtocolError),
    "a length beyond 64 bits": (put(b"Content-Length: 18446744073709551621"), ProtocolError),
    "a length of many zeros": (put(b"Content-Length: 00000000000000000005"), ProtocolError),
    "CL.TE": (put(b"Content-Length: 5", b"Transfer-Encoding: chunked"), ProtocolError),
    "TE.CL": (put(b"Transfer-Encoding: chunked", b"Content-Length: 5"), ProtocolError),
    "TE.TE": (put(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), ProtocolError),
    "TE.TE obfuscated": (put(b"Transfer-Encoding: chunked", b"Transfer-encoding: x"), ProtocolError),
    "an unknown coding": (put(b"Transfer-Encoding: xchunked"), ProtocolError),
    "identity": (put(b"Transfer-Encoding: identity"), ProtocolError),
    "two codings": (put(b"Transfer-Encoding: gzip, chunked"), ProtocolError),
    "chunked twice": (put(b"Transfer-Encoding: chunked, chunked"), ProtocolError),
    "chunked with a parameter": (put(b"Transfer-Encoding: chunked;q=1"), ProtocolError),
    "a vertical tab in a coding": (put(b"Transfer-Encoding: \x0bchunked"), ProtocolError),
    "an empty coding": (put(b"Transfer-Encoding:"), ProtocolError),
    "a coding in HTTP/1.0": (
        request(b"PUT /files/a HTTP/1.0", b"Host: a", b"Transfer-Encoding: chunked"),
        ProtocolError,
    ),
    "two ranges": (put(b"Content-Range: bytes 0-1/2", b"Content-Range: bytes 0-1/2"), ProtocolError),
    "two epochs": (put(b"Tdx-Epoch: 1", b"TDX-EPOCH: 2"), ProtocolError),
    "an absolute target": (request(b"GET http://a/ HTTP/1.1"), ProtocolError),
    "an authority as target": (request(b"GET a:80 HTTP/1.1"), ProtocolError),
    "a relative target": (request(b"GET files HTTP/1.1"), ProtocolError),
    "a fragment in the target": (request(b"GET /files/a#b HTTP/1.1"), ProtocolError),
    "an asterisk for GET": (request(b"GET * HTTP/1.1"), ProtocolError),
    "no target": (request(b"GET HTTP/1.1"), ProtocolError),
    "a space in the target": (request(b"GET /a b HTTP/1.1"), ProtocolError),
    "a tab for a space": (request(b"GET\t/ HTTP/1.1"), ProtocolError),
    "two spaces": (request(b"GET  / HTTP/1.1"), ProtocolError),
    "a space after the version": (request(b"GET / HTTP/1.1 "), ProtocolError),
    "a target beyond ASCII": (request(b"GET /\xc3\xbc HTTP/1.1"), ProtocolError),
    "HTTP/0.9": (b"GET /\r\n\r\n", ProtocolError),
    "HTTP/1.2": (request(b"GET / HTTP/1.2"), ProtocolError),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", ProtocolError),
    "HTTP/11.1": (request(b"GET / HTTP/11.1"), ProtocolError),
    "http in lower case": (request(b"GET / http/1.1"), ProtocolError),
    "another protocol": (request(b"SOURCE / ICE/1.0"), ProtocolError),
    "a response": (b"HTTP/1.1 200 OK\r\n\r\n", ProtocolError),
    "an upgrade": (put(b"Connection: Upgrade", b"Upgrade: h2c"), ProtocolError),
    "a proxy's method": (request(b"CONNECT a:80 HTTP/1.1"), MethodNotAllowed),
    "a method that nobody knows": (request(b"FROBNICATE / HTTP/1.1"), MethodNotAllowed),
    "a method in lower case": (request(b"get / HTTP/1.1"), MethodNotAllowed),
    "one field too many": (put(*[b"X: 1"] * MAX_FIELDS), HeadTooLarge),
    "a flood of fields": (put(*[b"X:"] * 10_000), HeadTooLarge),
    "a target too long": (request(b"GET /" + b"a" * MAX_TARGET + b" HTTP/1.1"), HeadTooLarge),
    "a head too long": (put(b"X: " + b"x" * MAX_HEAD), HeadTooLarge),
}


@pytest.mark.parametrize(("head", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_a_request_that_two_parsers_could_read_differently_is_refused(
    head: bytes, error: type[TdxError]
) -> None:
    with pytest.raises(error) as refusal:
        parse_request(head)
    assert type(refusal.value) is error


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (put(b"X: a\x00b"), "a NUL byte"),
        (put(b"X: a\nb"), "bare LF"),
        (put(b"X: a\rb"), "bare CR"),
        (put(b"X: a", b" b"), "folded"),
        (put(b"X : a"), "before a colon"),
        (put(b"X"), "malformed"),
    ],
)
def test_a_refusal_says_what_is_wrong(head: bytes, fault: str) -> None:
    with pytest.raises(ProtocolError, match=fault):
        parse_request(head)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_head_or_a_protocol_error(data: bytes) -> None:
    for parse in (parse_request, parse_response, head_end):
        refusal: ProtocolError | None = None
        try:
            parse(data)
        except ProtocolError as error:
            refusal = error
        assert refusal is None or 400 <= refusal.status < 500


@given(st.data())
def test_a_damaged_head_is_a_head_or_a_protocol_error(data: st.DataObject) -> None:
    head = bytearray(put(b"Content-Length: 12", b"Content-Range: bytes 0-11/12", b"Tdx-Epoch: 1"))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(head) - 1))
        head[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        parsed = parse_request(bytes(head))
    except ProtocolError:
        return
    assert (parsed.framing.length is None) == parsed.framing.chunked


class TestResponses:
    @pytest.mark.parametrize(
        ("head", "framing", "keep_alive"),
        [
            (response(b"HTTP/1.1 200 OK", b"Content-Length: 3"), Framing(3, chunked=False), True),
            (response(b"HTTP/1.1 200 ", b"Content-Length: 3"), Framing(3, chunked=False), True),
            (response(b"HTTP/1.1 200", b"Content-Length: 3"), Framing(3, chunked=False), True),
            (
                response(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Connection: close"),
                Framing(3, chunked=False),
                False,
            ),
            (response(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked"), Framing(None, chunked=True), True),
            (response(b"HTTP/1.1 200 OK"), Framing(None, chunked=False), False),
            (response(b"HTTP/1.1 500 Ups", b"Connection: keep-alive"), Framing(None, chunked=False), False),
            (response(b"HTTP/1.1 100 Continue"), Framing(0, chunked=False), True),
            (response(b"HTTP/1.1 104 ", b"Location: /uploads/1"), Framing(0, chunked=False), True),
            (response(b"HTTP/1.1 204 No Content"), Framing(0, chunked=False), True),
            (response(b"HTTP/1.1 304 Not Modified", b"Content-Length: 9"), Framing(0, chunked=False), True),
        ],
    )
    def test_are_framed_by_status_and_fields(self, head: bytes, framing: Framing, keep_alive: bool) -> None:
        parsed = parse_response(head)
        assert (parsed.framing, parsed.keep_alive) == (framing, keep_alive)

    @pytest.mark.parametrize("fields", [[], [b"Content-Length: 9"], [b"Transfer-Encoding: chunked"]])
    def test_to_head_have_no_body(self, fields: list[bytes]) -> None:
        parsed = parse_response(response(b"HTTP/1.1 200 OK", *fields), to_head=True)
        assert parsed.framing == Framing(0, chunked=False)
        assert parsed.keep_alive

    def test_may_advertise_other_protocols(self) -> None:
        head = response(b"HTTP/1.1 200 OK", b"Connection: Upgrade", b"Upgrade: h2", b"Content-Length: 3")
        assert parse_response(head).framing == Framing(3, chunked=False)

    @given(st.integers(200, 599), FIELDS)
    def test_are_read_as_they_were_written(self, status: int, fields: list[tuple[str, str]]) -> None:
        head = parse_response(format_response(status, [("Content-Length", "0"), *fields]))
        assert head.status == status
        assert list(head.headers.items())[1:] == [(name, value.strip(" ")) for name, value in fields]

    @pytest.mark.parametrize(
        ("head", "error"),
        [
            (b"", ProtocolError),
            (GET, ProtocolError),
            (b"\r\n" + response(b"HTTP/1.1 200 OK"), ProtocolError),
            (response(b"HTTP/1.0 200 OK"), ProtocolError),
            (response(b"HTTP/1.1 99 OK"), ProtocolError),
            (response(b"HTTP/1.1 600 OK"), ProtocolError),
            (response(b"HTTP/1.1 2000 OK"), ProtocolError),
            (response(b"HTTP/1.1  200 OK"), ProtocolError),
            (response(b"HTTP/1.1 200 O\nK"), ProtocolError),
            (response(b"HTTP/1.1 101 Yes", b"Connection: Upgrade", b"Upgrade: h2c"), ProtocolError),
            (response(b"HTTP/1.1 101 Yes"), ProtocolError),
            (
                response(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Transfer-Encoding: chunked"),
                ProtocolError,
            ),
            (response(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Content-Length: 3"), ProtocolError),
            (response(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip"), ProtocolError),
            (response(b"HTTP/1.1 200 OK", b"Tdx-Epoch: 1", b"Tdx-Epoch: 2"), ProtocolError),
            (response(b"HTTP/1.1 200 OK", *[b"X: 1"] * (MAX_FIELDS + 1)), HeadTooLarge),
            (response(b"HTTP/1.1 200 OK", b"X: " + b"x" * MAX_HEAD), HeadTooLarge),
        ],
    )
    def test_that_are_not_what_a_receiver_sends_are_refused(self, head: bytes, error: type[TdxError]) -> None:
        with pytest.raises(error) as refusal:
            parse_response(head)
        assert type(refusal.value) is error


class TestWriting:
    def test_a_request(self) -> None:
        written = format_request("PUT", "/files/a", [("Host", "b"), ("X", "caf\xe9\t1")])
        assert written == b"PUT /files/a HTTP/1.1\r\nHost: b\r\nX: caf\xe9\t1\r\n\r\n"

    def test_a_response(self) -> None:
        assert format_response(202, []) == b"HTTP/1.1 202 Accepted\r\n\r\n"

    def test_a_status_without_a_reason_phrase(self) -> None:
        assert reason(299) == ""
        assert parse_response(format_response(299, [])).status == 299

    @pytest.mark.parametrize("character", ["\r", "\n", "\x00", "\x7f", "\u20ac"])
    def test_refuses_what_would_split_or_spoil_a_line(self, character: str) -> None:
        with pytest.raises(ValueError, match="not a field"):
            format_request("GET", "/", [("X", f"a{character}b")])
        with pytest.raises(ValueError, match="not a field"):
            format_response(200, [(f"X{character}", "a")])
        with pytest.raises(ValueError, match="not a request line"):
            format_request("GET", f"/{character}", [])
        with pytest.raises(ValueError, match="not a request line"):
            format_request(f"GET{character}", "/", [])

    @pytest.mark.parametrize("target", ["", "/a b"])
    def test_refuses_a_target_that_is_not_one_word(self, target: str) -> None:
        with pytest.raises(ValueError, match="not a request line"):
            format_request("GET", target, [])

    @pytest.mark.parametrize("status", [99, 600, -200])
    def test_refuses_a_status_that_is_none(self, status: int) -> None:
        with pytest.raises(ValueError, match="not a status"):
            format_response(status, [])
