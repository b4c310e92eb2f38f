"""What every handler of the receiver works with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tdx.config import ServeConfig
from tdx.control.on_receive import Programs
from tdx.control.replays import Replays
from tdx.control.sessions import Sessions
from tdx.control.throttle import Throttle
from tdx.control.tree_bodies import TreeBodies
from tdx.control.workers import Workers
from tdx.identity.registry import Identities
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.model import Identity, Outcome, Receipt
from tdx.policy.admission import Admission, Limits
from tdx.policy.rules import Policy
from tdx.store.port import Partial, Store

if TYPE_CHECKING:
    from tdx.control.bundles import Arrival


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
    arrivals: set[Arrival] = field(default_factory=set["Arrival"])
    """The bundles that are on their way."""
    names: frozenset[str] = frozenset()
    """What this machine is called on its meshes, in lower case."""
    programs: Programs | None = None
    """What is run for each file that was published."""

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
