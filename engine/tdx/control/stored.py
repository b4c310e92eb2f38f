"""Reading back what a receiver has stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tdx.errors import ProtocolError
from tdx.integrity import ALGORITHM, BUFFER_FOR_HASHING, Hasher, new_hasher
from tdx.model import Span
from tdx.store.port import Upload


def hash_stored(upload: Upload, span: Span, hasher: Hasher) -> None:
    """Feed the stored bytes of ``span`` to ``hasher``."""
    buffer = memoryview(bytearray(min(BUFFER_FOR_HASHING, len(span))))
    at = span.start
    while at < span.end:
        part = buffer[: min(len(buffer), span.end - at)]
        n = upload.read_at(part, at)
        if n == 0:
            raise ProtocolError("stored bytes are missing")
        hasher.update(part[:n])
        at += n


def digest_at(read_at: Callable[[memoryview, int], int], span: Span) -> bytes | None:
    """The XXH3-128 of these bytes, as ``read_at(view, offset)`` reads them; None where it has not all."""
    hasher = new_hasher()
    buffer = memoryview(bytearray(min(BUFFER_FOR_HASHING, len(span))))
    for at in range(span.start, span.end, len(buffer)):
        part = buffer[: min(len(buffer), span.end - at)]
        if read_at(part, at) < len(part):
            return None
        hasher.update(part)
    return hasher.digest()


def digest_stored(upload: Upload, span: Span | None, algorithm: str) -> bytes:
    """The digest of the stored bytes of ``span``, or of none, by the algorithm of that RFC 9530 key."""
    hasher: Hasher = new_hasher() if algorithm == ALGORITHM else hashlib.new(algorithm.replace("-", ""))
    if span is not None:
        hash_stored(upload, span, hasher)
    return hasher.digest()
