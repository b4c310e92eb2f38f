from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import ProtocolError
from tdx.proto.chunked import (
    MAX_LINE,
    MAX_OVERHEAD,
    MAX_TRAILERS,
    ChunkedDecoder,
)

CHUNK_END = b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def encoded(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n" % len(chunk) + chunk + CHUNK_END for chunk in chunks) + LAST_CHUNK


def decode(*parts: bytes) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    return b"".join(bytes(view) for part in parts for view in decoder.feed(part)), decoder


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.sampled_from([b"X: 1\r\n", b"Digest: \xff\r\n", b"A:\r\n"]), max_size=2),
    st.binary(max_size=20),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_any_split_gives_the_same_payload(
    chunks: list[bytes], trailers: list[bytes], rest: bytes, cuts: list[int]
) -> None:
    stream = encoded(*chunks)[: -len(CHUNK_END)] + b"".join(trailers) + CHUNK_END + rest
    payload, decoder = decode(*split(stream, cuts))
    assert payload == b"".join(chunks)
    assert decoder.finished
    assert decoder.leftover == rest


def test_byte_by_byte_too() -> None:
    stream = b"5;name=value\r\nhello\r\n0006 ; x\r\n world\r\n00\r\nTrailer: 1\r\n\r\nGET"
    payload, decoder = decode(*(bytes([byte]) for byte in stream))
    assert payload == b"hello world"
    assert decoder.leftover == b"GET"


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), st.data())
def test_a_body_that_breaks_off_is_not_finished(chunks: list[bytes], data: st.DataObject) -> None:
    stream = encoded(*chunks)
    payload, decoder = decode(stream[: data.draw(st.integers(0, len(stream) - 1))])
    assert not decoder.finished
    assert decoder.leftover == b""
    assert b"".join(chunks).startswith(payload)


def test_the_payload_is_views_into_what_was_fed() -> None:
    data = bytearray(encoded(b"hello", b"world"))
    views = ChunkedDecoder().feed(memoryview(data))
    data[data.index(b"hello")] = ord("J")
    assert [bytes(view) for view in views] == [b"Jello", b"world"]


def test_an_empty_feed_has_no_payload() -> None:
    assert ChunkedDecoder().feed(b"") == []


def test_a_chunk_may_be_as_large_as_a_file_can_be() -> None:
    payload, decoder = decode(b"7FFFFFFFFFFFFFFF\r\nabc")
    assert payload == b"abc"
    assert not decoder.finished


@pytest.mark.parametrize(
    "stream",
    [
        b"\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"\n",
        b"x\r\n",
        b" 5\r\n",
        b"5 \r\n",
        b"+5\r\n",
        b"-5\r\n",
        b"0x5\r\n",
        b"5_0\r\n",
        b"5,5\r\n",
        b"5\r\r\n",
        b"5\x00\r\n",
        b"5;a\x00b\r\n",
        b"5;a\rb\r\n",
        b"5;a\nb\r\n",
        b"5;a\x0bb\r\n",
        b"5 a\r\n",
        b";a\r\n",
        b"\xd9\xa5\r\n",
        b"8000000000000000\r\n",
        b"FFFFFFFFFFFFFFFF\r\n",
        b"10000000000000005\r\n",
        b"00000000000000005\r\n",
        b"3\r\nhello\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\n\n",
        b"5" * (MAX_LINE + 1),
        b"5;" + b"a" * MAX_LINE + b"\r\n",
        b"0\r\nX: " + b"a" * MAX_LINE + b"\r\n",
    ],
)
def test_a_hostile_line_is_refused_however_it_arrives(stream: bytes) -> None:
    for parts in ([stream], [bytes([byte]) for byte in stream]):
        with pytest.raises(ProtocolError):
            decode(*parts)


def test_a_line_of_exactly_the_limit_is_taken() -> None:
    line = b"5;" + b"a" * (MAX_LINE - 4) + b"\r\n"
    assert len(line) == MAX_LINE
    assert decode(line + b"hello\r\n" + LAST_CHUNK)[0] == b"hello"


def test_extensions_may_not_outweigh_the_payload_for_long() -> None:
    chunk = b"1;" + b"a" * 1000 + b"\r\nx\r\n"
    taken = MAX_OVERHEAD // 1000 - 1
    assert decode(chunk * taken)[0] == b"x" * taken
    with pytest.raises(ProtocolError, match="more extensions than payload"):
        decode(chunk * (taken + 10))


def test_extensions_that_sign_large_chunks_are_no_burden() -> None:
    chunk = b"400;chunk-signature=" + b"a" * 64 + b"\r\n" + bytes(1024) + b"\r\n"
    assert len(decode(chunk * 1000)[0]) == 1024 * 1000


def test_small_chunks_without_extensions_are_no_burden() -> None:
    assert decode(b"1\r\nx\r\n" * 20_000)[0] == b"x" * 20_000


def test_trailers_are_limited() -> None:
    line = b"X: " + b"a" * 1000 + b"\r\n"
    taken = MAX_TRAILERS // len(line)
    assert decode(b"0\r\n" + line * taken + CHUNK_END)[1].finished
    with pytest.raises(ProtocolError, match="trailers are too long"):
        decode(b"0\r\n" + line * (taken + 1))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_chunks_or_a_protocol_error(data: bytes) -> None:
    try:
        payload, decoder = decode(data)
    except ProtocolError:
        return
    assert len(payload) + len(decoder.leftover) <= len(data)
