"""The values of single fields, and names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

from fuzz.target import Draws, Target, is_for_people
from tdx.errors import BadName, ProtocolError, RangeNotSatisfiable
from tdx.model import Conflict, Stages
from tdx.proto import fields
from tdx.proto.names import check_name, decode_name, encode_name, numbered
from tdx.proto.stages import MOST_SECONDS, format_stages, parse_stages

Check = Callable[[str], None]


def _content_range(text: str) -> None:
    found = fields.parse_content_range(text)
    assert 0 <= found.span.start < found.span.end <= fields.MAX_INTEGER
    assert found.length is None or found.span.end <= found.length <= fields.MAX_INTEGER
    assert fields.parse_content_range(fields.format_content_range(found)) == found


def _integer(text: str) -> None:
    found = fields.parse_integer(text)
    assert 0 <= found <= fields.MAX_INTEGER
    assert fields.parse_integer(str(found)) == found


def _signed(text: str) -> None:
    found = fields.parse_signed(text)
    assert -(1 << 63) <= found < 1 << 63
    assert fields.parse_signed(str(found)) == found


def _boolean(text: str) -> None:
    assert fields.format_boolean(fields.parse_boolean(text)) == text


def _spans(text: str) -> None:
    found = fields.parse_spans(text)
    assert len(found) <= fields.MAX_SPANS
    assert all(before.end <= after.start for before, after in pairwise(found))
    assert all(0 <= span.start < span.end <= fields.MAX_INTEGER for span in found)
    assert fields.parse_spans(fields.format_spans(found)) == found


def _host(text: str) -> None:
    host, port = fields.parse_host(text)
    assert host == host.lower()
    assert re.search(r"[\x00-\x20/@#?\\]", host) is None
    assert port is None or 0 < port < 65536
    written = f"[{host}]" if ":" in host else host
    assert fields.parse_host(written if port is None else f"{written}:{port}") == (host, port)


def _digests(text: str) -> None:
    found = fields.parse_digests(text)
    assert all(len(found[key]) == size for key, size in fields.DIGEST_SIZES.items() if key in found)
    written = ", ".join(fields.format_digest(key, digest) for key, digest in found.items())
    assert fields.parse_digests(written) == found


def _seal(text: str) -> None:
    key = fields.parse_seal(text)
    assert len(key) == fields.SEAL_KEY
    assert fields.parse_seal(fields.format_seal(key)) == key


def _mode(text: str) -> None:
    found = fields.parse_mode(text)
    assert 0 <= found <= 0o777
    assert fields.parse_mode(f"{found:o}") == found


def _conflict(text: str) -> None:
    assert fields.parse_conflict(text) is Conflict(text)


def _stages(text: str) -> None:
    found = parse_stages(text)
    if found is not None:
        assert all(0 <= seconds <= MOST_SECONDS for seconds in found.as_dict().values())
        assert (parse_stages(format_stages(found)) or Stages()) == found


PARSERS: Final[Mapping[str, Check]] = {
    "content_range": _content_range,
    "integer": _integer,
    "signed": _signed,
    "boolean": _boolean,
    "spans": _spans,
    "host": _host,
    "digests": _digests,
    "seal": _seal,
    "mode": _mode,
    "conflict": _conflict,
    "stages": _stages,
}


def field_values(data: bytes) -> None:
    """Each value that a parser takes is within its bounds and survives a round trip. Every parser gets
    every input."""
    text = data.decode("latin-1")
    for check in PARSERS.values():
        try:
            check(text)
        except (ProtocolError, RangeNotSatisfiable) as error:
            is_for_people(error)


def _values() -> list[bytes]:
    return [
        b"bytes 0-499/1234",
        b"bytes 4194304-8388607/*",
        b"9223372036854775807",
        b"-9223372036854775808",
        b"?1",
        b"0-4194303, 8388608-9223372036854775806",
        b"[fd7a:115c:a1e0::1]:8390",
        b"[::ffff:127.0.0.1]",
        b"laptop.tail1234.ts.net.:8390",
        b"sha-256=:" + b"A" * 43 + b"=:, xxh3-128=:AAAAAAAAAAAAAAAAAAAAAA==:, md5=:AA==:",
        fields.format_seal(bytes(32)).encode(),
        b"644",
        b"overwrite",
        b"read=0.31, hash=0.2;p=1, send=1000000000.0, rest=1, limit=-1",
    ]


# --- names --------------------------------------------------------------------------------


def _is_right(name: str) -> None:
    """The rules of a name, told once more. AssertionError."""
    raw = name.encode("utf-8")
    assert 0 < len(raw) <= 4096
    root = "/inbox"
    assert os.path.normpath(f"{root}/{name}") == f"{root}/{name}", "it leads elsewhere, or has two spellings"
    for component in name.split("/"):
        assert 0 < len(component.encode()) <= 255
        assert component.casefold() != ".tdx"
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name)


def escaped_name(data: bytes) -> None:
    """A name that a request's path carries stays in the folder, and has one spelling only."""
    try:
        name = decode_name(data.decode("latin-1"))
    except BadName:
        return
    _is_right(name)
    assert decode_name(encode_name(name)) == name


def name(data: bytes) -> None:
    """A name that is accepted stays in the folder, travels unchanged, and so does each of its numbered
    ones, which all differ."""
    draws = Draws(data)
    number = draws.number(2)
    try:
        found = check_name(draws.rest().decode("utf-8", "surrogateescape"))
    except BadName:
        return
    _is_right(found)
    assert decode_name(encode_name(found)) == found
    last = found.rpartition("/")[2]
    others = [numbered(last, each) for each in (number, number + 1, 10 * number + 10)]
    assert len({last, *others}) == len(others) + 1
    for other in others:
        _is_right(other)
        check_name(other)


def _names() -> list[str]:
    return [
        "a",
        "folder/inner folder/file.tar.gz",
        "ü" * 127 + "x",
        "a" * 255,
        "x" * 190 + "." + "y" * 63,
        "..." + "🐢" * 60,
        ".hidden",
        " leading and trailing ",
        "100% sure.txt",
    ]


TARGETS = {
    "field_values": Target(
        field_values,
        _values,
        [b"bytes ", b", ", *b"- /* =: : 18446744073709551616 [:: ::ffff: ;key=: . + _".split()],
    ),
    "escaped_name": Target(
        escaped_name,
        lambda: [encode_name(each).encode() for each in _names()],
        b"%2e .. / %2F %00 %C2%85 .tdx .T%44X % // %F0%9F%90%A2 ?".split(),
    ),
    "name": Target(
        name,
        lambda: [b"\0\1" + each.encode() for each in _names()],
        [b"\0", b"\xed\xa0\x80", b"\xc2\x85", *b".. / . .tdx .TDX .tar.gz".split()],
        longest=5000,
    ),
}
