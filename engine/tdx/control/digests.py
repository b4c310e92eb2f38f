"""The digest fields of a request (RFC 9530)."""

from __future__ import annotations

from typing import Final

from tdx.control.messages import Exchange
from tdx.integrity import ALGORITHM
from tdx.model import Claim
from tdx.proto import fields

VERIFIABLE: Final = (ALGORITHM, "sha-256", "sha-512")


def claims_of(exchange: Exchange, *names: str) -> tuple[Claim, ...]:
    """The digests of these fields (Content-Digest, Repr-Digest) that can be verified here."""
    values = [value for name in names if (value := exchange.headers(name)) is not None]
    return tuple(
        Claim(algorithm, digest)
        for value in values
        for algorithm, digest in fields.parse_digests(value).items()
        if algorithm in VERIFIABLE
    )
