"""One body of a file on its way to an upload: what it has brought, and whether that counts."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from tdx.control.messages import digests_differ
from tdx.control.stored import digest_stored
from tdx.metrics import Metrics
from tdx.model import Claim, Span, Stages
from tdx.store.port import Piece, Upload


@dataclass(slots=True)
class Received:
    """What one body brought, and where the time went."""

    stages: Stages = field(default_factory=Stages)
    bytes: int = 0

    def add(self, other: Received) -> None:
        self.stages.add(other.stages)
        self.bytes += other.bytes


class Judgement:
    """Holds back the pieces of one body until all of it is known to have the digests claimed of it (RFC 9530
    Content-Digest), so that nobody is told an offset that is taken back. Without a claim, nothing."""

    def __init__(self, upload: Upload, metrics: Metrics, claims: Sequence[Claim] = ()) -> None:
        self._upload = upload
        self._metrics = metrics
        self._claims = claims
        self._pieces: list[Piece] = []

    def record(self, piece: Piece) -> None:
        if self._claims:
            self._pieces.append(piece)
        else:
            self._upload.record(piece)

    @contextlib.contextmanager
    def passed(self, start: int, received: Received) -> Generator[None]:
        """Around the receiving of a body that goes to ``start``. DigestMismatch where it came whole and lacks
        a digest: nothing of it is held. Of one that breaks off nothing can be said: what came is held."""
        try:
            yield
        except BaseException:
            self._hold()
            raise
        self.check(Span(start, start + received.bytes) if received.bytes else None)
        self._hold()

    def _hold(self) -> None:
        for piece in self._pieces:
            self._upload.record(piece)

    def check(self, span: Span | None) -> None:
        """DigestMismatch where what is stored there, which is read again, lacks a digest; None: no bytes."""
        for claim in self._claims:
            if digest_stored(self._upload, span, claim.algorithm) != claim.digest:
                self._metrics.digest_failures.add(1)
                raise digests_differ(claim.algorithm, claim.digest)
