"""The chunked transfer coding (RFC 9112 7.1), without input or output.

Payload is handed on as views of what was fed: Python touches chunk lines, never
payload bytes.
"""

from __future__ import annotations

import re
from typing import Final

from tdx.errors import ProtocolError

MAX_LINE: Final = 4096
"""Most bytes of a chunk-size line with its extensions, or of a trailer line, CRLF included."""

MAX_TRAILERS: Final = 16384
"""Most bytes of all trailer lines."""

MAX_OVERHEAD: Final = 16384
"""Most bytes of chunk lines beyond a fair share of the payload, over the whole body."""

FAIR_LINE: Final = 18
"""Bytes of a chunk line that cost nothing: the longest size there is, and its CRLF."""

MAX_CHUNK: Final = 2**63 - 1

_CRLF: Final = b"\r\n"
_LF = re.compile(rb"\n")
# An extension's text is ignored, but never one in which another parser could see the end of a line.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n")


class ChunkedDecoder:
    """Decodes one body. After a ProtocolError the connection's framing is lost."""

    __slots__ = (
        "_after_chunk",
        "_finished",
        "_in_trailers",
        "_left",
        "_leftover",
        "_line",
        "_overhead",
        "_trailers",
    )

    def __init__(self) -> None:
        self._left = 0
        self._line = bytearray()
        self._after_chunk = False
        self._in_trailers = False
        self._finished = False
        self._leftover = b""
        self._overhead = 0
        self._trailers = 0

    @property
    def finished(self) -> bool:
        """Whether the last chunk and the trailers have been read."""
        return self._finished

    @property
    def leftover(self) -> bytes:
        """What was fed after the end of the body: the beginning of the next message."""
        return self._leftover

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """The payload in ``data``: non-empty views into it, in order."""
        view = memoryview(data)
        payload: list[memoryview] = []
        at = 0
        while at < len(view):
            if self._finished:
                self._leftover += view[at:]
                break
            if self._left:
                part = view[at : at + self._left]
                payload.append(part)
                self._left -= len(part)
                self._after_chunk = not self._left
                at += len(part)
            else:
                at = self._feed_line(view, at)
        return payload

    def _feed_line(self, view: memoryview, at: int) -> int:
        """Take the rest of the current line; where the next one, or a chunk, begins."""
        limit = min(len(view), at + MAX_LINE - len(self._line) + 1)
        found = _LF.search(view, at, limit)
        end = limit if found is None else found.end()
        self._line += view[at:end]
        if len(self._line) > MAX_LINE:
            raise ProtocolError("a line between chunks is too long")
        if found is not None:
            line = bytes(self._line)
            self._line.clear()
            self._take(line)
        return end

    def _take(self, line: bytes) -> None:
        if self._after_chunk:
            if line != _CRLF:
                raise ProtocolError("a chunk is longer than its size says")
            self._after_chunk = False
        elif self._in_trailers:
            self._take_trailer(line)
        else:
            self._take_size(line)

    def _take_size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        size = MAX_CHUNK + 1 if match is None else int(match[1], 16)
        if size > MAX_CHUNK:
            raise ProtocolError(f"not a chunk size: {line!r:.80}")
        # A body of one-byte chunks with long extensions would make the receiver read any number
        # of bytes for each that it stores (CVE-2023-39326 in Go's net/http).
        self._overhead = max(0, self._overhead + len(line) - FAIR_LINE - 2 * size)
        if self._overhead > MAX_OVERHEAD:
            raise ProtocolError("the chunks carry more extensions than payload")
        self._left = size
        self._in_trailers = size == 0

    def _take_trailer(self, line: bytes) -> None:
        if line == _CRLF:
            self._finished = True
            return
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise ProtocolError("the trailers are too long")
        if _TRAILER_LINE.fullmatch(line) is None:
            raise ProtocolError(f"not a trailer: {line!r:.80}")
