"""What every handler of the receiver works with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tdx.config import ServeConfig
from tdx.control.replays import Replays
from tdx.control.sessions import Sessions
from tdx.control.throttle import Throttle
from tdx.control.workers import Workers
from tdx.identity.registry import Identities
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.policy.admission import Admission, Limits
from tdx.policy.rules import Policy
from tdx.store.port import Partial, Store


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
    throttle: Throttle = field(default_factory=Throttle)
    names: frozenset[str] = frozenset()
    """What this machine is called on its meshes, in lower case."""

    def expire(self) -> list[Partial]:
        """Remove abandoned uploads; what was removed. Blocks."""
        return self.store.expire(time.time())

    @property
    def limits(self) -> Limits:
        return self.config.limits
