"""Reading back what a receiver has stored."""

from __future__ import annotations

import hashlib

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


def digest_stored(upload: Upload, span: Span | None, algorithm: str) -> bytes:
    """The digest of the stored bytes of ``span``, or of none, by the algorithm of that RFC 9530 key."""
    hasher: Hasher = new_hasher() if algorithm == ALGORITHM else hashlib.new(algorithm.replace("-", ""))
    if span is not None:
        hash_stored(upload, span, hasher)
    return hasher.digest()
