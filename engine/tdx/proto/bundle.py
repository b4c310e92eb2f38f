"""Bundles: many small files in the body of one ``POST /files``.

A body is entries and then :data:`END`. An entry is the length of its head (an unsigned
32-bit big-endian integer from 1 to :data:`MAX_HEAD`), the head (a JSON object in UTF-8),
and the content, as many bytes as the head says. A body that ends without :data:`END` has
broken off. ``docs/http.md`` specifies the members of a head.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Final, cast

from tdx.errors import ProtocolError, TooLarge
from tdx.integrity import MIB, MIN_EXTENT
from tdx.proto.fields import parse_mode

MEDIA_TYPE: Final = "application/vnd.tdx.bundle"

MAX_ENTRIES: Final = 4096
"""Most entries of one bundle."""

MAX_CONTENT: Final = 64 * MIB
"""Most bytes of content in one bundle, heads apart."""

MAX_ENTRY: Final = MIN_EXTENT
"""Most bytes of one entry's content: a file of one extent."""

MAX_HEAD: Final = 65535
"""Most bytes of a head."""

MAX_KEY: Final = 128
"""Most characters of an entry's key, all of them printable ASCII."""

LENGTH_SIZE: Final = 4
"""Bytes of the length before a head."""

END: Final = bytes(LENGTH_SIZE)
"""The mark after the last entry: a head of no length."""

_LENGTH: Final = struct.Struct(">I")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_KEY: Final = re.compile(rf"[!-~]{{1,{MAX_KEY}}}")
_DECODE: Final = json.JSONDecoder().decode
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_MOST: Final = 2**63


@dataclass(slots=True)
class Entry:
    """One file of a bundle. ``digest`` is the XXH3-128 of its content (16 bytes), ``key`` the
    sender's own random id of it, ``mtime_ns`` in nanoseconds since the Unix epoch, ``mode`` its
    permission bits. ``name`` is not yet a checked one (:func:`tdx.proto.names.check_name`)."""

    name: str
    size: int
    digest: bytes
    key: str
    mtime_ns: int | None = None
    mode: int | None = None


def encode_head(entry: Entry) -> bytes:
    """The length and the head, to be followed by ``entry.size`` bytes. ProtocolError for an entry
    that no receiver would take."""
    members: dict[str, object] = {
        "name": entry.name,
        "size": entry.size,
        "digest": entry.digest.hex(),
        "key": entry.key,
    }
    if entry.mtime_ns is not None:
        members["mtime"] = entry.mtime_ns
    if entry.mode is not None:
        members["mode"] = format(entry.mode, "o")
    try:
        raw = _ENCODER.encode(members).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ProtocolError(f"a name that is not valid Unicode: {entry.name!r:.80}") from error
    if len(raw) > MAX_HEAD:
        raise ProtocolError(f"the head of an entry has {len(raw)} bytes, more than {MAX_HEAD}")
    return _LENGTH.pack(len(raw)) + raw


def parse_length(raw: bytes | bytearray | memoryview, at: int = 0) -> int:
    """The length of the head that follows these four bytes; 0 is :data:`END`. ProtocolError for
    one that no head has."""
    length: int = _LENGTH.unpack_from(raw, at)[0]
    if length > MAX_HEAD:
        raise ProtocolError(f"the head of an entry has {length} bytes, more than {MAX_HEAD}")
    return length


def parse_head(raw: bytes | bytearray | memoryview) -> Entry:
    """The head of one entry, without its length. Members that nobody here knows are ignored.

    ProtocolError for anything malformed; TooLarge, which is one, for a content of more than
    :data:`MAX_ENTRY` bytes.
    """
    try:
        found: object = _DECODE(str(raw, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the head of an entry is not JSON in UTF-8") from error
    if not isinstance(found, dict):
        raise ProtocolError("the head of an entry is not a JSON object")
    get = cast("dict[str, object]", found).get
    name, size, digest, key = get("name"), get("size"), get("digest"), get("key")
    if type(name) is not str or not name or not (name.isascii() or _is_unicode(name)):
        raise ProtocolError("the head of an entry has no name, or one that is not valid Unicode")
    if type(size) is not int or size < 0:
        raise ProtocolError(f"the entry {name!r:.80} has no size")
    if size > MAX_ENTRY:
        raise TooLarge(f"the entry {name!r:.80} has {size} bytes where {MAX_ENTRY} are the most in a bundle")
    if type(digest) is not str or _DIGEST.fullmatch(digest) is None:
        raise ProtocolError(f"the entry {name!r:.80} has no digest of 32 hexadecimal digits")
    if type(key) is not str or _KEY.fullmatch(key) is None:
        raise ProtocolError(f"the entry {name!r:.80} has no key of 1 to {MAX_KEY} printable characters")
    mtime, mode = get("mtime"), get("mode")
    if mtime is not None and (type(mtime) is not int or not -_MOST <= mtime < _MOST):
        raise ProtocolError(f"the entry {name!r:.80} has an mtime that is no count of nanoseconds")
    if mode is not None:
        if type(mode) is not str:
            raise ProtocolError(f"the entry {name!r:.80} has a mode that is no text")
        mode = parse_mode(mode)
    return Entry(name, size, bytes.fromhex(digest), key, mtime, mode)


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which JSON can escape and UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
