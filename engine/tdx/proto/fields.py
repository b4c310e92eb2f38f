"""The values of single fields: parsed strictly, written canonically.

Every ``parse_*`` takes what :meth:`tdx.proto.head.Headers.get` returned and raises
ProtocolError for anything malformed.
"""

from __future__ import annotations

import binascii
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tdx.errors import ProtocolError, RangeNotSatisfiable
from tdx.model import Conflict, Span

MAX_INTEGER: Final = 2**63 - 1

MAX_SPANS: Final = 2048

DIGEST_SIZES: Final = {"sha-256": 32, "sha-512": 64, "xxh3-128": 16}
"""Bytes of the digests that a receiver can check, by their RFC 9530 key."""

SEAL: Final = "aes-256-gcm-stream-128k"
"""The one way to seal a body beneath TLS (:mod:`tdx.data.seal`), as both ends call it."""

SEAL_KEY: Final = 32
"""Bytes of its key."""

SEALED_AT_MOST: Final = 1 << 40
"""Bytes under one key: 2**36 blocks, by which AES-GCM is told from randomness with a chance of 2**-57, the
margin that TLS 1.3 keeps too (RFC 8446 section 5.5)."""

_INTEGER = re.compile(r"[0-9]{1,19}")
_SIGNED = re.compile(r"-?[0-9]{1,19}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_SPAN = re.compile(r"[ \t]*([0-9]{1,19})-([0-9]{1,19})[ \t]*")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9A-Za-z._-]{1,254}))(?::([0-9]{0,5}))?")
_DIGEST = re.compile(r"[ \t]*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):[ \t]*")
_SEAL = re.compile(r"([A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*); *key=:([A-Za-z0-9+/]*={0,2}):")
_MODE = re.compile(r"[0-7]{1,7}")


@dataclass(frozen=True, slots=True)
class ContentRange:
    """``bytes a-b/N`` (RFC 9110 14.4); ``length`` is None for ``bytes a-b/*``."""

    span: Span
    length: int | None


def parse_content_range(value: str) -> ContentRange:
    """RangeNotSatisfiable when the range ends beyond the length it names."""
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None:
        raise ProtocolError(f"not a Content-Range: {value!r:.80} (it looks like bytes 0-499/1234)")
    span = _inclusive(match[1], match[2])
    if match[3] == "*":
        return ContentRange(span, None)
    length = parse_integer(match[3])
    if span.end > length:
        raise RangeNotSatisfiable(f"the range {value} ends beyond the length")
    return ContentRange(span, length)


def format_content_range(content_range: ContentRange) -> str:
    span = content_range.span
    length = "*" if content_range.length is None else content_range.length
    return f"bytes {span.start}-{span.end - 1}/{length}"


def parse_boolean(value: str) -> bool:
    """A structured-field boolean: ``?0`` or ``?1`` (RFC 9651 3.3.6)."""
    if value not in ("?0", "?1"):
        raise ProtocolError(f"not a boolean: {value!r:.80} (it is ?0 or ?1)")
    return value == "?1"


def format_boolean(value: bool) -> str:
    return "?1" if value else "?0"


def parse_integer(value: str, *, maximum: int = MAX_INTEGER) -> int:
    """A non-negative decimal integer of at most ``maximum``."""
    if _INTEGER.fullmatch(value) is None or int(value) > maximum:
        raise ProtocolError(f"not an integer from 0 to {maximum}: {value!r:.80}")
    return int(value)


def parse_signed(value: str) -> int:
    """A decimal integer from -2**63 to 2**63 - 1."""
    match = _SIGNED.fullmatch(value)
    if match is None or not -MAX_INTEGER - 1 <= int(value) <= MAX_INTEGER:
        raise ProtocolError(f"not an integer from {-MAX_INTEGER - 1} to {MAX_INTEGER}: {value!r:.80}")
    return int(value)


def parse_spans(value: str, *, limit: int = MAX_SPANS) -> tuple[Span, ...]:
    """``a-b, c-d`` with inclusive ends, ascending and disjoint; an empty value is no span."""
    if not value:
        return ()
    if value.count(",") >= limit:
        raise ProtocolError(f"more than {limit} ranges in one field")
    spans: list[Span] = []
    for part in value.split(","):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise ProtocolError(f"not a byte range: {part!r:.80}")
        span = _inclusive(match[1], match[2])
        if spans and span.start < spans[-1].end:
            raise ProtocolError(f"byte ranges that overlap or go backwards at {part.strip()!r}")
        spans.append(span)
    return tuple(spans)


def format_spans(spans: Iterable[Span]) -> str:
    return ", ".join(f"{span.start}-{span.end - 1}" for span in spans)


def _inclusive(first: str, last: str) -> Span:
    start, end = int(first), int(last) + 1
    if not start < end <= MAX_INTEGER:
        raise ProtocolError(f"not a byte range: {first}-{last}")
    return Span(start, end)


def parse_host(value: str) -> tuple[str, int | None]:
    """The host of a Host field, in lower case without a trailing dot, and its port.

    IPv6 addresses come without their brackets, compressed as sockets write them, and
    IPv4-mapped ones as IPv4. A port that is absent or empty is None.
    """
    match = _HOST.fullmatch(value)
    if match is None:
        raise ProtocolError(f"not a host: {value!r:.80}")
    address, name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        raise ProtocolError(f"not a port: {digits}")
    if address is not None:
        try:
            parsed = ipaddress.IPv6Address(address)
        except ValueError as error:
            raise ProtocolError(f"not an IPv6 address: {address!r:.80}") from error
        return str(parsed.ipv4_mapped or parsed), port
    host = name.lower().removesuffix(".")
    if "" in host.split("."):
        raise ProtocolError(f"not a host: {value!r:.80}")
    return host, port


def parse_digests(value: str) -> dict[str, bytes]:
    """The RFC 9530 dictionary of Content-Digest and Repr-Digest.

    Algorithms that nobody here knows are returned too. A key that is repeated is
    refused rather than overwritten: two digests of one body cannot both be meant.
    """
    digests: dict[str, bytes] = {}
    for part in value.split(","):
        match = _DIGEST.fullmatch(part)
        if match is None:
            raise ProtocolError(f"not a digest: {part!r:.80} (it looks like sha-256=:BASE64:)")
        algorithm, text = match[1], match[2].rstrip("=")
        try:
            digest = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
        except binascii.Error as error:
            raise ProtocolError(f"not base64 in the digest {algorithm}") from error
        if algorithm in digests or len(digest) != DIGEST_SIZES.get(algorithm, len(digest)):
            raise ProtocolError(f"the digest {algorithm} is repeated or has the wrong size")
        digests[algorithm] = digest
    return digests


def format_digest(algorithm: str, digest: bytes) -> str:
    return f"{algorithm}=:{binascii.b2a_base64(digest, newline=False).decode('ascii')}:"


def parse_seal(value: str) -> bytes:
    """The key of a sealed body: ``NAME;key=:BASE64:``, an item with a byte sequence (RFC 9651 3.3.5). No
    error says what stood there: it may be most of a key."""
    match = _SEAL.fullmatch(value)
    if match is None:
        raise ProtocolError(f"not a Tdx-Seal (it looks like {SEAL};key=:BASE64:)")
    if match[1] != SEAL:
        raise ProtocolError(f"no way to seal a body is known by that name; there is {SEAL}")
    try:
        key = binascii.a2b_base64(match[2], strict_mode=True)
    except binascii.Error:
        raise ProtocolError("the key of Tdx-Seal is not base64") from None
    if len(key) != SEAL_KEY:
        raise ProtocolError(f"the key of Tdx-Seal has {len(key)} bytes, not {SEAL_KEY}")
    return key


def format_seal(key: bytes) -> str:
    return f"{SEAL};key=:{binascii.b2a_base64(key, newline=False).decode('ascii')}:"


def parse_mode(value: str) -> int:
    """Octal permission bits; file type, setuid, setgid and sticky bits are dropped."""
    if _MODE.fullmatch(value) is None:
        raise ProtocolError(f"not an octal mode: {value!r:.80}")
    return int(value, 8) & 0o777


def parse_conflict(value: str) -> Conflict:
    try:
        return Conflict(value)
    except ValueError as error:
        choices = ", ".join(Conflict)
        raise ProtocolError(f"not a conflict mode: {value!r:.80} (one of {choices})") from error
