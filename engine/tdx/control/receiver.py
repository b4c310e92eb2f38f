"""What every handler of the receiver works with."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from tdx.config import ServeConfig
from tdx.control.live import Live
from tdx.control.on_receive import Programs
from tdx.control.replays import Replays
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
    """A bundle on its way."""

    @property
    def silent_for(self) -> float:
        """Seconds for which its sender has been waited for in vain. From any thread."""
        ...

    @property
    def caller(self) -> Identity: ...

    @property
    def expected(self) -> int | None:
        """Bytes of the request's body; None where nobody has said."""
        ...

    @property
    def files(self) -> int:
        """Of how many it is known by now what becomes of them."""
        ...

    def live(self) -> Live: ...


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

    def active(self) -> int:
        """How many transfers are under way: uploads that are received or published now, and bundles. From
        any thread."""
        return self.sessions.active() + len(self.arrivals)

    def stalled(self) -> int:
        """How many of these have brought no byte for a while. From any thread."""
        silent = (each.silent_for for each in list(self.arrivals))
        return self.sessions.stalled() + sum(seconds >= STALLED_SECONDS for seconds in silent)

    def live(self) -> list[Live]:
        """Every upload that is open, and every bundle that is received, as they stand at this moment."""
        return [*self.sessions.live(), *(each.live() for each in list(self.arrivals))]

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
