"""What the bodies of an upload, or of a bundle, have brought, and what of it is not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field

from tdx.control.messages import FileBody
from tdx.data.port import Cancel
from tdx.errors import ConnectionLost, DigestMismatch, Stalled, TdxError
from tdx.metrics import Discard, Metrics
from tdx.model import Stages


@dataclass(slots=True)
class Received:
    """What one body, or several, brought, and where the time went. Of ``bytes``, ``settled`` are those whose
    fate is known: held, written for an extent that other bodies bring the rest of, or counted as not kept."""

    stages: Stages = field(default_factory=Stages)
    bytes: int = 0
    settled: int = 0

    def add(self, other: Received) -> None:
        self.stages.add(other.stages)
        self.bytes += other.bytes
        self.settled += other.settled


def held_back(stages: Stages, body: FileBody | None) -> Stages:
    """The seconds of a body, of which a rate limit has held some back while it was read."""
    spent = Stages()
    spent.add(stages)
    if body is not None:
        spent.limit += body.held
        spent.receive -= min(body.held, spent.receive)
    return spent


@contextlib.contextmanager
def accounting(received: Received, metrics: Metrics, cancel: Cancel) -> Generator[None]:
    """Around the receiving of one body, and the judging of it: whatever of it is not settled at the end is
    counted as not kept, by what ended it."""
    try:
        yield
    except BaseException as error:
        metrics.discard(received.bytes - received.settled, reason_for(error, cancel))
        raise
    metrics.discard(received.bytes - received.settled, Discard.MISMATCH)


def reason_for(error: BaseException, cancel: Cancel) -> Discard:
    """Why bytes are not kept, of a body that ended with ``error``."""
    if isinstance(error, DigestMismatch):
        return Discard.MISMATCH
    stopped = cancel.reason is not None or isinstance(error, ConnectionLost | Stalled)
    return Discard.REFUSED if isinstance(error, TdxError) and not stopped else Discard.BROKEN_OFF
