"""Pushing many files in one run: small ones in bundles, others by themselves, several at a time."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tdx.control.items import BUNDLED_MOST, Ended, Found, Item, LeftOut, Watch
from tdx.control.progress import PushResult, Tally
from tdx.control.push import PushOptions
from tdx.control.sending import MOST_STREAMS
from tdx.errors import TdxError, UnknownPeer, Unreachable

if TYPE_CHECKING:
    from tdx.control.push_bundle import FileOutcome
    from tdx.control.sender import Sender
    from tdx.data.entries import SmallFile

FILES_AT_ONCE: Final = 3
"""Files on their way by themselves: while one is opened or made durable, two are sent
(docs/decisions/013-several-files.md)."""

BUNDLES_AT_ONCE: Final = 2
"""The same for bundles."""

BUNDLE_BYTES: Final = 16 << 20
"""About how much goes into one bundle."""

BUNDLE_FILES: Final = 1024
"""Most files of one bundle."""

LOOKED_AT: Final = 512
"""Items that are asked for at once."""

AHEAD: Final = 32
"""How many times as many may wait to be taken up. A run no longer than that is known to its end
almost from its beginning."""


@dataclass(slots=True)
class RunTally:
    """What is known of a run as a whole. ``files`` and ``size`` (bytes) are of what has been seen
    so far, and of all of it once ``complete``; ``ended`` and ``ended_size`` of that, what has ended."""

    files: int = 0
    size: int = 0
    complete: bool = False
    ended: int = 0
    ended_size: int = 0


@dataclass(slots=True, eq=False)
class Running:
    """What is on its way: one file, or several together. ``began`` is in the loop's seconds; ``begun``:
    its task has run, and hears of a cancellation."""

    items: Sequence[Item]
    tally: Tally
    began: float
    begun: bool = False


class ManyPushes:
    """One run. Items are taken up in their order, and end in any. Folders and links are passed over: they
    are a matter of :class:`tdx.control.push_trees.TreePushes`."""

    def __init__(self, sender: Sender, options: PushOptions, watch: Watch) -> None:
        """``options`` without a name: each item has its own."""
        self.whole = RunTally()
        self.running: dict[asyncio.Task[None], Running] = {}
        self._sender = sender
        self._watch = watch
        files = FILES_AT_ONCE
        if options.streams is not None:
            files = max(1, min(files, (MOST_STREAMS - BUNDLES_AT_ONCE) // options.streams))
        self._options = options
        files = min(files, sender.pace.most_streams or files)
        self._share = min(options.most_streams, (MOST_STREAMS - BUNDLES_AT_ONCE) // files)
        self._bundles = options.digest is None
        self._alone_slots = asyncio.Semaphore(files)
        self._bundle_slots = asyncio.Semaphore(BUNDLES_AT_ONCE)
        self._turn = asyncio.Lock()
        self._small: list[Item] = []
        self._small_size = 0
        self._stopped: TdxError | None = None
        self._hopeless: TdxError | None = None
        self._failure: Exception | None = None
        self._closing = False

    async def run(self, items: Iterable[Found]) -> None:
        """Push everything. Each file that was taken up has ended when this returns or raises; it
        raises only what nobody expected, or what the watch raised."""
        found: asyncio.Queue[list[Found]] = asyncio.Queue(AHEAD)
        looking = asyncio.create_task(self._look(iter(items), found))
        try:
            await self._take_all(found)
            self._watch.flush()
            while self.running:
                await asyncio.wait(list(self.running))
        finally:
            self._closing = True
            self._cancel()
            looking.cancel()
            await asyncio.gather(looking, *self.running, return_exceptions=True)
        if self._stopped is not None:
            self._give_up(self._small, self._stopped)
        if self._failure is not None:
            raise self._failure

    def stop(self, reason: TdxError) -> None:
        """What is on its way ends with ``reason``; what has not begun is not begun."""
        self._stopped = self._stopped or reason
        self._cancel()

    # --- taking up ------------------------------------------------------------

    def _over(self) -> bool:
        return self._stopped is not None or self._failure is not None

    async def _take_all(self, found: asyncio.Queue[list[Found]]) -> None:
        """Take up what is found, to its end or until the run is over."""
        while not self._over() and (some := await found.get()):
            for each in some:
                if isinstance(each, LeftOut):
                    self._watch.left_out(each)
                elif isinstance(each, Item):
                    self._watch.started(each)
                    await self._take_up(each)
                if self._over():
                    break
        await self._take_up_waiting()

    async def _take_up_waiting(self) -> None:
        """Send what waits for others to be sent with."""
        if self._small and not self._over():
            await self._start_bundle()

    async def _look(self, items: Iterator[Found], found: asyncio.Queue[list[Found]]) -> None:
        """Walk ahead, in a thread: folders may be on a slow disk."""
        try:
            while some := await self._sender.workers.on_disk(list, itertools.islice(items, LOOKED_AT)):
                for each in some:
                    if isinstance(each, Item):
                        self.whole.files += 1
                        self.whole.size += each.size or 0
                self.whole.complete = len(some) < LOOKED_AT
                await found.put(some)
            self.whole.complete = True
        except Exception as error:
            self._failure = self._failure or error
        await found.put([])

    async def _take_up(self, item: Item) -> None:
        if item.error is not None:
            self._give_up([item], item.error)
        elif self._bundles and item.size is not None and item.size <= BUNDLED_MOST:
            self._small.append(item)
            self._small_size += item.size
            if len(self._small) == BUNDLE_FILES or self._small_size >= BUNDLE_BYTES:
                await self._start_bundle()
        else:
            # What waits to be sent together does not wait for this one, too.
            idle = self._alone_slots.locked() and not self._bundle_slots.locked()
            if self._small and (idle or not self._sender.met):
                await self._start_bundle()
            self._watch.flush()
            await self._alone_slots.acquire()
            await self._start(self._push_alone, [item], Tally(total=item.size), self._alone_slots)

    async def _start_bundle(self) -> None:
        self._watch.flush()
        await self._bundle_slots.acquire()
        items, self._small = self._small, []
        tally = Tally(total=self._small_size)
        self._small_size = 0
        if len(items) == 1:
            await self._start(self._push_small, items, tally, self._bundle_slots)
        else:
            await self._start(self._push_together, items, tally, self._bundle_slots)

    async def _start(
        self,
        push: Callable[[Sequence[Item], Tally], Awaitable[None]],
        items: Sequence[Item],
        tally: Tally,
        slots: asyncio.Semaphore | None,
    ) -> None:
        running = Running(items, tally, _now())

        async def run() -> None:
            running.begun = True
            try:
                if (error := self._in_vain) is not None:
                    self._give_up(items, error)
                elif not self._closing:
                    await push(items, tally)
            except Exception as error:
                self._failure = self._failure or error
                self._cancel()
            finally:
                # In the step that told the end: what has ended is not on its way for a moment longer.
                del self.running[task]
                if slots is not None:
                    slots.release()

        task = asyncio.create_task(run())
        self.running[task] = running
        if not self._sender.met:
            # A peer that cannot be reached is tried once, not once for each slot.
            reached = asyncio.create_task(self._sender.client.reached())
            await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()

    def _cancel(self) -> None:
        for task, running in self.running.items():
            if running.begun:  # others see by themselves that they come too late
                task.cancel()

    @property
    def _in_vain(self) -> TdxError | None:
        """Why nothing more is to be begun."""
        return self._stopped or self.hopeless

    @property
    def hopeless(self) -> TdxError | None:
        """What says that the peer could not be reached, at first or any more."""
        return self._hopeless or self._sender.client.gone

    def _give_up(self, items: Iterable[Item], error: TdxError) -> None:
        self._end([Ended(each, each.size, 0, 0, 0.0, error=error) for each in items])

    def _end(self, endings: list[Ended]) -> None:
        whole = self.whole
        whole.ended += len(endings)
        for each in endings:
            whole.ended_size += each.item.size or 0
        self._watch.ended(endings)

    # --- pushing --------------------------------------------------------------

    async def _push_alone(self, items: Sequence[Item], tally: Tally) -> None:
        await self._push_by_itself(items, tally, self._share)

    async def _push_small(self, items: Sequence[Item], tally: Tally) -> None:
        """In place of a bundle, and so over one connection, however large the file has become by now."""
        await self._push_by_itself(items, tally, 1)

    async def _push_by_itself(self, items: Sequence[Item], tally: Tally, share: int) -> None:
        (item,) = items
        began = _now()
        result: PushResult | None = None
        error: Exception | None = None
        try:
            result = await self._pushed(item, tally, share)
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            error = self._stopped
        except TdxError as raised:
            if isinstance(raised, UnknownPeer | Unreachable):
                # The other files would meet the same, each after its own wait.
                self._hopeless = raised
            error = self._stopped or raised
        except Exception as raised:
            error = raised
        size = tally.total if result is None else result.size
        ended = Ended(item, size, tally.sent, tally.resumed, _now() - began, result, error)
        ended.reused, ended.retries = tally.reused, tally.retries
        ended.ours, ended.theirs = tally.spent(), tally.theirs
        self._end([ended])
        self._watch.flush()
        if error is not None and not isinstance(error, TdxError):
            raise error

    async def _pushed(self, item: Item, tally: Tally, share: int) -> PushResult:
        most = self._options.most_streams if self._one_left() else share
        options = replace(self._options, name=item.name, most_streams=most, alone=self._one_left)
        if item.is_stdin:
            return await self._sender.push_stream(0, options, tally)
        return await self._sender.push_file(Path(item.path), options, tally)

    def _one_left(self) -> bool:
        return self.whole.complete and self.whole.files - self.whole.ended == 1

    async def _push_together(self, items: Sequence[Item], tally: Tally) -> None:
        from tdx.control.push_bundle import BundlePush, NotBundled
        from tdx.data.entries import SmallFile

        began = _now()
        # Keys that begin alike lie side by side in the receiver's index.
        stem = os.urandom(14).hex()
        files = [SmallFile(item.path, item.name, f"{stem}{at:04x}") for at, item in enumerate(items)]
        sender = self._sender
        push = BundlePush(sender.client, files, self._options.conflict, sender.pace, tally, self._turn)
        left = dict(zip(items, files, strict=True))
        try:
            await push.run()
            left = self._end_together(left, push.outcomes, tally, began)
        except NotBundled:
            self._bundles = False
        except asyncio.CancelledError:
            if self._stopped is None:
                raise
            left = self._end_together(left, push.outcomes, tally, began)
        finally:
            self._sender.count_bundle(push.outcomes.values(), tally)
        # What is no matter for a bundle, and what an older receiver is to get one by one.
        for item in left:
            if (error := self._in_vain) is not None:
                self._give_up([item], error)
            else:
                await self._push_small([item], Tally(total=item.size))
        self._watch.flush()

    def _end_together(
        self, files: dict[Item, SmallFile], outcomes: dict[SmallFile, FileOutcome], tally: Tally, began: float
    ) -> dict[Item, SmallFile]:
        """Tell how each file ended; those that have no outcome yet."""
        seconds = _now() - began
        self._remember(outcomes)
        endings: list[Ended] = []
        left: dict[Item, SmallFile] = {}
        for item, file in files.items():
            outcome = outcomes.get(file)
            if outcome is None:
                left[item] = file
            elif isinstance(outcome, TdxError):
                if isinstance(outcome, UnknownPeer | Unreachable):
                    self._hopeless = outcome
                endings.append(
                    Ended(item, file.size or item.size, file.sent, 0, seconds, None, outcome, together=True)
                )
            else:
                endings.append(Ended(item, file.size, file.sent, 0, seconds, outcome, None, together=True))
        ours, sent = tally.spent(), sum(each.sent for each in endings)
        for at, each in enumerate(endings):
            each.ours, each.theirs, each.retries = ours, tally.theirs, 0 if at else tally.retries
            each.share = each.sent / sent if sent else 1 / len(endings)
        self._end(endings)
        self._watch.flush()
        return left

    def _remember(self, outcomes: Mapping[SmallFile, FileOutcome]) -> None:
        """What has been read and sent, with what became of it."""


def _now() -> float:
    return asyncio.get_running_loop().time()
