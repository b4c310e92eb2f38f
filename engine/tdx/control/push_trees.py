"""Pushing trees: folders and links too, and nothing of what the receiver has already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from tdx.control.compare import SAVED_AT, Comparison, Known, Step, Unknown
from tdx.control.items import Ended, Found, Item, LeftOut, PartEnded, Watch
from tdx.control.progress import Tally
from tdx.control.push import PushOptions
from tdx.control.push_many import ManyPushes
from tdx.errors import TdxError
from tdx.proto.tree import MAX_ENTRIES
from tdx.store.roots import Roots

if TYPE_CHECKING:
    from tdx.control.push_bundle import FileOutcome
    from tdx.control.sender import Sender
    from tdx.data.entries import SmallFile

READ_FILES: Final = MAX_ENTRIES
READ_BYTES: Final = 1 << 30
"""After so many files, or bytes, had to be read because the receiver may have them, it is asked again."""

T = TypeVar("T")


class TreePushes(ManyPushes):
    """One run in which the receiver is asked first what it has already (:mod:`tdx.control.compare`)."""

    def __init__(self, sender: Sender, options: PushOptions, watch: Watch) -> None:
        roots = Roots(options.state, time.time())
        super().__init__(sender, replace(options, roots=roots), watch)
        self._comparison = Comparison(sender, self._options, roots)
        self._asking: asyncio.Task[object] | None = None
        self._reading = asyncio.Lock()
        self._differing: list[Item] = []
        """Files that were read, and have to be sent."""

    async def run(self, items: Iterable[Found]) -> None:
        try:
            await super().run(items)
        finally:
            if self._stopped is not None:
                self._give_up(self._differing, self._stopped)
            await self._comparison.close()

    def _cancel(self) -> None:
        super()._cancel()
        if self._asking is not None:
            self._asking.cancel()

    async def _take_all(self, found: asyncio.Queue[list[Found]]) -> None:
        while not self._over() and (steps := await self._asked(self._comparison.next(found))):
            self._hopeless = self._hopeless or self._comparison.in_vain
            await self._take_steps(steps)
        # What is found to differ goes on its way while others are still read.
        while not self._over():
            await self._take_differing()
            await self._take_up_waiting()
            if not self.running:
                break
            self._watch.flush()
            await asyncio.wait(list(self.running), return_when=asyncio.FIRST_COMPLETED)
        if self._in_vain is None and not self._over():
            self._tell(await self._asked(self._comparison.finish()) or [])

    async def _asked(self, asking: Coroutine[object, object, T]) -> T | None:
        """Await what the receiver is asked; None where the run is over before that."""
        self._asking = task = asyncio.create_task(asking)
        try:
            return await task
        except asyncio.CancelledError:
            if not self._over():
                raise
            return None
        finally:
            self._asking = None

    async def _take_steps(self, steps: Sequence[Step]) -> None:
        """What needs no sending comes first, so that it waits for nothing."""
        self._tell([each for each in steps if isinstance(each, PartEnded | LeftOut)])
        self._end_known([each for each in steps if isinstance(each, Known)], begin=True)
        for group in _groups(each.item for each in steps if isinstance(each, Unknown)):
            for item in group:
                self._watch.started(item)
            size = sum(item.size or 0 for item in group)
            await self._start(self._read, group, Tally(total=size, phase="checking"), None)
        await self._take_differing()
        for step in steps:
            if self._over():
                return
            if isinstance(step, Item):
                self._watch.started(step)
                await self._take_up(step)
                await self._comparison.save(SAVED_AT)

    async def _read(self, items: Sequence[Item], tally: Tally) -> None:
        """Find out whether the receiver has these. One group is read after the other."""
        try:
            async with self._reading:
                steps = await self._comparison.settle(items, tally)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            self._give_up(items, self._stopped)
            return
        self._end_known([each for each in steps if isinstance(each, Known)])
        self._differing += [each for each in steps if isinstance(each, Item)]
        self._watch.flush()

    async def _take_differing(self) -> None:
        while self._differing and not self._over():
            await self._take_up(self._differing.pop(0))

    # --- telling ----------------------------------------------------------------

    def _tell(self, what: Iterable[PartEnded | LeftOut]) -> None:
        ended: list[PartEnded] = []
        for each in what:
            if isinstance(each, LeftOut):
                self._watch.left_out(each)
            else:
                ended.append(each)
        if ended:
            self._watch.parts_ended(ended)

    def _end_known(self, known: Sequence[Known], *, begin: bool = False) -> None:
        if begin:
            for each in known:
                self._watch.started(each.item)
        if known:
            self._sender.count_known(each.outcome for each in known)
            self._end([_ending(each.item, each.outcome) for each in known])

    def _remember(self, outcomes: Mapping[SmallFile, FileOutcome]) -> None:
        self._comparison.sent_together(outcomes)


def _ending(item: Item, outcome: FileOutcome) -> Ended:
    if isinstance(outcome, TdxError):
        return Ended(item, item.size, 0, 0, 0.0, error=outcome)
    return Ended(item, item.size, 0, 0, 0.0, outcome)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += item.size or 0
        if len(group) == READ_FILES or size >= READ_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
