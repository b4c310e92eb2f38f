"""What the fields of Resumable Uploads for HTTP say (draft-ietf-httpbis-resumable-upload), in each version.

While it is a draft, a client states by an *interop version* which of its texts it speaks: 3 is draft 01, 4 is
02, 5 is 03, 6 is 04 and 05, 7 is 06 to 08, 8 is 09 to 12; 9 is taken for 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tdx.errors import ProtocolError
from tdx.proto.fields import format_boolean, parse_boolean, parse_integer

MEDIA_TYPE: Final = "application/partial-upload"
VERSION_FIELD: Final = "Upload-Draft-Interop-Version"
VERSIONS: Final = range(3, 10)

_INVERTED: Final = range(3, 4)
_APPENDED_IS_CREATED: Final = range(3, 6)
_UNTYPED: Final = range(3, 6)
_ENDS_AT_LENGTH: Final = range(3, 7)

Get = Callable[[str], str | None]
"""The value of a field that may be there once, as :meth:`tdx.proto.head.Headers.get` gives it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one request speaks. ``version`` is None where it states none, or one that nobody speaks here: it
    is then read as the newest text has it, and never sent a 104."""

    version: int | None

    @property
    def needs_type(self) -> bool:
        """Whether an append says that it is one by its media type."""
        return self.version not in _UNTYPED

    @property
    def ends_at_length(self) -> bool:
        """Whether an upload has ended once all of its length is there, though no request said that it was the
        last: clients of these versions take it for done, and some never send another."""
        return self.version in _ENDS_AT_LENGTH

    @property
    def appended(self) -> int:
        """The status that answers an append which does not end the upload."""
        return 201 if self.version in _APPENDED_IS_CREATED else 204

    def complete(self, get: Get) -> bool | None:
        """Whether the body is the whole of the file, or the rest of it; None where nothing is said."""
        if self.version in _INVERTED:
            incomplete = get("upload-incomplete")
            return incomplete is None or not parse_boolean(item(incomplete))
        value = get("upload-complete")
        return None if value is None else parse_boolean(item(value))

    def completeness(self, done: bool) -> tuple[str, str]:
        """The field that says whether an upload is complete."""
        if self.version in _INVERTED:
            return "Upload-Incomplete", format_boolean(not done)
        return "Upload-Complete", format_boolean(done)


def dialect_of(stated: str | None) -> Dialect:
    """The dialect of a request with this :data:`VERSION_FIELD`."""
    try:
        version = None if stated is None else parse_integer(item(stated))
    except ProtocolError:
        version = None
    return Dialect(version if version in VERSIONS else None)


def item(value: str) -> str:
    """The bare item of a structured field (RFC 9651 section 3.3): none of these fields has parameters, and
    those that are there all the same mean nothing."""
    return value.partition(";")[0].rstrip(" ")


def parse_amount(get: Get, name: str) -> int | None:
    """The bytes that Upload-Offset or Upload-Length tells; None where it is absent."""
    value = get(name)
    return None if value is None else parse_integer(item(value))


def is_partial_upload(content_type: str | None) -> bool:
    return content_type is not None and item(content_type).lower() == MEDIA_TYPE


def format_limit(max_size: int, max_age: float | None) -> tuple[str, str]:
    """Upload-Limit: bytes of the largest file that is taken, and seconds that an upload is kept at least."""
    limits = {"max-size": max_size} if max_age is None else {"max-size": max_size, "max-age": int(max_age)}
    return "Upload-Limit", ", ".join(f"{key}={value}" for key, value in limits.items())
