"""Errors as they travel: ``application/problem+json`` (RFC 9457) there and back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Final, cast

from tdx.errors import (
    PROBLEM_PREFIX,
    Busy,
    DigestMismatch,
    ExtentsDiffer,
    Forbidden,
    NoSpace,
    NotFound,
    OffsetMismatch,
    ProtocolError,
    StorageError,
    TdxError,
    TooLarge,
    UploadBusy,
    by_code,
)
from tdx.model import shown
from tdx.proto.fields import MAX_INTEGER

MEDIA_TYPE: Final = "application/problem+json"

MAX_DOCUMENT: Final = 16 << 20
"""Most bytes of a problem document that are looked at: 2**20 extents that all differ take 9 MiB."""

MAX_MESSAGE: Final = 1000
"""Most characters of a message from the other end."""

IANA: Final = "https://iana.org/assignments/http-problem-types#"
INCONSISTENT_LENGTH: Final = IANA + "inconsistent-upload-length"
"""For ``ProtocolError(..., type=INCONSISTENT_LENGTH)``: the lengths a client told differ."""
COMPLETED_UPLOAD: Final = IANA + "completed-upload"
"""Likewise: nothing more can be appended."""

_IANA_TYPES: Final[dict[str, type[TdxError]]] = {
    IANA + "mismatching-upload-offset": OffsetMismatch,
    IANA + "digest-mismatched-values": DigestMismatch,
    INCONSISTENT_LENGTH: ProtocolError,
    COMPLETED_UPLOAD: ProtocolError,
}
_TYPE_OF: Final = {cls: uri for uri, cls in _IANA_TYPES.items() if cls is not ProtocolError}

_BY_STATUS: Final[dict[int, type[TdxError]]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: UploadBusy,
    413: TooLarge,
    503: Busy,
    507: NoSpace,
}


def document_of(error: TdxError) -> dict[str, object]:
    """The problem document that says ``error``."""
    document = error.problem()
    registered = _TYPE_OF.get(type(error))
    if registered is not None:
        document["type"] = registered
    if isinstance(error, OffsetMismatch):
        document["expected-offset"] = error.offset
        if error.provided is not None:
            document["provided-offset"] = error.provided
    return document


def render(error: TdxError) -> tuple[int, bytes]:
    """The status and the body of the answer to a request that failed with ``error``."""
    document = document_of(error)
    # A lone surrogate (a file name that is not Unicode) becomes \udcXX, which is JSON's own escape.
    return error.status, json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")


def parse(status: int, content_type: str | None, body: bytes) -> TdxError:
    """The error that an answer means: the class its type names, or what its status says.

    The document comes from somebody else: it is bounded, type-checked, and its text is made
    fit for a terminal. One that lacks the members its type needs is a ProtocolError.
    """
    document = _document(content_type, body)
    message = _message(document.get("detail"), status)
    cls = _class_of(document.get("type")) or _by_status(status)
    if issubclass(cls, OffsetMismatch):
        offset = document.get("offset", document.get("expected-offset"))
        if not _is_index(offset):
            return ProtocolError(f"the other end names no offset: {message}")
        return cls(message, offset=cast("int", offset))
    if issubclass(cls, ExtentsDiffer):
        extents = _indices(document.get("extents"))
        if extents is None:
            return ProtocolError(f"the other end names no extents: {message}")
        return cls(message, extents=extents)
    return cls(message)


def parse_member(document: dict[str, object]) -> TdxError | None:
    """The error that one of several answers in a document means: by its member ``problem``, a problem
    document, as :func:`parse`. None where it has none."""
    refusal = document.get("problem")
    if not isinstance(refusal, dict):
        return None
    status = cast("dict[str, object]", refusal).get("status")
    known = type(status) is int and 400 <= status <= 599
    return parse(cast("int", status) if known else 500, MEDIA_TYPE, json.dumps(refusal).encode())


def _document(content_type: str | None, body: bytes) -> dict[str, object]:
    """The members of a problem document; empty where the body is none."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE or len(body) > MAX_DOCUMENT:
        return {}
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", document) if isinstance(document, dict) else {}


def _message(detail: object, status: int) -> str:
    if not isinstance(detail, str) or not detail:
        return f"the other end answered {status}"
    return shown(detail[:MAX_MESSAGE])


def _class_of(uri: object) -> type[TdxError] | None:
    if not isinstance(uri, str):
        return None
    if uri.startswith(PROBLEM_PREFIX):
        return by_code(uri.removeprefix(PROBLEM_PREFIX))
    return _IANA_TYPES.get(uri)


def _by_status(status: int) -> type[TdxError]:
    fallback = StorageError if 500 <= status <= 599 else ProtocolError
    return _BY_STATUS.get(status, fallback)


def _is_index(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _indices(value: object) -> list[int] | None:
    """A list of extent indices, ascending and not empty; None for anything else."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    if not items or not all(map(_is_index, items)):
        return None
    indices = cast("list[int]", items)
    if any(b <= a for a, b in pairwise(indices)):
        return None
    return indices
