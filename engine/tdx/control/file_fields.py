"""The fields by which a request says which file shall be stored, and how: its length, its attributes, what to
do where the name is taken."""

from __future__ import annotations

from tdx.control.messages import Exchange
from tdx.control.upload_fields import claims_of
from tdx.errors import ProtocolError, TooLarge
from tdx.integrity import MAX_LENGTH, extent_size_for
from tdx.model import Conflict, FileName, UploadSpec
from tdx.policy.rules import Grant, largest_file
from tdx.proto import fields
from tdx.proto.problem import INCONSISTENT_LENGTH
from tdx.proto.resumable import parse_amount


def spec_of(exchange: Exchange, name: FileName, length: int | None, *digests: str) -> UploadSpec:
    """The upload that a request's fields ask for, of a name that has been placed; ``digests`` are those
    fields that tell one of the whole. Forbidden where its conflict mode is not granted."""
    get = exchange.headers
    mtime, mode, holes = get("tdx-mtime"), get("tdx-mode"), get("tdx-holes")
    sparse = get("tdx-sparse")
    spec = UploadSpec(
        owner=exchange.identity.owner,
        name=name,
        length=length,
        extent_size=extent_size_for(length),
        conflict=_conflict_of(exchange),
        source_id=get("tdx-source"),
        fingerprint=get("tdx-fingerprint"),
        mtime_ns=None if mtime is None else fields.parse_signed(mtime),
        mode=None if mode is None else fields.parse_mode(mode),
        holes=() if holes is None else fields.parse_spans(holes),
        key=get("tdx-upload-key"),
        claims=claims_of(exchange, *digests),
        sparse=sparse is not None and fields.parse_boolean(sparse),
    )
    if any(hole.end > (length or 0) for hole in spec.holes):
        raise ProtocolError("Tdx-Holes reaches beyond the file")
    exchange.grant.check_conflict(spec.conflict)
    return spec


def _conflict_of(exchange: Exchange) -> Conflict:
    wish = exchange.headers("tdx-conflict")
    if only_new(exchange):
        return Conflict.ERROR
    return Conflict.RENAME if wish is None else fields.parse_conflict(wish)


def check_stated_length(exchange: Exchange, length: int | None) -> None:
    """Upload-Length, where it is there, says the same as the length that is known."""
    stated = parse_amount(exchange.headers, "upload-length")
    if stated is not None and length is not None and stated != length:
        raise ProtocolError(f"Upload-Length is {stated} where it is {length}", type=INCONSISTENT_LENGTH)


def check_size(exchange: Exchange, length: int | None) -> None:
    most = largest_file(exchange.limits, exchange.grant, MAX_LENGTH)
    if length is not None and length > most:
        raise too_large(length, most, exchange.grant)


def too_large(size: int, limit: int, grant: Grant) -> TooLarge:
    """Says whose limit it is, if it is the rule's."""
    by = f" by rule `{grant.rule}`" if limit == grant.max_file else ""
    return TooLarge(f"a file of {size} bytes where at most {limit} are taken{by}")


def only_new(exchange: Exchange) -> bool:
    """Whether the name is to be free (RFC 9110 section 13.1.2)."""
    return exchange.headers("if-none-match") == "*"
