"""An upload as a sender of tests sees it, over plain requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from support.receiving import RunningReceiver
from support.wire import Answer, head
from tdx.integrity import digest_of


@dataclass
class Opened:
    """What POST /files/NAME answered. ``fields`` go with every request on the upload."""

    created: Answer
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(self.created.document["id"])

    @property
    def target(self) -> str:
        return self.created.headers["location"]

    @property
    def extent_size(self) -> int:
        size = self.created.document["extent_size"]
        assert isinstance(size, int)
        return size

    def range_fields(self, start: int, end: int, length: int | None) -> dict[str, object]:
        content_range = f"bytes {start}-{end - 1}/{'*' if length is None else length}"
        return {**self.fields, "Content-Range": content_range, "Content-Length": end - start}

    def range_head(self, start: int, end: int, length: int | None) -> bytes:
        return head("PUT", self.target, self.range_fields(start, end, length))

    def put(
        self,
        receiver: RunningReceiver,
        start: int,
        content: bytes,
        length: int | None,
        fields: Mapping[str, object] | None = None,
    ) -> Answer:
        """Send ``content`` as the range that begins at ``start``."""
        given = {**self.range_fields(start, start + len(content), length), **(fields or {})}
        return receiver.request("PUT", self.target, content, given)

    def digests(self, content: bytes) -> list[bytes]:
        size = self.extent_size
        return [digest_of(content[at : at + size]) for at in range(0, len(content), size)]

    def commit(
        self,
        receiver: RunningReceiver,
        content: bytes,
        *,
        digests: Sequence[bytes] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> Answer:
        """Commit ``content`` with its own digests, unless there are others."""
        body = b"".join(self.digests(content) if digests is None else digests)
        given = {**self.fields, "Upload-Length": len(content), **(fields or {})}
        return receiver.request("POST", self.target + "/commit", body, given)


def open_upload(
    receiver: RunningReceiver,
    name: str,
    length: int | None,
    fields: Mapping[str, object] | None = None,
    *,
    source: str | None = "s1",
) -> Opened:
    """Create or take over an upload. With a ``source`` as a tdx sender does, else as any client."""
    given: dict[str, object] = {"Upload-Complete": "?0"}
    if length is not None:
        given["Upload-Length"] = length
    if source is not None:
        given["Tdx-Source"] = source
    answer = receiver.request("POST", f"/files/{name}", b"", {**given, **(fields or {})})
    epoch = answer.document.get("epoch")
    return Opened(answer, {} if source is None else {"Tdx-Epoch": epoch})
