"""What a receiver says of itself and of whoever asks (``GET /v1/hello``), as a sender reads it."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import cast

from tdx.control.client import Answer, Client
from tdx.errors import NotFound, ProtocolError, StorageError, TooLarge
from tdx.model import Conflict


@dataclass(frozen=True, slots=True)
class Hello:
    """``you``: the caller as it is known there; ``grant``: what it may, ``conflicts`` the modes of it
    (all where it names none). Sizes are in bytes, and None where nothing is said: ``quota`` and
    ``max_file`` are the grant's, ``limit`` is the largest file of anybody. ``at`` is the receiver's
    clock in seconds since the epoch, to half a second; None where it cannot be read."""

    version: object
    you: dict[str, object]
    grant: dict[str, object]
    conflicts: tuple[object, ...]
    free_bytes: int | None
    quota: int | None
    max_file: int | None
    limit: int | None
    at: float | None

    @classmethod
    def parse(cls, answer: Answer) -> Hello:
        """ProtocolError where it is not from a tdx receiver."""
        document = answer.document()
        if document.get("name") != "tdx":
            raise ProtocolError("what answers there is no tdx receiver")
        grant, limits = _object(document.get("grant")), _object(document.get("limits"))
        modes = grant.get("conflict")
        return cls(
            document.get("version"),
            _object(document.get("you")),
            grant,
            tuple(cast("list[object]", modes)) if isinstance(modes, list) else tuple(Conflict),
            _number(document.get("free_bytes")),
            _number(grant.get("quota")),
            _number(grant.get("max_file")),
            _number(limits.get("max_file")),
            _clock(answer.headers.get("date") or ""),
        )


async def ask_hello(client: Client) -> Hello:
    """ProtocolError where no tdx receiver answers; else as :meth:`Client.hello`."""
    try:
        answer = await client.hello()
    except (NotFound, StorageError, TooLarge) as error:
        raise ProtocolError(f"what answers there is no tdx receiver: {error.message}") from None
    return Hello.parse(answer)


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _number(value: object) -> int | None:
    # Beyond what any disk has, it could not even be written as a float.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _clock(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() + 0.5  # the field has no fractions
    except (ValueError, TypeError, OverflowError):
        return None
