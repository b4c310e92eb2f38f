"""How many connections a receiver takes on at once, and its other limits."""

from __future__ import annotations

from dataclasses import dataclass

from tdx.errors import Busy
from tdx.model import Owner


@dataclass(frozen=True, slots=True)
class Limits:
    """What one receiver takes. Times in seconds, sizes in bytes.

    ``max_strangers`` are the connections of which it is not known who calls, or of somebody whom
    the rules refuse: strangers, and devices that have yet to send their first request in TLS.
    ``min_body_rate`` is in bytes per second over a window of ``stall_timeout``: a body
    that trickles more slowly is cut off. ``max_file`` None: no limit but space.
    ``recheck_interval`` is how often it is asked again, during a long request, who is calling and
    whether they still may.
    """

    max_connections: int = 512
    max_connections_per_owner: int = 256
    max_strangers: int = 64
    head_timeout: float = 10.0
    idle_timeout: float = 75.0
    stall_timeout: float = 60.0
    max_file: int | None = None
    streams_per_upload: int = 64
    min_body_rate: int = 512
    recheck_interval: float = 10.0


class Admission:
    """Counts connections against :class:`Limits`.

    Connections are numbers that the caller makes up. A method that raises Busy has
    changed nothing. Not thread-safe.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connections: dict[int, Owner | None] = {}
        self._per_owner: dict[Owner, int] = {}
        self._strangers: set[int] = set()

    def connect(self, connection: int) -> None:
        """A connection was accepted. Busy: too many in all; close it."""
        if len(self._connections) >= self._limits.max_connections:
            raise Busy(f"{self._limits.max_connections} connections are open, which is the limit; try later")
        self._connections[connection] = None

    def unwelcome(self, connection: int) -> None:
        """It cannot be told who is calling, at least not yet, or the rules refuse them. Busy: too many
        such, who must not take the places of those who may push; answer so and close."""
        if len(self._strangers) >= self._limits.max_strangers:
            raise Busy(
                f"{self._limits.max_strangers} connections are open of callers who are not known or not "
                "let in, which is the limit; try later"
            )
        self._strangers.add(connection)

    def identified(self, connection: int, owner: Owner) -> None:
        """It is now known who is calling; may be told again, also another owner. Busy:
        this owner has too many; answer so and close."""
        former = self._connections[connection]
        if former == owner:
            return
        if self._per_owner.get(owner, 0) >= self._limits.max_connections_per_owner:
            raise Busy(
                f"{owner} has {self._limits.max_connections_per_owner} connections open, "
                "which is the limit for one owner; try later"
            )
        self._forget(former)
        self._strangers.discard(connection)
        self._connections[connection] = owner
        self._per_owner[owner] = self._per_owner.get(owner, 0) + 1

    def leave(self, connection: int) -> None:
        """The connection is closed; unknown ones are no error."""
        self._forget(self._connections.pop(connection, None))
        self._strangers.discard(connection)

    def _forget(self, owner: Owner | None) -> None:
        if owner is None:
            return
        self._per_owner[owner] -= 1
        if not self._per_owner[owner]:
            del self._per_owner[owner]
