"""Reading back what a receiver has stored."""

from __future__ import annotations

from tdx.errors import ProtocolError
from tdx.integrity import BUFFER_FOR_HASHING, Hasher
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
