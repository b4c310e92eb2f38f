"""The fields by which requests and answers speak of an upload: its run, its digests (RFC 9530), how it stands
and what it may become (draft-ietf-httpbis-resumable-upload)."""

from __future__ import annotations

from typing import Final

from tdx.control.messages import Exchange
from tdx.integrity import ALGORITHM, MAX_EXTENTS, MAX_LENGTH
from tdx.model import Claim, Stages, UploadId, UploadSpec
from tdx.policy.rules import largest_file
from tdx.proto import fields
from tdx.proto.resumable import format_limit
from tdx.proto.stages import FIELD, parse_stages

PLAIN_EXPIRY: Final = 86400.0
"""Idle lifetime in seconds of what a plain HTTP client left half-sent."""

NO_STORE: Final = ("Cache-Control", "no-store")

_VERIFIABLE: Final = (ALGORITHM, "sha-256", "sha-512")


def epoch_of(exchange: Exchange) -> int | None:
    epoch = exchange.headers("tdx-epoch")
    return None if epoch is None else fields.parse_integer(epoch)


def told_by(exchange: Exchange) -> Stages | None:
    """Where the sender says that its time has gone in this run so far."""
    value = exchange.headers(FIELD.lower())
    return None if value is None else parse_stages(value)


def claims_of(exchange: Exchange, *names: str) -> tuple[Claim, ...]:
    """The digests of these fields (Content-Digest, Repr-Digest) that can be verified here."""
    values = [value for name in names if (value := exchange.headers(name)) is not None]
    return tuple(
        Claim(algorithm, digest)
        for value in values
        for algorithm, digest in fields.parse_digests(value).items()
        if algorithm in _VERIFIABLE
    )


def location(upload: UploadId) -> tuple[str, str]:
    return "Location", f"/uploads/{upload}"


def standing(exchange: Exchange, offset: int, *, done: bool) -> list[tuple[str, str]]:
    """Upload-Offset, and whether that is all."""
    return [("Upload-Offset", str(offset)), exchange.dialect.completeness(done)]


def limit(exchange: Exchange, spec: UploadSpec | None = None, *, ended: bool = False) -> tuple[str, str]:
    """Upload-Limit: of this upload, or of any new one. Each request on one that has not ended renews it."""
    expires_after, most = PLAIN_EXPIRY, MAX_LENGTH
    if spec is not None:
        expires_after = spec.expires_after
        if spec.length is None:
            most = MAX_EXTENTS * spec.extent_size
    return format_limit(largest_file(exchange.limits, exchange.grant, most), None if ended else expires_after)
