"""Pairing: two devices that share a short code come to trust each other's keys. No I/O.

SPAKE2 (RFC 9382, as the library of that name has it) makes a strong key of the weak code; an
active attacker gets one guess for each try. It confirms nothing by itself, so both sides then
prove, the joiner first, under keys of their own role, that they have the same key and saw the
same messages, and that each has the private key of the certificate it handed over.

Frames are a length (two bytes, the high one first) and that many bytes. In turn, the joiner
first, each side sends: hello, document, proof, and an acknowledgement that it has verified the
other's proof. Whatever else is received ends the attempt.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from tdx.errors import PairingFailed, TdxError, UsageError
from tdx.identity.device import Device, key_of, unfit, verify

CODE_DIGITS: Final = 8
MAX_FRAME: Final = 8192
LONGEST_SAID_NAME: Final = 255

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: without i, l, o and u."""
_LOOK_ALIKES: Final = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None, " ": None})

_PROTOCOL: Final = b"tdx pairing 1"
_MAC_SIZE: Final = 32
_KEYS: Final = {"certificate", "name", "port"}


class Role(StrEnum):
    """Who made the code, and waits, is the listener."""

    JOINER = "joiner"
    LISTENER = "listener"

    @property
    def other(self) -> Role:
        return Role.LISTENER if self is Role.JOINER else Role.JOINER


@dataclass(frozen=True, slots=True)
class Met:
    """The device at the other end: its ``key`` and ``certificate`` (DER), what it calls itself
    (any text), and the port that its receiver listens on."""

    key: str
    certificate: bytes
    name: str
    port: int


def new_code() -> str:
    """Eight random digits, 40 bits, in two groups."""
    digits = "".join(secrets.choice(_ALPHABET) for _ in range(CODE_DIGITS))
    return f"{digits[: CODE_DIGITS // 2]}-{digits[CODE_DIGITS // 2 :]}"


def parse_code(text: str) -> str:
    """The digits of a code as somebody typed it. UsageError for what can be none."""
    digits = text.strip().lower().translate(_LOOK_ALIKES)
    if len(digits) != CODE_DIGITS or not set(digits) <= set(_ALPHABET):
        raise UsageError(f"not a code: {text!r}; one looks like k7mf-3qpt")
    return digits


class Pairing:
    """One side of one try. Feed it what arrives, send what it returns.

    ``name`` and ``port`` are what the other side is told. ``now`` is in seconds since the Unix
    epoch. ``accept`` is asked about the other device once that has proven who it is, and before it
    is told that it is trusted; what it raises ends the try.
    """

    def __init__(
        self,
        role: Role,
        code: str,
        device: Device,
        name: str,
        port: int,
        now: float,
        accept: Callable[[Met], None] = lambda _: None,
    ) -> None:
        self._role = role
        self._device = device
        self._now = now
        self._accept = accept
        self._spake = _spake(role, parse_code(code).encode())
        self._hello = {role: _PROTOCOL + self._spake.start()}
        said = {"certificate": base64.b64encode(device.certificate).decode(), "name": name, "port": port}
        self._document = {role: json.dumps(said).encode()}
        self._proof: dict[Role, bytes] = {}
        self._secret = b""
        self._met: Met | None = None
        self._buffer = b""
        self._awaited: list[Callable[[bytes], bytes]] = [
            self._on_hello,
            self._on_document,
            self._on_proof,
            self._on_acknowledgement,
        ]
        self._failed = False
        self.greeted = False
        """Whether the other end has shown that it speaks this protocol."""
        self.heard = False
        """Whether the other end has sent anything."""

    @property
    def peer(self) -> Met | None:
        """The other device, once both sides have verified each other; None until then."""
        return self._met if not self._awaited and not self._failed else None

    def begin(self) -> bytes:
        """What to send before anything was received."""
        return _frame(self._hello[Role.JOINER]) if self._role is Role.JOINER else b""

    def receive(self, data: bytes) -> bytes:
        """What to answer. PairingFailed, now and ever after, for anything that is not as it
        should be; whatever ``accept`` raises likewise."""
        if self._failed:
            raise PairingFailed("this pairing has failed already")
        self.heard = self.heard or bool(data)
        try:
            return self._receive(data)
        except TdxError:
            self._failed = True
            raise

    def conclude(self) -> bytes:
        """The listener's last word, for when it has made the new trust durable."""
        assert self.peer is not None
        assert self._role is Role.LISTENER
        return _frame(self._acknowledgement(self._role))

    def end(self) -> PairingFailed:
        """What it means that the other end is gone."""
        self._failed = True
        if self._role is Role.JOINER and self._awaited == [self._on_proof, self._on_acknowledgement]:
            return PairingFailed(
                f"pairing failed: the other end refused; it says why, most likely for another code; {_AGAIN}"
            )
        if self._role is Role.JOINER and self._awaited == [self._on_acknowledgement]:
            return PairingFailed(
                "pairing failed on this side only: the other end agreed, and is gone before it confirmed; "
                "pair once more"
            )
        return PairingFailed(f"pairing failed: the other end is gone; {_AGAIN}")

    def _receive(self, data: bytes) -> bytes:
        self._buffer += data
        if len(self._buffer) < 2:
            return b""
        size = int.from_bytes(self._buffer[:2])
        if not 0 < size <= MAX_FRAME or not self._awaited or len(self._buffer) > 2 + size:
            raise _malformed()
        if len(self._buffer) < 2 + size:
            return b""
        payload, self._buffer = self._buffer[2:], b""
        answer = self._awaited[0](payload)
        del self._awaited[0]
        return _frame(answer) if answer else b""

    def _on_hello(self, payload: bytes) -> bytes:
        if not payload.startswith(_PROTOCOL):
            raise PairingFailed("pairing failed: the other end does not speak this version of tdx pairing")
        self.greeted = True
        self._hello[self._role.other] = payload
        try:
            self._secret = self._spake.finish(payload.removeprefix(_PROTOCOL))
        except Exception as error:  # the library raises whatever its arithmetic runs into
            raise _malformed() from error
        return self._document[self._role] if self._role is Role.JOINER else self._hello[self._role]

    def _on_document(self, payload: bytes) -> bytes:
        self._document[self._role.other] = payload
        self._met = met = _parse_document(payload)
        if met.key == self._device.key:
            raise PairingFailed("pairing failed: this device was asked to pair with itself")
        reason = unfit(met.certificate, self._now)
        if reason is not None:
            raise PairingFailed(f"pairing failed: the certificate of the other device is no good: {reason}")
        return self._prove() if self._role is Role.JOINER else self._document[self._role]

    def _on_proof(self, payload: bytes) -> bytes:
        assert self._met is not None
        self._proof[self._role.other] = payload
        seen = self._transcript()
        if not hmac.compare_digest(payload[:_MAC_SIZE], self._mac(self._role.other, "proof", seen)):
            raise PairingFailed(_REFUSED)
        signed = _signed(self._role.other, seen)
        if not verify(self._met.certificate, payload[_MAC_SIZE:], signed):
            raise PairingFailed(_REFUSED)
        self._accept(self._met)
        return self._acknowledgement(self._role) if self._role is Role.JOINER else self._prove()

    def _on_acknowledgement(self, payload: bytes) -> bytes:
        if not hmac.compare_digest(payload, self._acknowledgement(self._role.other)):
            raise PairingFailed(_REFUSED)
        return b""

    def _prove(self) -> bytes:
        seen = self._transcript()
        proof = self._mac(self._role, "proof", seen) + self._device.sign(_signed(self._role, seen))
        self._proof[self._role] = proof
        return proof

    def _acknowledgement(self, role: Role) -> bytes:
        seen = _digest(self._transcript(), *(self._proof[each] for each in Role))
        return self._mac(role, "acknowledgement", seen)

    def _transcript(self) -> bytes:
        """What both must have seen alike, in 32 bytes."""
        assert self._met is not None
        keys = {self._role: self._device.key, self._role.other: self._met.key}
        parts = [part[role] for part in (self._hello, self._document) for role in Role]
        return _digest(*parts, *(bytes.fromhex(keys[role]) for role in Role))

    def _mac(self, role: Role, purpose: str, seen: bytes) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        label = b"%s: %s of the %s" % (_PROTOCOL, purpose.encode(), role.encode())
        key = HKDF(SHA256(), _MAC_SIZE, salt=seen, info=label).derive(self._secret)
        return hmac.digest(key, seen, "sha256")


_AGAIN: Final = "for another try run `tdx pair` again, which makes a new code"
_REFUSED: Final = f"pairing failed: not the same code on both sides, or somebody in between; {_AGAIN}"


def _malformed() -> PairingFailed:
    return PairingFailed(f"pairing failed: the other end sent something else than it should; {_AGAIN}")


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(2) + payload


def _digest(*parts: bytes) -> bytes:
    """A hash that tells where each part ends."""
    return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in (_PROTOCOL, *parts))).digest()


def _signed(role: Role, seen: bytes) -> bytes:
    return b"%s: signature of the %s\0%s" % (_PROTOCOL, role.encode(), seen)


def _parse_document(payload: bytes) -> Met:
    try:
        values: Any = json.loads(payload)
        name, port = values["name"], values["port"]
        certificate = base64.b64decode(values["certificate"], validate=True)
        fits = (
            set(values) == _KEYS
            and isinstance(name, str)
            and 0 < len(name) <= LONGEST_SAID_NAME
            and type(port) is int
            and 0 < port < 65536
        )
        if not fits:
            raise _malformed()
        return Met(key_of(certificate), certificate, name, port)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _malformed() from error


class _Spake(Protocol):
    def start(self) -> bytes: ...

    def finish(self, message: bytes, /) -> bytes: ...


def _spake(role: Role, password: bytes) -> _Spake:
    import spake2  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

    library: Any = spake2
    side = library.SPAKE2_A if role is Role.JOINER else library.SPAKE2_B
    made: _Spake = side(password, idA=b"tdx pairing: joiner", idB=b"tdx pairing: listener")
    return made
