"""Runs of many files, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tdx.control.items import Ended, Found, Item, LeftOut, PartEnded
from tdx.control.push import PushOptions
from tdx.control.push_many import ManyPushes
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions
from tdx.metrics import Metrics


@dataclass
class Seen:
    """What a run told. ``on_started`` is called with each file, before it is noted."""

    names: list[str] = field(default_factory=list)
    endings: dict[str, Ended] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    parts: list[PartEnded] = field(default_factory=list)
    on_started: Callable[[Item], None] = lambda _: None
    on_ended: Callable[[Sequence[Ended]], None] = lambda _: None

    def left_out(self, what: LeftOut) -> None:
        self.left.append(what.path)

    def started(self, item: Item) -> None:
        self.on_started(item)
        self.names.append(item.name)

    def ended(self, endings: Sequence[Ended]) -> None:
        self.on_ended(endings)
        for each in endings:
            assert each.item.name not in self.endings
            self.endings[each.item.name] = each

    def parts_ended(self, endings: Sequence[PartEnded]) -> None:
        self.parts += endings

    def flush(self) -> None:
        """Nothing is held back."""

    def errors(self) -> dict[str, str]:
        """The codes of those that failed."""
        return {
            name: getattr(each.error, "code", repr(each.error))
            for name, each in self.endings.items()
            if each.error is not None
        }


def items_of(paths: Iterable[Path], folder: Path | None = None) -> list[Item]:
    """Files by their names, or by their paths in ``folder``."""
    return [
        Item(
            str(path),
            path.name if folder is None else str(path.relative_to(folder)),
            path.stat().st_size if path.exists() else None,
        )
        for path in paths
    ]


def push_many(
    peer: Peer,
    items: Iterable[Found],
    state: Path,
    *,
    compare: bool = False,
    seen: Seen | None = None,
    sender: SenderOptions | None = None,
    metrics: Metrics | None = None,
    during: Callable[[ManyPushes], None] = lambda _: None,
    **options: object,
) -> Seen:
    """One run, start to end, on a loop of its own; ``during`` gets it before it begins."""
    watch = seen or Seen()

    async def go() -> None:
        async with Sender(peer, sender or SenderOptions(stall_timeout=10.0), metrics) as pushing:
            run = pushing.many(PushOptions(state=state, **options), watch, compare=compare)  # type: ignore[arg-type]
            during(run)
            await run.run(items)

    asyncio.run(go())
    return watch
