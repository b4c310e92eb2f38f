"""Fields that say how an upload stands and what it may become (draft-ietf-httpbis-resumable-upload)."""

from __future__ import annotations

from typing import Final

from tdx.control.messages import Exchange
from tdx.integrity import MAX_EXTENT, MAX_EXTENTS
from tdx.model import UploadId, UploadSpec
from tdx.policy.rules import largest_file
from tdx.proto.resumable import format_limit

PLAIN_EXPIRY: Final = 86400.0
"""Idle lifetime in seconds of what a plain HTTP client left half-sent."""

NO_STORE: Final = ("Cache-Control", "no-store")

MOST: Final = MAX_EXTENTS * MAX_EXTENT
"""Bytes of the largest file that has extents."""


def location(upload: UploadId) -> tuple[str, str]:
    return "Location", f"/uploads/{upload}"


def standing(exchange: Exchange, offset: int, *, done: bool) -> list[tuple[str, str]]:
    """Upload-Offset, and whether that is all."""
    return [("Upload-Offset", str(offset)), exchange.dialect.completeness(done)]


def limit(exchange: Exchange, spec: UploadSpec | None = None, *, ended: bool = False) -> tuple[str, str]:
    """Upload-Limit: of this upload, or of any new one. Each request on one that has not ended renews it."""
    expires_after, most = PLAIN_EXPIRY, MOST
    if spec is not None:
        expires_after = spec.expires_after
        if spec.length is None:
            most = MAX_EXTENTS * spec.extent_size
    return format_limit(largest_file(exchange.limits, exchange.grant, most), None if ended else expires_after)
