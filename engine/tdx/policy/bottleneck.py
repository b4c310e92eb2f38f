"""Which part of a transfer the others wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tdx.model import Stages

SENDER_DISK: Final = "sender disk"
RECEIVER_DISK: Final = "receiver disk"
NETWORK: Final = "network"
CPU: Final = "CPU"
RATE_LIMIT: Final = "rate limit"
SENDER_OR_NETWORK: Final = "sender or network"
"""Where the sender has not said what it did."""

NAMES: Final = (SENDER_DISK, RECEIVER_DISK, NETWORK, CPU, RATE_LIMIT, SENDER_OR_NETWORK)

ENOUGH: Final = 0.2
"""Seconds of work of both ends together below which nothing is named: it would be chance."""

LONG_AFTER: Final = 2.0
"""How many times as long as the sender did anything the receiver waits where the network has the rest."""

AT_LIMIT: Final = 0.9
"""Share of a rate limit from which on the limit is what counts."""


def name_bottleneck(
    sender: Stages | None, receiver: Stages, *, rate: float | None = None, limit: float | None = None
) -> str | None:
    """The bottleneck, from the seconds that the ``sender`` and the ``receiver`` spent in each stage; ``rate``
    and ``limit`` in bytes per second. None: not known yet.

    A transfer is a pipeline with bounded buffers between its stages, so every stage but
    the slowest spends its time waiting. Only two stages contain waiting: ``send`` blocks
    while the network, or the receiver behind it, takes no more; ``receive`` blocks
    while the network, or the sender before it, brings nothing. Hence:

    - a rate that is at its limit, or a sender that spends most waiting for that: the limit;
    - a stage of the receiver that took longer than all that the sender did, its waiting included: what was
      sent lay in buffers, or the sync at the end, which nothing goes on beside, is the slow one;
    - a receiver that waited for much longer than the sender did anything: the network, which had all in its
      buffers;
    - the sender spends most in reading or hashing: it is never held up, so it is the slow
      one, by its disk or by its CPU;
    - else the sender waits in ``send``. The receiver spends most in writing and syncing,
      or in hashing, or in keeping to its own limit: it is what the sender waits for;
    - else both ends wait for what lies between them: the network (on loopback, the kernel's
      copying).

    The receiver's stages may run side by side, so they are compared with each other, not added
    up; what nobody has reported counts as zero. While the receiver has reported nothing, a
    sender that waits says nothing about what for. Of a sender that has told nothing (None, or nothing but
    zeros), what the receiver did alone tells, and where that waited, it was for one of two.
    """
    if rate is not None and limit is not None and rate >= AT_LIMIT * limit:
        return RATE_LIMIT
    sender = sender or Stages()
    if _whole(sender) + _whole(receiver) < ENOUGH:
        return None
    if not _whole(sender):
        return _slowest_there(receiver, SENDER_OR_NETWORK)
    own = sender.read + sender.hash + sender.send + sender.limit
    if max(receiver.hash, receiver.write + receiver.sync, receiver.limit) > own:
        return _slowest_there(replace(receiver, receive=0.0), NETWORK)
    if receiver.receive > LONG_AFTER * own:
        return NETWORK
    if sender.limit > max(sender.read, sender.hash, sender.send):
        return RATE_LIMIT
    if max(sender.read, sender.hash) > sender.send:
        return SENDER_DISK if sender.read >= sender.hash else CPU
    if not _whole(receiver):
        return None
    return _slowest_there(receiver, NETWORK)


def _whole(stages: Stages) -> float:
    return sum(stages.as_dict().values())


def _slowest_there(receiver: Stages, waiting: str) -> str:
    """``waiting``: what the receiver waits for where it spends most in that."""
    disk = receiver.write + receiver.sync
    slowest = max(receiver.receive, receiver.hash, disk)
    if receiver.limit > slowest:
        return RATE_LIMIT
    if slowest == disk:
        return RECEIVER_DISK
    return waiting if slowest == receiver.receive else CPU
