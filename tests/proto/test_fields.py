from __future__ import annotations

import base64
import hashlib
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdx.errors import ProtocolError, RangeNotSatisfiable
from tdx.model import Conflict, Span
from tdx.proto.fields import (
    MAX_SPANS,
    SEAL,
    SEAL_KEY,
    ContentRange,
    format_boolean,
    format_content_range,
    format_digest,
    format_seal,
    format_spans,
    parse_boolean,
    parse_conflict,
    parse_content_range,
    parse_digests,
    parse_host,
    parse_integer,
    parse_mode,
    parse_seal,
    parse_signed,
    parse_spans,
)

LARGEST = 2**63 - 1
offsets = st.integers(0, LARGEST - 1)


class TestContentRange:
    @given(offsets, offsets, st.one_of(st.none(), st.integers(0, LARGEST)))
    def test_is_read_as_it_was_written(self, a: int, b: int, length: int | None) -> None:
        span = Span(min(a, b), max(a, b) + 1)
        if length is not None:
            length = max(length, span.end)
        content_range = ContentRange(span, length)
        assert parse_content_range(format_content_range(content_range)) == content_range

    def test_has_an_inclusive_end_on_the_wire_and_an_exclusive_one_here(self) -> None:
        assert parse_content_range("bytes 1000000-2999999/3000000") == ContentRange(
            Span(1_000_000, 3_000_000), 3_000_000
        )
        assert parse_content_range("Bytes 5-5/*") == ContentRange(Span(5, 6), None)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "bytes",
            "bytes */100",
            "bytes 5-/100",
            "bytes -5/100",
            "bytes 5-4/100",
            "bytes 0-4",
            "bytes 0-4/",
            "bytes=0-4/100",
            "bytes  0-4/100",
            "bytes 0-4 /100",
            "bytes +0-4/100",
            "bytes 0-4/100,5-9/100",
            "bytes 0-4/100\n",
            "bytes ٠-٤/100",
            "items 0-4/100",
            "bytes 0-9223372036854775807/*",
            "bytes 0-4/9223372036854775808",
            "bytes 0-4/99999999999999999999",
        ],
    )
    def test_that_is_malformed_is_a_protocol_error(self, value: str) -> None:
        with pytest.raises(ProtocolError) as refusal:
            parse_content_range(value)
        assert refusal.value.status == 400

    @pytest.mark.parametrize("value", ["bytes 0-4/4", "bytes 0-0/0", "bytes 100-200/150"])
    def test_beyond_its_length_is_not_satisfiable(self, value: str) -> None:
        with pytest.raises(RangeNotSatisfiable):
            parse_content_range(value)


class TestBooleans:
    @pytest.mark.parametrize("value", [True, False])
    def test_are_read_as_they_were_written(self, value: bool) -> None:
        assert parse_boolean(format_boolean(value)) is value

    @pytest.mark.parametrize("value", ["", "1", "true", "?", "?2", "?10", " ?1", "?1;a"])
    def test_have_two_spellings(self, value: str) -> None:
        with pytest.raises(ProtocolError, match="boolean"):
            parse_boolean(value)


class TestIntegers:
    @given(st.integers(0, LARGEST))
    def test_are_read_as_they_were_written(self, value: int) -> None:
        assert parse_integer(str(value)) == value

    @pytest.mark.parametrize(
        "value",
        ["", "-1", "+1", " 1", "1 ", "1.0", "0x1", "1_0", "1e3", "١", "²", str(LARGEST + 1), "9" * 40],
    )
    def test_are_plain_digits_that_fit_in_63_bits(self, value: str) -> None:
        with pytest.raises(ProtocolError, match="not an integer") as refusal:
            parse_integer(value)
        assert len(refusal.value.message) < 200

    def test_have_the_maximum_that_the_caller_says(self) -> None:
        assert parse_integer("8", maximum=8) == 8
        with pytest.raises(ProtocolError, match="from 0 to 8"):
            parse_integer("9", maximum=8)


class TestSpans:
    @given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)), max_size=50))
    def test_are_read_as_they_were_written(self, steps: list[tuple[int, int]]) -> None:
        ends = accumulate(gap + size for gap, size in steps)
        spans = tuple(Span(end - size, end) for end, (_, size) in zip(ends, steps, strict=True))
        assert parse_spans(format_spans(spans)) == spans

    def test_have_inclusive_ends_like_byte_ranges(self) -> None:
        assert parse_spans("0-0,  5-9 ,10-11") == (Span(0, 1), Span(5, 10), Span(10, 12))

    @pytest.mark.parametrize(
        "value",
        [
            " ",
            ",",
            "0-1,",
            "0-1,,2-3",
            "0",
            "0-",
            "-1",
            "1-0",
            "0-1;2-3",
            "0-5, 5-9",
            "5-9, 0-1",
            "0-1, 0-1",
            "a-b",
            "0-9223372036854775807",
            "0-99999999999999999999",
        ],
    )
    def test_that_are_malformed_overlap_or_go_backwards_are_refused(self, value: str) -> None:
        with pytest.raises(ProtocolError, match="byte range"):
            parse_spans(value)

    def test_are_limited_in_number(self) -> None:
        most = ",".join(f"{2 * index}-{2 * index}" for index in range(MAX_SPANS))
        assert len(parse_spans(most)) == MAX_SPANS
        with pytest.raises(ProtocolError, match="more than 2048"):
            parse_spans(most + ",9999-9999")
        with pytest.raises(ProtocolError, match="more than 1 "):
            parse_spans("0-1,2-3", limit=1)


class TestHosts:
    @pytest.mark.parametrize(
        ("value", "host", "port"),
        [
            ("localhost", "localhost", None),
            ("LocalHost.:8390", "localhost", 8390),
            ("b.tailnet.ts.net:1", "b.tailnet.ts.net", 1),
            ("my_box", "my_box", None),
            ("127.0.0.1:65535", "127.0.0.1", 65535),
            ("a:", "a", None),
            ("[::1]", "::1", None),
            ("[::1]:8390", "::1", 8390),
            ("[FE80:0:0:0:0:0:0:1]", "fe80::1", None),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1", 80),
            ("[::FFFF:7f00:1]", "127.0.0.1", None),
        ],
    )
    def test_are_read_as_sockets_write_them(self, value: str, host: str, port: int | None) -> None:
        assert parse_host(value) == (host, port)

    @pytest.mark.parametrize(
        "value",
        [
            "",
            ":80",
            ".",
            "..",
            "a..",
            ".a",
            "a..b",
            "a b",
            " a",
            "a/b",
            "user@a",
            "a:b",
            "a:0",
            "a:65536",
            "a:123456",
            "a:-1",
            "a:80:80",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[::1]80",
            "[1.2.3.4]",
            "[fe80::1%eth0]",
            "[:::1]",
            "[v1.a]",
            "a,b",
            "b\xfccher",
            "a:٣",
            "[localhost]",
            "a" * 255,
        ],
    )
    def test_that_name_no_machine_are_refused(self, value: str) -> None:
        with pytest.raises(ProtocolError):
            parse_host(value)


class TestDigests:
    @given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True), st.binary(max_size=70)))
    def test_are_read_as_they_were_written(self, digests: dict[str, bytes]) -> None:
        digests["x"] = b""
        value = ", ".join(format_digest(algorithm, digest) for algorithm, digest in digests.items())
        assert parse_digests(value) == digests

    def test_of_the_known_algorithms_have_their_size(self) -> None:
        digest = hashlib.sha256(b"hello").digest()
        value = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"
        assert parse_digests(value) == {"sha-256": digest}
        assert format_digest("sha-256", digest) == value
        for algorithm in ("sha-256", "sha-512", "xxh3-128"):
            with pytest.raises(ProtocolError, match="wrong size"):
                parse_digests(format_digest(algorithm, bytes(15)))

    def test_may_lack_the_padding(self) -> None:
        assert parse_digests("x=:YQ:, y=:YWI=:") == {"x": b"a", "y": b"ab"}

    @pytest.mark.parametrize(
        "value",
        [
            "",
            ",",
            "sha-256",
            "sha-256=",
            "sha-256=YQ==",
            "sha-256=:YQ==",
            "sha-256=YQ==:",
            "x=:Y:",
            "x=:YQ===:",
            "x=:=:YQ:",
            "x=:Y Q:",
            "x=:Y-Q_:",
            "X=:YQ==:",
            "x =:YQ==:",
            "x=:YQ==:;a=1",
            "x=:YQ==:,",
            "x=:YQ==: y=:YQ==:",
            "x=:YQ==:, x=:YQ==:",
        ],
    )
    def test_that_are_malformed_or_repeated_are_refused(self, value: str) -> None:
        with pytest.raises(ProtocolError):
            parse_digests(value)

    @given(st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode()))
    def test_any_base64_is_a_digest_of_some_algorithm(self, text: str) -> None:
        assert parse_digests(f"x=:{text}:")["x"] == base64.b64decode(text)


@pytest.mark.parametrize(
    ("value", "mode"), [("644", 0o644), ("0755", 0o755), ("0", 0), ("4755", 0o755), ("100600", 0o600)]
)
def test_a_mode_is_octal_and_keeps_permission_bits_only(value: str, mode: int) -> None:
    assert parse_mode(value) == mode


@pytest.mark.parametrize("value", ["", "8", "0o644", "-644", "rw-r--r--", "6 4 4", "7" * 8])
def test_a_mode_that_is_not_octal_is_refused(value: str) -> None:
    with pytest.raises(ProtocolError, match="octal"):
        parse_mode(value)


@pytest.mark.parametrize("conflict", Conflict)
def test_a_conflict_mode_is_read_as_it_was_written(conflict: Conflict) -> None:
    assert parse_conflict(str(conflict)) is conflict


@pytest.mark.parametrize("value", ["", "Rename", "replace", " skip"])
def test_another_conflict_mode_is_refused_with_the_choices(value: str) -> None:
    with pytest.raises(ProtocolError, match="rename, overwrite, skip, error"):
        parse_conflict(value)


@pytest.mark.parametrize("value", [0, -1, 1_600_000_000_000_000_000, -(2**63), 2**63 - 1])
def test_a_signed_integer_is_what_it_says(value: int) -> None:
    assert parse_signed(str(value)) == value


@pytest.mark.parametrize("value", ["", "-", "+1", "--1", "1.0", " 1", "-9223372036854775809", str(2**63)])
def test_what_is_no_signed_integer_of_64_bits_is_refused(value: str) -> None:
    with pytest.raises(ProtocolError):
        parse_signed(value)


@given(st.binary(min_size=SEAL_KEY, max_size=SEAL_KEY))
def test_a_seal_is_read_as_it_was_written(key: bytes) -> None:
    assert parse_seal(format_seal(key)) == key


def test_a_seal_is_an_item_with_a_byte_sequence() -> None:
    written = base64.b64encode(bytes(range(32))).decode()
    assert format_seal(bytes(range(32))) == f"aes-256-gcm-stream-128k;key=:{written}:"
    assert parse_seal(f"aes-256-gcm-stream-128k;  key=:{written}:") == bytes(range(32))


@pytest.mark.parametrize(
    "value",
    [
        "",
        SEAL,
        f"{SEAL};key=secret",
        f"{SEAL};key=:secret:",
        f"{SEAL};key=:c2VjcmV0:",
        f"{SEAL};key=:{'A' * 43}=:;also=:c2VjcmV0:",
        f"{SEAL};KEY=:{'A' * 43}=:",
        f'"{SEAL}";key=:{"A" * 43}=:',
        f"aes-256-gcm;key=:{'A' * 43}=:",
        f"{SEAL};key=:{'A' * 43}=:, {SEAL};key=:{'A' * 43}=:",
    ],
)
def test_a_seal_that_is_none_is_refused_and_never_repeated(value: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_seal(value)
    for secret in ("secret", "c2VjcmV0", "AAAA"):
        assert secret not in caught.value.message
