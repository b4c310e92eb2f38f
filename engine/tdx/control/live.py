"""A transfer as it stands at one moment, for whoever watches a receiver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tdx.model import FileName, Owner, Stages, UploadId
from tdx.policy.bottleneck import name_bottleneck

Phase = Literal["receiving", "comparing", "publishing", "waiting"]


def is_active(phase: Phase) -> bool:
    """Whether something goes on: others are open, and their senders may come back."""
    return phase != "waiting"


@dataclass(frozen=True, slots=True)
class Live:
    """One upload, or one bundle of small files, which has neither ``upload`` nor ``name``.

    ``peer`` is the machine that opened it, as the network names it, if that is known. ``size`` is in bytes,
    of a bundle that of its body; None while it is unknown. ``began`` is when the newest run opened it, on the
    loop's clock. ``received`` are the bytes that came since, those of bodies on their way included;
    ``resumed`` what was held before, ``held`` what is now. ``stages`` are the receiver's seconds in this run,
    ``sender_stages`` the sender's, as far as it has told (None: nothing). ``streams`` is how many bodies are
    on their way, ``silent_for`` for how many seconds none of them has brought a byte. ``files``: of how many
    of a bundle it is known by now what becomes of them.
    """

    upload: UploadId | None
    peer: str | None
    owner: Owner
    name: FileName | None
    size: int | None
    protocol: str
    began: float
    received: int
    resumed: int
    held: int
    stages: Stages
    sender_stages: Stages | None
    streams: int
    silent_for: float
    phase: Phase
    files: int = 0

    @property
    def active(self) -> bool:
        return is_active(self.phase)

    @property
    def bottleneck(self) -> str | None:
        """What it waits for; None: too short to tell."""
        return name_bottleneck(self.sender_stages, self.stages)
