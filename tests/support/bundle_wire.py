"""Bundles as a sender of tests writes them, without help from tdx but for the digests."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any, cast

from support.receiving import RunningReceiver
from support.wire import Answer, chunked
from tdx.integrity import digest_of

MEDIA_TYPE = "application/vnd.tdx.bundle"
END = bytes(4)


def entry(name: str, content: bytes, key: str | None = None, **members: object) -> bytes:
    """One entry; ``members`` are put into its head, over what is right."""
    head = {
        "name": name,
        "size": len(content),
        "digest": digest_of(content).hex(),
        "key": key or f"key-of-{digest_of(name.encode()).hex()}",
        **members,
    }
    raw = json.dumps(head).encode()
    return struct.pack(">I", len(raw)) + raw + content


def bundle(files: Mapping[str, bytes]) -> bytes:
    return b"".join(entry(name, content) for name, content in files.items()) + END


def fields(*, replay: bool = False, **more: object) -> dict[str, object]:
    """The fields of a request with a bundle; ``conflict`` as in Tdx_Conflict."""
    given: dict[str, object] = {"Content-Type": MEDIA_TYPE}
    if replay:
        given["Tdx-Replay"] = "?1"
    return given | {name.replace("_", "-"): value for name, value in more.items()}


def post(receiver: RunningReceiver, body: bytes, *, replay: bool = False, **more: object) -> Answer:
    """Send a bundle as it is, with Content-Length."""
    return receiver.request("POST", "/files", body, fields(replay=replay, **more))


def post_chunked(receiver: RunningReceiver, parts: Iterable[bytes]) -> Answer:
    return receiver.request(
        "POST", "/files", chunked(parts), {"Content-Type": MEDIA_TYPE, "Transfer-Encoding": "chunked"}
    )


def results(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return cast("list[dict[str, Any]]", answer.document["files"])


def said(answer: Answer) -> list[tuple[str, str]]:
    """Outcome and path of each entry; of a refused one the last part of the problem's type."""
    return [
        (str(each["outcome"]), str(each["path"]))
        if "outcome" in each
        else (str(each["problem"]["type"]).replace("#", ":").rpartition(":")[2], "")
        for each in results(answer)
    ]
