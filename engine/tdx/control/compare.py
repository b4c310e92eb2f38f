"""What of a run the receiver has already: asked before anything is sent, a chunk of the run at a time."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tdx.control.hashing import Hashed, hash_all
from tdx.control.items import Folder, Found, Item, LeftOut, Link, Part, PartEnded
from tdx.control.progress import PushResult, Tally
from tdx.control.tree_requests import MAX_TIME, Entry, FileState, NoTrees, TreeRequests, Verdict
from tdx.errors import TdxError, UnknownPeer, Unreachable
from tdx.model import Outcome
from tdx.proto.tree import MAX_ENTRIES
from tdx.store.roots import Roots

if TYPE_CHECKING:
    import os

    from tdx.control.push import PushOptions
    from tdx.control.sender import Sender
    from tdx.data.entries import SmallFile

COLLECTED_FOR: Final = 2.0
"""Seconds after which a slow walk is not waited for any longer: the receiver is asked of what there is."""

SAVED_AT: Final = 4096
"""Roots are written down when there are so many new ones, and at the end."""

TOO_OLD: Final = "which this peer is too old to take"


@dataclass(frozen=True, slots=True)
class Known:
    """A file that needs no sending: the receiver has it, skips it, or refuses it."""

    item: Item
    outcome: PushResult | TdxError


@dataclass(frozen=True, slots=True)
class Unknown:
    """A file that the receiver may have: it is to be read first (:meth:`Comparison.settle`)."""

    item: Item


Step = Item | Known | Unknown | PartEnded | LeftOut
"""What is to be done about one entry; an :class:`Item` is to be sent."""


class Comparison:
    """Says what is to be done about the entries of a run.

    ``in_vain`` is why nothing more is worth a try, once that is known: the peer could not be reached, or
    did not answer, however often it was asked.
    """

    def __init__(self, sender: Sender, options: PushOptions, roots: Roots) -> None:
        self.in_vain: TdxError | None = None
        self._workers = sender.workers
        self._requests = TreeRequests(sender.client, options.conflict, sender.pace)
        self._roots = roots
        self._state = options.state
        # Another digest than ours is to be verified in what arrives: so it has to arrive.
        self._compares_files = options.digest is None
        self._too_old = False
        self._ended = False
        self._folders: dict[str, Folder] = {}
        self._disturbed: set[str] = set()
        """Folders in which something is made, which sets their times."""
        self._filled: set[str] = set()
        """Folders that are made because something in them is, at an older receiver."""

    async def next(self, found: asyncio.Queue[list[Found]]) -> list[Step]:
        """What to do about the entries that come next out of ``found``, in their order; nothing at the end,
        which is an empty list there."""
        while not self._ended:
            if steps := await self._steps(await self._collect(found)):
                return steps
        return []

    async def _collect(self, found: asyncio.Queue[list[Found]]) -> list[Found]:
        """As many as one request takes, or as there are after a while."""
        loop = asyncio.get_running_loop()
        chunk = await found.get()
        self._ended = not chunk
        until = loop.time() + COLLECTED_FOR
        while not self._ended and len(chunk) < MAX_ENTRIES:
            try:
                async with asyncio.timeout_at(until):
                    some = await found.get()
            except TimeoutError:
                break
            self._ended = not some
            chunk += some
        return chunk

    async def _steps(self, chunk: Sequence[Found]) -> list[Step]:
        files = [each for each in chunk if isinstance(each, Item) and self._comparable(each)]
        statuses = [each.status for each in files if each.status is not None]
        known = await self._workers.on_disk(self._roots.known, statuses) if statuses else []
        states = {
            item: _state_of(item.name, status, root)
            for item, status, root in zip(files, statuses, known, strict=True)
        }
        entries: dict[Found, Entry] = {}
        for each in chunk:
            if isinstance(each, Folder):
                self._folders[each.name] = each
            if isinstance(each, Folder | Link):
                entries[each] = each
            elif isinstance(each, Item) and each in states:
                entries[each] = states[each]
        verdicts = await self._ask(entries)
        return [step for each in chunk if (step := self._step(each, entries.get(each), verdicts)) is not None]

    def _comparable(self, item: Item) -> bool:
        status = item.status
        if status is None or item.error is not None or not self._compares_files:
            return False
        return stat.S_ISREG(status.st_mode) and abs(status.st_mtime_ns) <= MAX_TIME

    async def _ask(self, entries: dict[Found, Entry]) -> dict[Found, Verdict]:
        """None for those that nothing is known of: files are sent then as if they had not been asked of, and
        meet by themselves what went wrong."""
        if not entries or self._too_old:
            return {}
        try:
            verdicts = await self._requests.ask(list(entries.values()))
        except NoTrees:
            self._too_old = True
            return {}
        except TdxError as error:
            if isinstance(error, UnknownPeer | Unreachable) or not error.permanent:
                self.in_vain = error
            failed = Verdict("failed", error=error)
            return {each: failed for each in entries if isinstance(each, Folder | Link)}
        return dict(zip(entries, verdicts, strict=True))

    def _step(self, each: Found, entry: Entry | None, verdicts: dict[Found, Verdict]) -> Step | None:
        if isinstance(each, LeftOut):
            return each
        verdict = verdicts.get(each)
        if isinstance(each, Folder | Link):
            return self._part(each, verdict)
        if verdict is None or not isinstance(entry, FileState):
            self._is_sent(each)
            return each
        return self._file(each, entry, verdict)

    def _part(self, part: Part, verdict: Verdict | None) -> Step | None:
        if verdict is None:
            # Folders are told of at the end, where it is known which come to be by what is in them.
            return LeftOut(part.path, f"is a symbolic link, {TOO_OLD}") if isinstance(part, Link) else None
        if verdict.kind == "made":
            self._disturb(part.name)
        return _ended(part, verdict)

    def _file(self, item: Item, state: FileState, verdict: Verdict) -> Step:
        kind, path = verdict.kind, verdict.path or item.name
        if kind == "failed":
            # What may pass is met by the file itself, and its retries.
            if verdict.error is not None and verdict.error.permanent:
                return Known(item, verdict.error)
        elif kind == "skipped":
            return Known(item, _result(Outcome.SKIPPED, item.name, path, state))
        elif state.root is not None and kind in ("same", "made"):
            return Known(item, _result(Outcome.IDENTICAL, item.name, path, state))
        elif state.root is None and kind != "send":
            # Nobody's word counts for what has not been read.
            return Unknown(item)
        self._is_sent(item)
        return item

    async def settle(self, items: Sequence[Item], tally: Tally) -> list[Step]:
        """Read these files, and ask again."""
        tally.phase = "checking"
        hashed = await hash_all(self._workers, items, self._state, tally.add_checked)
        entries: dict[Found, Entry] = {}
        for item in items:
            if (found := hashed.get(item)) is not None:
                entries[item] = _state_of(item.name, found.status, found.root)
                self._remember(found)
        verdicts = await self._ask(entries)
        steps = [self._step(item, entries.get(item), verdicts) for item in items]
        await self.save(SAVED_AT)
        return [step for step in steps if step is not None]

    async def finish(self) -> list[PartEnded | LeftOut]:
        """Once all that is sent has arrived: tell the folders again that something was made in, for that has
        set their times. What could not be done, and what is left out after all."""
        if self._too_old:
            missing = [each for name, each in self._folders.items() if name not in self._filled]
            return [LeftOut(each.path, f"is an empty folder, {TOO_OLD}") for each in missing]
        told: list[Folder] = [each for name, each in self._folders.items() if name in self._disturbed]
        told.sort(key=lambda folder: -folder.name.count("/"))
        verdicts = await self._ask({each: each for each in told})
        ended = [_ended(each, verdicts[each]) for each in told if each in verdicts]
        return [each for each in ended if each.error is not None]

    # --- what is remembered -----------------------------------------------------

    def sent_together(self, outcomes: Mapping[SmallFile, PushResult | TdxError]) -> None:
        """These have been read and sent."""
        for file, outcome in outcomes.items():
            if file.settled and file.status is not None and isinstance(outcome, PushResult) and outcome.root:
                self._roots.remember(file.status, outcome.root)

    def _remember(self, hashed: Hashed) -> None:
        if hashed.settled:
            self._roots.remember(hashed.status, hashed.root)

    async def save(self, least: int) -> None:
        """Write down what is remembered, if it is that many."""
        if self._roots.unsaved >= least:
            await self._workers.on_disk(self._roots.save)

    async def close(self) -> None:
        """Write down all of it."""
        await self._workers.on_disk(self._roots.close)

    # --- what is disturbed ------------------------------------------------------

    def _is_sent(self, item: Item) -> None:
        if item.error is not None:
            return
        self._disturb(item.name)
        above = item.name.rpartition("/")[0]
        while self._too_old and above and above not in self._filled:
            self._filled.add(above)
            above = above.rpartition("/")[0]

    def _disturb(self, name: str) -> None:
        self._disturbed.add(name.rpartition("/")[0])


def _state_of(name: str, status: os.stat_result, root: str | None) -> FileState:
    return FileState(name, status.st_size, status.st_mtime_ns, status.st_mode & 0o777, root)


def _result(outcome: Outcome, name: str, path: str, state: FileState) -> PushResult:
    root = state.root if outcome is Outcome.IDENTICAL else None
    return PushResult(outcome, name, path, state.size, 0, 0, 0, 0.0, root)


def _ended(part: Part, verdict: Verdict) -> PartEnded:
    if verdict.error is not None:
        return PartEnded(part, "failed", error=verdict.error)
    return PartEnded(part, verdict.kind, verdict.path or part.name)
