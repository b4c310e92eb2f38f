"""Bodies beneath TLS: sealed in large segments, under a key that came in the TLS-protected head.

TLS 1.3 cuts everything into records of 16 KiB, and each costs calls and copies
(docs/decisions/011-sealed-bodies.md). A sealed body follows its head's record as bare bytes of the TCP
connection: segments of :data:`SEGMENT` bytes, the last one perhaps shorter, each followed by its tag. It is
the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015) with AES-256-GCM: the nonce is
seven zero bytes, the segment's number and whether it is the last one, so that none can be left out, swapped,
repeated or cut off. The key is for one body only.

cryptography is loaded by the first body that is sealed or opened: nothing else should wait for it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tdx.data.body import Receive, SizedBody, bare_receiver
from tdx.data.port import Cancel
from tdx.data.sockets import beneath_tls
from tdx.errors import SealBroken

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SEGMENT: Final = 128 << 10
"""Bytes of content in one segment: ciphertext and content stay in a core's own cache together."""

TAG: Final = 16

_STEP: Final = SEGMENT + TAG
_AT_ONCE: Final = 4
"""Segments that one call receives at most."""


def sealed_size(length: int) -> int:
    """Bytes that ``length`` bytes of content are on their way."""
    return length + TAG * -(-length // SEGMENT)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">7xI?", number, last)


class SealWriter:
    """Seals a body of ``length`` bytes, window by window, and sends it beneath ``sock``'s TLS.

    ``sock`` is a worker's (:func:`tdx.data.sockets.to_worker`), and its kernel does not encrypt. ``key`` has
    32 random bytes that no other body is sealed with.
    """

    def __init__(self, sock: socket.socket, key: bytes, length: int) -> None:
        beneath_tls(sock)
        self._sock = sock
        self._cipher = _cipher(key)
        self._left = length
        self._number = 0
        self._out = memoryview(bytearray())

    def emit_of(self, view: memoryview) -> Callable[[int, int], int]:
        """See :data:`tdx.data.send.EmitOf`. A window is whole segments, or the end of the body."""
        sealed = memoryview(b"")
        at = 0

        def emit(done: int, size: int) -> int:
            nonlocal sealed, at
            if not sealed:
                sealed = self._seal(view)
            end = _travels(done + size, len(view))
            at += socket.socket.send(self._sock, sealed[at:end])
            return _arrived(at, len(view)) - done

        return emit

    def _seal(self, view: memoryview) -> memoryview:
        size = len(view)
        if size > self._left or (size % SEGMENT and size != self._left):
            raise ValueError(f"a window of {size} bytes, with {self._left} left of the body")
        if len(self._out) < sealed_size(size):
            self._out = memoryview(bytearray(sealed_size(size)))
        at = 0
        for start in range(0, size, SEGMENT):
            content = view[start : start + SEGMENT]
            self._left -= len(content)
            end = at + len(content) + TAG
            nonce = _nonce(self._number, last=not self._left)
            self._cipher.encrypt_into(nonce, content, None, self._out[at:end])
            self._number += 1
            at = end
        return self._out[:at]


def _travels(content: int, size: int) -> int:
    """Where in a sealed window of ``size`` bytes the first ``content`` of them end, every tag that is due
    included."""
    return sealed_size(content) if content == size else content + TAG * (content // SEGMENT)


def _arrived(sent: int, size: int) -> int:
    """How many bytes of content are behind the first ``sent`` of a sealed window; the last one of a segment
    only with all of its tag."""
    number, part = divmod(sent, _STEP)
    start = number * SEGMENT
    here = min(SEGMENT, size - start)
    return start + (here if part == here + TAG else max(0, min(part, here - 1)))


class SealedBody(SizedBody):
    """A body of ``length`` bytes that comes sealed beneath ``sock``'s TLS; ``key`` came with its head.

    SealBroken where a segment is not what was sealed: nothing of it is handed out, and nothing after it.
    The other arguments as for :class:`tdx.data.body.LengthBody`. No :class:`tdx.data.port.RawBody`: what
    the descriptor holds is ciphertext.
    """

    def __init__(
        self,
        sock: socket.socket,
        key: bytes,
        length: int,
        cancel: Cancel,
        stall_timeout: float,
        min_rate: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(sock, length, cancel, stall_timeout, min_rate, clock)
        self._receive = _receive_beneath(sock)
        self._key = key
        self._opener: AESGCM | None = None
        self._unopened = length
        self._number = 0
        self._sealed = memoryview(bytearray(min(sealed_size(length), _AT_ONCE * _STEP)))
        self._begin = 0
        self._have: int = 0
        self._rest = memoryview(b"")

    def _read_some(self, view: memoryview) -> int:
        if not self._rest:
            size = min(SEGMENT, self._unopened)
            if not self._fetch(size + TAG):
                return 0
            if len(view) >= size:
                self._open(size, view[:size])
                self._left -= size
                return size
            content = memoryview(bytearray(size))
            self._open(size, content)
            self._rest = content
        n = min(len(view), len(self._rest))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        self._left -= n
        return n

    def _passed(self, n: int) -> None:
        # What has arrived of a segment counts, though nothing can be handed out yet.
        if not n:
            self._patience.waited()

    def _fetch(self, size: int) -> bool:
        """Have ``size`` sealed bytes at hand; False after a TICK without any."""
        if self._begin == self._have:
            self._begin = self._have = 0
        end = min(len(self._sealed), self._begin + sealed_size(self._unopened))
        while self._have - self._begin < size:
            n = self._recv(self._sealed[self._have : end], whole=True)
            if not n:
                return False
            self._have += n
            self._check()
            self._patience.moved(n)
        return True

    def _open(self, size: int, content: memoryview) -> None:
        """Open the next segment, which has come whole."""
        from cryptography.exceptions import InvalidTag

        last = size == self._unopened
        sealed = self._sealed[self._begin : self._begin + size + TAG]
        if self._opener is None:
            self._opener = _cipher(self._key)
        try:
            self._opener.decrypt_into(_nonce(self._number, last=last), sealed, None, content)
        except InvalidTag:
            raise SealBroken("what was sent was damaged on its way, or changed") from None
        self._begin += len(sealed)
        self._unopened -= size
        self._number += 1


def _receive_beneath(sock: socket.socket) -> Receive:
    bare, ready = bare_receiver(sock), False

    def receive(view: memoryview, *, whole: bool) -> int:
        nonlocal ready
        if not ready:
            beneath_tls(sock)
            ready = True
        return bare(view, whole=whole)

    return receive
