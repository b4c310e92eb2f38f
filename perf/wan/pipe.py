"""One direction of a link: what happens to each packet, and when. Pure; the time is an argument."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MTU: Final = 1500
LEAST_QUEUE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Conditions:
    """A link, the same in both directions. ``rate`` is in bytes of IP packets per second, ``delay`` in
    seconds one way, ``loss`` the share of packets lost, ``queue`` in bytes of packets that wait for their
    turn: one that finds no room is dropped. Which packets of a direction are lost is up to ``seed``."""

    rate: float
    delay: float
    loss: float = 0.0
    queue: int | None = None
    seed: int = 1

    @property
    def room(self) -> int:
        """``queue``, or else what the link carries in a round trip, and 64 KiB at least."""
        return max(LEAST_QUEUE, int(self.rate * self.delay * 2)) if self.queue is None else self.queue


class Pipe:
    """Packets in at one end, and out at the other.

    A packet waits until those before it have been sent, takes its time at the link's rate, may be lost on the
    way, and arrives ``delay`` later.
    """

    def __init__(self, conditions: Conditions, *, seed: int) -> None:
        self.lost = self.overflowed = self.delivered = self.bytes = self.most_waiting = 0
        """Packets lost, dropped for want of room, delivered; bytes delivered; the most that waited."""
        self._seconds = 1.0 / conditions.rate
        self._delay = conditions.delay
        self._loss = conditions.loss
        self._room = conditions.room * self._seconds
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._way: deque[tuple[float, bytes]] = deque()

    def enter(self, packets: Sequence[bytes], now: float) -> None:
        """They have come at ``now`` (monotonic seconds), in this order."""
        free_at = max(self._free_at, now)
        latest = now + self._room
        loss, chance, way = self._loss, self._random.random, self._way
        for packet in packets:
            sent = free_at + len(packet) * self._seconds
            if sent > latest:
                self.overflowed += 1
                continue
            free_at = sent
            if loss and chance() < loss:
                self.lost += 1
            else:
                way.append((sent + self._delay, packet))
        self._free_at = free_at
        self.most_waiting = max(self.most_waiting, round((free_at - now) / self._seconds))

    def leave(self, now: float) -> Iterator[bytes]:
        """Those that have arrived by ``now``, in the order in which they came."""
        way = self._way
        while way and way[0][0] <= now:
            packet = way.popleft()[1]
            self.delivered += 1
            self.bytes += len(packet)
            yield packet

    @property
    def next_at(self) -> float | None:
        """When the next packet arrives; None while none is under way."""
        return self._way[0][0] if self._way else None
