"""Sealed bodies: what is handed out is what was sealed, or nothing is."""

from __future__ import annotations

import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fuzz.target import Draws, Target, in_common
from support.datakit import pattern
from tdx.data.port import Cancel
from tdx.data.seal import SEGMENT, TAG, SealedBody
from tdx.data.sockets import to_worker
from tdx.errors import ConnectionLost, SealBroken

KEY = bytes(range(32))
CONTENT = pattern(SEGMENT + 65536)
PATIENCE = 30.0


def _sealed(content: bytes) -> list[bytes]:
    pieces = [content[at : at + SEGMENT] for at in range(0, len(content), SEGMENT)]
    last = len(pieces) - 1
    return [
        AESGCM(KEY).encrypt(bytes(7) + struct.pack(">I?", number, number == last), piece, None)
        for number, piece in enumerate(pieces)
    ]


def sealed_body(data: bytes) -> None:
    """Of a sealed body that was changed, cut, reordered or lengthened on its way, whole segments before the
    change are handed out, in whatever pieces it is read; and no error but the two."""
    draws = Draws(data)
    long = draws.below(8) == 0
    length = draws.number(2) + (SEGMENT if long else 0) or 1
    step = 1 + length // 16 + draws.number(2)
    content = CONTENT[:length]
    segments = _sealed(content)
    body = b"".join(segments)
    sent = _changed(segments, draws)
    near, far = socket.socketpair()
    with near, far:
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        far.sendall(sent)
        far.shutdown(socket.SHUT_WR)
        to_worker(near)
        reader = SealedBody(near, KEY, length, Cancel(), PATIENCE)
        found, view, failed = bytearray(), memoryview(bytearray(step)), False
        try:
            while n := reader.readinto(view):
                found += view[:n]
        except (SealBroken, ConnectionLost):
            failed = True
    assert content.startswith(found)
    assert failed == (not sent.startswith(body))
    if failed:
        assert len(found) == in_common(sent, body) // (SEGMENT + TAG) * SEGMENT
    else:
        assert found == content


def _changed(segments: list[bytes], draws: Draws) -> bytes:
    way = draws.below(6)
    if way == 1:
        segments = [*reversed(segments)]
    elif way == 2:
        segments = segments[:-1]
    elif way == 3:
        segments = [*segments[:1], *segments]
    sent = bytearray(b"".join(segments))
    at = draws.below(len(sent) + 1, 3)
    if way == 4:
        del sent[at:]
    elif way == 5 and sent:
        sent[at % len(sent)] ^= draws.number()
    return bytes(sent) + draws.rest()


def _shapes() -> list[bytes]:
    return [
        bytes([long, 0, length, 1, 0, way, 0, 0, 5, 1])
        for long in (0, 1)
        for length in (1, 200)
        for way in range(6)
    ]


TARGETS = {"sealed_body": Target(sealed_body, _shapes, longest=64)}
