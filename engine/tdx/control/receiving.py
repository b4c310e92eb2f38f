"""One body of a file on its way to an upload: what is made of what it brings, and whether that counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager

from tdx.control.messages import digests_differ
from tdx.control.quotas import Quotas
from tdx.control.received import Received
from tdx.control.stored import digest_stored
from tdx.control.writers import Writer
from tdx.data.port import ReceiveHooks
from tdx.errors import Overrun, TooLarge
from tdx.integrity import ALGORITHM, MAX_EXTENTS
from tdx.metrics import Discard, Metrics
from tdx.model import Claim, Span
from tdx.policy.rules import largest_file
from tdx.proto.problem import INCONSISTENT_LENGTH
from tdx.store.port import Piece, Upload


class Judgement:
    """Holds back the pieces of one body until all of it is known to have the digests claimed of it (RFC 9530
    Content-Digest), so that nobody is told an offset that is taken back. Without a claim, nothing."""

    def __init__(
        self, upload: Upload, metrics: Metrics, received: Received, claims: Sequence[Claim] = ()
    ) -> None:
        self._upload = upload
        self._metrics = metrics
        self._received = received
        self._claims = claims
        self._pieces: list[tuple[Piece, int]] = []

    def record(self, piece: Piece, fresh: int) -> None:
        """``fresh`` of its bytes came with this body."""
        if self._claims:
            self._pieces.append((piece, fresh))
        else:
            self._record(piece, fresh)

    def _record(self, piece: Piece, fresh: int) -> None:
        self._upload.record(piece)
        self._received.settled += fresh

    @contextlib.contextmanager
    def passed(self, start: int) -> Generator[None]:
        """Around the receiving of a body that goes to ``start``. DigestMismatch where it came whole and lacks
        a digest: nothing of it is held. Of one that breaks off nothing can be said: what came is held."""
        try:
            yield
        except BaseException:
            self._hold()
            raise
        size = self._received.bytes
        self.check(Span(start, start + size) if size else None)
        self._hold()

    def _hold(self) -> None:
        for piece, fresh in self._pieces:
            self._record(piece, fresh)

    def check(self, span: Span | None) -> None:
        """DigestMismatch where what is stored there, which is read again, lacks a digest; None: no bytes."""
        for claim in self._claims:
            if digest_stored(self._upload, span, claim.algorithm) != claim.digest:
                self._metrics.digest_failures.add(1)
                raise digests_differ(claim.algorithm, claim.digest)


def hooks_for(
    writer: Writer,
    upload: Upload,
    metrics: Metrics,
    quotas: Quotas,
    judgement: Judgement,
    turn: Callable[[], AbstractContextManager[None]],
    *,
    protocol: str,
    expected: bytes | None,
    wrote_part: Callable[[Span], None] | None,
) -> ReceiveHooks:
    """What becomes of what a pump takes from one body. ``expected`` is the digest of what it brings;
    ``wrote_part`` is told of a part of an extent that is written, where it brings one."""
    received, grant, size = writer.received, writer.exchange.grant, upload.spec.extent_size
    most = largest_file(writer.exchange.limits, grant, MAX_EXTENTS * size)
    start, length = writer.span.start, upload.spec.length
    unknown = length is None and grant.quota is not None

    def arrived(n: int) -> None:
        received.bytes += n
        metrics.received_bytes.add(n, (protocol,))
        if length is not None and start + received.bytes > length:
            raise Overrun(f"the upload ends at {length}: it is given up", type=INCONSISTENT_LENGTH)
        if unknown:
            quotas.take(upload, grant, n)

    def discarded(n: int) -> None:
        received.settled += n
        metrics.discard(n, Discard.HELD)
        if unknown:
            quotas.take(upload, grant, -n)

    def completed(span: Span, digest: bytes) -> None:
        index = span.start // size
        if expected is not None and digest != expected:
            metrics.digest_failures.add(1)
            raise digests_differ(ALGORITHM, expected)
        if span.end > most:
            raise TooLarge(f"a file of more than {most} bytes")
        if wrote_part is None:
            judgement.record(Piece(Span(index * size, span.end), digest), len(span))
        else:
            received.settled += len(span)
            wrote_part(span)

    def broke_off(span: Span, digest: bytes) -> None:
        if writer.in_order:
            judgement.record(Piece(Span(span.start // size * size, span.end), digest), len(span))

    return ReceiveHooks(
        received=arrived,
        completed=completed,
        broke_off=broke_off,
        discarded=discarded,
        turn=turn,
        stages=received.stages,
    )
