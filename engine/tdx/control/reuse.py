"""What an upload has in common with the file that it is to replace: found out and kept in worker threads.

Nothing relies on what was found before: each step looks at the bytes that are there now, and an extent is
recorded only when what was read of it, after the last byte was written, has its sender's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tdx.control.messages import Exchange
from tdx.control.received import Received
from tdx.control.receiver import Receiver
from tdx.control.session import Session
from tdx.control.stored import digest_at
from tdx.data.port import DescriptorSink
from tdx.errors import ProtocolError, TdxError
from tdx.integrity import BUFFER_FOR_HASHING, block_digests, extent_span
from tdx.metrics import Discard, Metrics
from tdx.model import Conflict, FileName, Span, UploadSpec
from tdx.proto import fields
from tdx.proto import patch as wire
from tdx.proto.patch import Listed
from tdx.store.port import Base, Piece, Store, Upload


async def base_size(receiver: Receiver, exchange: Exchange, spec: UploadSpec) -> int | None:
    """Bytes of the file that ``spec`` would replace and can be made from; None where the sender did not ask,
    or there is none."""
    wish = exchange.headers("tdx-base")
    if wish is None or not fields.parse_boolean(wish) or spec.conflict is not Conflict.OVERWRITE:
        return None
    if spec.length is None or spec.source_id is None:
        return None
    return await receiver.workers.on_disk(_size, receiver.store, spec.name)


def _size(store: Store, name: FileName) -> int | None:
    base = _opened(store, name)
    if base is None:
        return None
    base.close()
    return base.size


def _opened(store: Store, name: FileName) -> Base | None:
    try:
        return store.open_base(name)
    except TdxError:
        return None  # what cannot be read is no help


@dataclass(slots=True)
class Alike:
    """Holds extents of an upload against the file that it is to replace. In a worker thread."""

    store: Store
    upload: Upload
    listed: Sequence[Listed]
    go_on: Callable[[], None] = lambda: None
    size: int | None = None
    """Of the file, once it was found."""
    same: list[Span] = field(default_factory=list[Span])
    taken: int = 0

    def compare(self) -> Alike:
        base = _opened(self.store, self.upload.spec.name)
        if base is not None:
            self.size = base.size
            try:
                for index, digest in self.listed:
                    span = span_in(self.upload.spec, index)
                    if digest_at(base.read_at, span) == digest:
                        self.same.append(span)
            finally:
                base.close()
        return self

    def take(self) -> Alike:
        upload, held = self.upload, self.upload.held
        base = _opened(self.store, upload.spec.name)
        self.size = None if base is None else base.size
        try:
            for index, digest in self.listed:
                self.go_on()
                span = span_in(upload.spec, index)
                if held.covers(span):
                    if _is_recorded(upload, index, digest):
                        self.same.append(span)
                elif base is not None:
                    upload.take(base, span, self.go_on)
                    if _record_if_equal(upload, span, digest, reused=len(span)):
                        self.same.append(span)
                        self.taken += len(span)
        finally:
            if base is not None:
                base.close()
        return self


def _is_recorded(upload: Upload, index: int, digest: bytes) -> bool:
    # Seldom asked, and a snapshot is as long as the file has extents.
    return upload.digests.get(index) == digest


def _record_if_equal(upload: Upload, span: Span, digest: bytes, *, reused: int) -> bool:
    """Record the extent if what is stored of it now has this digest; ``reused`` of its bytes were here."""
    if digest_at(upload.read_at, span) != digest:
        return False
    if isinstance(upload, DescriptorSink):
        upload.wrote(span.start, len(span))
    upload.record(Piece(span, digest, reused))
    return True


def differing_blocks_in(upload: Upload, listed: list[tuple[int, memoryview]]) -> list[Span]:
    held, needed = upload.held, list[Span]()
    buffer = memoryview(bytearray(BUFFER_FOR_HASHING))
    for index, theirs in listed:
        extent = span_in(upload.spec, index)
        if held.covers(extent):
            continue
        ours = bytearray()
        for at in range(extent.start, extent.end, len(buffer)):
            part = buffer[: min(len(buffer), extent.end - at)]
            n = upload.read_at(part, at)
            ours += block_digests(part[:n])
            if n < len(part):
                break
        differing = wire.differing_blocks(extent, bytes(ours), theirs)
        needed += [extent] if sum(map(len, differing)) * 2 > len(extent) else differing
    return needed


class PatchArrival:
    """What one patch brings. ``received``, ``dropped`` and ``kept`` are called in its body's thread."""

    def __init__(self, metrics: Metrics, session: Session, came: Received, extents: range) -> None:
        """``came`` is added to."""
        self.came = came
        self._metrics = metrics
        self._upload = session.upload
        self._extents = extents
        self._protocol = (session.protocol,)
        self._brought: dict[int, int] = {}
        """Bytes of content, of the extents that are written to."""

    def received(self, n: int) -> None:
        self.came.bytes += n
        self._metrics.received_bytes.add(n, self._protocol)

    def dropped(self, n: int) -> None:
        self.came.settled += n
        self._metrics.discard(n, Discard.HELD)

    def kept(self, listed: Sequence[Listed]) -> Callable[[Span], bool]:
        held, spec = self._upload.held, self._upload.spec
        keep: dict[int, bool] = {}
        for index, _ in listed:
            if index not in self._extents:
                raise ProtocolError(f"extent {index} is not in the range that the patch lies in")
            keep[index] = not held.covers(span_in(spec, index))

        def wanted(run: Span) -> bool:
            index, last = run.start // spec.extent_size, (run.end - 1) // spec.extent_size
            if index != last or index not in keep:
                raise ProtocolError("a run of a patch lies in none of its extents")
            if keep[index]:
                self._brought[index] = self._brought.get(index, 0) + len(run)
            return keep[index]

        return wanted

    def verify(self, listed: Sequence[Listed], go_on: Callable[[], None]) -> list[Span]:
        """Read what is stored of the extents now; those that are what their sender said are recorded."""
        upload, held = self._upload, self._upload.held
        same: list[Span] = []
        for index, digest in listed:
            go_on()
            span, brought = span_in(upload.spec, index), self._brought.get(index, 0)
            reused = len(span) - brought
            if held.covers(span):
                if _is_recorded(upload, index, digest):
                    same.append(span)
            elif _record_if_equal(upload, span, digest, reused=reused):
                same.append(span)
                self.came.settled += brought
                self._metrics.reused_bytes.add(reused)
            else:
                self._metrics.digest_failures.add(1)
        return same


def span_in(spec: UploadSpec, index: int) -> Span:
    """The bytes of an extent of the upload."""
    return extent_span(index, spec.length, spec.extent_size)
