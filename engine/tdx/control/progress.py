"""What a push reports while it runs and when it ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

from tdx.errors import ProtocolError
from tdx.model import Outcome, Stages
from tdx.proto.head import Headers
from tdx.proto.stages import FIELD, format_stages, parse_stages, stages_of


@dataclass(slots=True)
class Tally:
    """Live figures of one push: bumped by its threads, read by whoever shows them.

    ``total`` is None while the length is unknown. ``phase`` is one of ``connecting``,
    ``checking`` (hashing to see whether the file, or what of it, is there already), ``sending``,
    ``committing``. ``ours`` and ``theirs`` are the stage seconds of both ends, ours those of bodies that have
    ended; the receiver's arrive with its answers.
    """

    total: int | None = None
    phase: str = "connecting"
    sent: int = 0
    resumed: int = 0
    reused: int = 0
    checked: int = 0
    retries: int = 0
    ours: Stages = field(default_factory=Stages)
    theirs: Stages = field(default_factory=Stages)
    _under_way: list[Stages] = field(default_factory=list[Stages], repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_sent(self, n: int) -> None:
        with self._lock:
            self.sent += n

    def add_reused(self, n: int) -> None:
        with self._lock:
            self.reused += n

    def add_checked(self, n: int) -> None:
        with self._lock:
            self.checked += n

    @contextlib.contextmanager
    def under_way(self) -> Generator[Stages]:
        """What the pump of one body is to add its seconds to: they count while it is on its way, and however
        it ends."""
        stages = Stages()
        with self._lock:
            self._under_way.append(stages)
        try:
            yield stages
        finally:
            with self._lock:
                self._under_way = [each for each in self._under_way if each is not stages]
                self.ours.add(stages)

    def spent(self) -> Stages:
        """``ours`` with those of bodies that are on their way."""
        whole = Stages()
        with self._lock:
            for each in (self.ours, *self._under_way):
                whole.add(each)
        return whole

    def told(self) -> list[tuple[str, str]]:
        """The field that tells the receiver of them, once there is something to tell."""
        value = format_stages(self.spent())
        return [(FIELD, value)] if value else []

    def hear(self, reported: object) -> None:
        """Add the stage seconds of an answer, ignoring what cannot be the time of a known stage."""
        self.theirs.add(stages_of(reported))

    def hear_all(self, headers: Headers) -> None:
        """The same of the answer to the end of an upload: it has those of all the run in a field, of bodies
        too that had no answer."""
        told = headers.get(FIELD.lower())
        if told is not None:
            self.theirs = self.theirs.at_least(parse_stages(told) or Stages())


@dataclass(frozen=True, slots=True)
class PushResult:
    """A push that ended well. ``sent_bytes`` counts every byte of content put on the wire,
    also those sent twice; ``resumed_bytes`` what the receiver held when it began;
    ``reused_bytes`` what it took from the file that was replaced;
    ``path`` is where the file is, relative to the receiver's folder."""

    outcome: Outcome
    name: str
    path: str
    size: int
    sent_bytes: int
    resumed_bytes: int
    reused_bytes: int
    seconds: float
    root: str | None


def receipt_of(
    document: dict[str, object],
    root: str | None,
    seconds: float,
    *,
    sent: int,
    resumed: int = 0,
    reused: int = 0,
) -> PushResult:
    """The result that a receiver's receipt and our own figures make; ProtocolError for one
    that lacks what it must have, or that names another root than what was sent."""
    get = document.get
    outcome, name, path, size = get("outcome"), get("name"), get("path"), get("size")
    try:
        ended = Outcome(str(outcome))
    except ValueError:
        raise ProtocolError(f"the peer says {outcome!r:.80}; is it a tdx receiver?") from None
    if not (isinstance(name, str) and isinstance(path, str) and isinstance(size, int) and size >= 0):
        raise ProtocolError("the peer's receipt is not one; is it a tdx receiver?")
    theirs = get("root")
    if ended is not Outcome.SKIPPED and theirs is not None and theirs != root:
        raise ProtocolError(f"the peer has {theirs!r:.80} under {path!r:.200}, what was sent is {root}")
    if ended is Outcome.SKIPPED:
        root = None  # what is there was not looked at
    return PushResult(ended, name, path, size, sent, resumed, reused, seconds, root)
