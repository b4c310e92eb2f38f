"""What every handler of the receiver works with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tdx.config import ServeConfig
from tdx.control.live import Live, Phase, is_active
from tdx.control.on_receive import Programs
from tdx.control.replays import Replays
from tdx.control.session import Session
from tdx.control.sessions import Sessions
from tdx.control.throttle import Throttle
from tdx.control.tree_bodies import TreeBodies
from tdx.control.workers import Workers
from tdx.identity.registry import Identities
from tdx.identity.tls import TlsIdentities
from tdx.metrics import STALLED_SECONDS, Metrics
from tdx.model import Identity, Outcome, Receipt
from tdx.policy.admission import Admission, Limits
from tdx.policy.rules import Policy
from tdx.store.port import Partial, Store


class Arriving(Protocol):
    """A bundle on its way. From any thread."""

    @property
    def phase(self) -> Phase: ...

    @property
    def silent_for(self) -> float: ...

    def live(self) -> Live:
        """How it stands at this moment; among that, those two."""
        ...


@dataclass(slots=True)
class Receiver:
    """The parts of one running receiver. ``policy`` is replaced when the configuration is read again."""

    config: ServeConfig
    store: Store
    sessions: Sessions
    workers: Workers
    identities: Identities
    devices: TlsIdentities
    admission: Admission
    metrics: Metrics
    policy: Policy
    replays: Replays = field(default_factory=Replays)
    tree_bodies: TreeBodies = field(default_factory=TreeBodies)
    throttle: Throttle = field(default_factory=Throttle)
    names: frozenset[str] = frozenset()
    """What this machine is called on its meshes, in lower case."""
    arrivals: set[Arriving] = field(default_factory=set["Arriving"])
    """Bundles that are received or published now."""
    programs: Programs | None = None
    """What is run for each file that was published."""

    def live(self) -> list[Live]:
        """Every upload that is open, and every bundle that is received, as they stand at this moment. From
        any thread."""
        return [each.live() for each in self._transfers()]

    def active(self) -> int:
        """How many transfers are under way: received, compared or published now. From any thread."""
        return sum(is_active(each.phase) for each in self._transfers())

    def stalled(self) -> int:
        """How many of these have brought no byte for a while. From any thread."""
        return sum(is_active(each.phase) and each.silent_for >= STALLED_SECONDS for each in self._transfers())

    def _transfers(self) -> Iterable[Session | Arriving]:
        return *self.sessions, *list(self.arrivals)

    def published(self, receipts: Iterable[Receipt], identity: Identity | None) -> None:
        """Files have ended well just now, sent by ``identity`` (None: nobody remembers who it was). What was
        there already is no news."""
        if self.programs is not None:
            for receipt in receipts:
                if receipt.outcome is Outcome.PUBLISHED:
                    self.programs.tell(receipt, identity)

    def expire(self) -> list[Partial]:
        """Remove abandoned uploads; what was removed. Blocks."""
        return self.store.expire(time.time())

    @property
    def limits(self) -> Limits:
        return self.config.limits
