"""The ``meta`` file of an upload: its specification, as JSON."""

from __future__ import annotations

import json
from typing import Any, Final

from tdx.model import Claim, Conflict, FileName, Owner, Span, UploadSpec

VERSION: Final = 1


def encode(spec: UploadSpec) -> bytes:
    document: dict[str, Any] = {
        "version": VERSION,
        "owner": spec.owner,
        "name": spec.name,
        "length": spec.length,
        "extent_size": spec.extent_size,
        "conflict": spec.conflict.value,
        "source_id": spec.source_id,
        "fingerprint": spec.fingerprint,
        "mtime_ns": spec.mtime_ns,
        "mode": spec.mode,
        "holes": [[hole.start, hole.end] for hole in spec.holes],
        "key": spec.key,
        "expires_after": spec.expires_after,
        "by_name": spec.by_name,
        "claims": [[claim.algorithm, claim.digest.hex()] for claim in spec.claims],
        "sparse": spec.sparse,
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def decode(data: bytes) -> UploadSpec:
    """The inverse; ValueError for anything else, such as a file cut short by a crash."""
    try:
        document = json.loads(data)
        if document["version"] != VERSION:
            raise ValueError(f"meta of version {document['version']}")
        return UploadSpec(
            owner=Owner(document["owner"]),
            name=FileName(document["name"]),
            length=document["length"],
            extent_size=document["extent_size"],
            conflict=Conflict(document["conflict"]),
            source_id=document["source_id"],
            fingerprint=document["fingerprint"],
            mtime_ns=document["mtime_ns"],
            mode=document["mode"],
            holes=tuple(Span(start, end) for start, end in document["holes"]),
            key=document["key"],
            expires_after=document["expires_after"],
            by_name=document["by_name"],
            claims=tuple(
                Claim(algorithm, bytes.fromhex(digest)) for algorithm, digest in document.get("claims", ())
            ),
            sparse=document.get("sparse", False),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an upload's meta: {error!r}") from error
