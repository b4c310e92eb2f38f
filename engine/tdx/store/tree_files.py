"""Which files of a tree are there already: by what is remembered of them, or by reading them."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Sequence
from typing import Final

from tdx.errors import Busy, Exists, TdxError, disk_failure
from tdx.integrity import Root
from tdx.model import Conflict, Owner
from tdx.proto.tree import FileEntry, Verdict
from tdx.store import attributes
from tdx.store.changes import Changes
from tdx.store.known import KnownFile, is_old, stamp_of
from tdx.store.port import GoOn, Told
from tdx.store.publish_context import PublishContext
from tdx.store.reading import extent_digests
from tdx.store.tree_entries import Tell, by_folder
from tdx.store.turn import Turn

log = logging.getLogger(__name__)

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

Listed = tuple[int, FileEntry]
"""An entry and its place in the request."""


class TreeFiles:
    """The files of one request; used once, in its ``turn``."""

    def __init__(
        self,
        context: PublishContext,
        owner: Owner,
        conflict: Conflict,
        changes: Changes,
        turn: Turn,
        go_on: GoOn,
        tell: Tell,
    ) -> None:
        self._context = context
        self._system = context.system
        self._tree = context.tree
        self._owner = owner
        self._conflict = conflict
        self._changes = changes
        self._turn = turn
        self._go_on = go_on
        self._tell = tell
        self._known: dict[str, KnownFile] = {}
        self._taken: list[Listed] = []
        """Those whose name something else has, in the mode that numbers them then."""
        self.learnt: dict[str, KnownFile] = {}
        """What has been read, by path: to be remembered once it is durable."""

    def look(self, files: Sequence[Listed], known: dict[str, KnownFile]) -> None:
        """Say of each what is to be done. ``known``: what is remembered of their paths."""
        self._known = known
        for above, some in by_folder(files).items():
            self._look_in(above, some)
        if self._taken:
            self._look_for_numbered()

    def _look_in(self, above: str, files: Sequence[Listed]) -> None:
        told = 0
        try:
            with self._tree.parent(files[0][1].name) as (fd, _):
                for place, entry in files:
                    try:
                        self._look_at(fd, entry.name[len(above) :], place, entry)
                    except (TdxError, OSError) as error:
                        self._go_on()  # whose error that may be
                        self._tell(place, error)
                    told += 1
        except FileNotFoundError:
            for place, entry in files[told:]:
                self._tell(place, Told(Verdict.SEND, entry.name))
        except (TdxError, OSError) as error:
            self._go_on()
            for place, _ in files[told:]:
                self._tell(place, error)

    def _look_at(self, fd: int, leaf: str, place: int, entry: FileEntry) -> None:
        found = self._tree.look_in(fd, leaf, entry.name)
        verdict: Verdict | None = None
        if found is None:
            verdict = Verdict.SEND
        elif self._conflict is Conflict.SKIP:
            verdict = Verdict.SKIPPED
        else:
            verdict = self._compare(fd, leaf, entry.name, entry, found)
            if verdict is None and self._conflict is Conflict.RENAME:
                self._taken.append((place, entry))
                return
            folder = stat.S_ISDIR(found.st_mode)
            if verdict is None and (folder or self._conflict is Conflict.ERROR):
                kind = "folder" if folder else "file"
                raise Exists(f"{entry.name}: a {kind} of this name is there already", path=entry.name)
        self._tell(place, Told(verdict or Verdict.SEND, entry.name))

    def _look_for_numbered(self) -> None:
        """Whether what has been numbered at an earlier push of it is the same."""
        receipts = self._context.receipts
        wanted = [(entry.name, entry.size) for _, entry in self._taken]
        with self._turn.aside():
            copies = receipts.numbered(self._owner, wanted)
            self._known = receipts.known([path for paths in copies.values() for path in paths])
        for place, entry in self._taken:
            try:
                told = self._find_copy(entry, copies.get((entry.name, entry.size), ()))
            except Busy as error:  # it can be looked at at another time
                self._go_on()
                self._tell(place, error)
            else:
                self._tell(place, told or Told(Verdict.SEND, entry.name))

    def _find_copy(self, entry: FileEntry, paths: Sequence[str]) -> Told | None:
        for path in paths:
            if path == entry.name:
                continue
            try:
                with self._tree.parent(path) as (fd, leaf):
                    found = self._tree.look_in(fd, leaf, path)
                    verdict = None if found is None else self._compare(fd, leaf, path, entry, found)
            except Busy:
                raise
            except (TdxError, OSError):
                self._go_on()
                continue  # what is in its way now is no copy
            if verdict is not None:
                return Told(verdict, path)
        return None

    # --- whether it is the same -----------------------------------------------------------

    def _compare(
        self, fd: int, leaf: str, path: str, entry: FileEntry, found: os.stat_result
    ) -> Verdict | None:
        """What is to be done where ``path`` is the same, or may be; None where it is not."""
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            return None
        if entry.root is None:
            return Verdict.ASK
        root: str | None
        known = self._known.get(path)
        if known is not None and known.holds(found) and _comparable(known.root, entry.root):
            root, durable = known.root, known.durable
        else:
            root, durable = self._read(fd, leaf, path, found, entry.root), False
        if root != entry.root:
            return None
        self._context.names.check_doubt(path)
        if self._conflict is Conflict.OVERWRITE and attributes.differ(found, entry.mode, entry.mtime_ns):
            return self._give_attributes(fd, leaf, entry, found)
        if not durable:
            self._to_sync(path)
        return Verdict.SAME

    def _read(self, fd: int, leaf: str, path: str, found: os.stat_result, wanted: str) -> str | None:
        """The root of the file, over extents as ``wanted`` has them; None where it cannot be read, or is
        being changed. Busy."""
        self._go_on()
        extent_size = Root.parse(wanted).extent_size
        now, stamp = time.time(), stamp_of(found)
        try:
            file = self._system.open(leaf, _READ, dir_fd=fd)
            try:
                if stamp_of(self._system.fstat(file)) != stamp:
                    return None
                with self._turn.aside():
                    digests = extent_digests(self._system, file, extent_size, self._go_on)
                if stamp_of(self._system.fstat(file)) != stamp:
                    return None
            finally:
                self._system.close(file)
        except OSError as error:
            if isinstance(failed := disk_failure(f"{path}: cannot be read", error), Busy):
                raise failed from error
            log.warning("%r cannot be compared with what is in a tree: %s", path, error)
            return None
        root = str(Root.over(digests, found.st_size, extent_size))
        if is_old(stamp, now):
            self.learnt[path] = KnownFile(path, stamp, root, root == wanted)
        return root

    def _give_attributes(self, fd: int, leaf: str, entry: FileEntry, found: os.stat_result) -> Verdict:
        """In place, where that changes nothing else; where it cannot be done the file is sent anew."""
        path: str = entry.name
        self.learnt.pop(path, None)  # what is told of its ctime soon holds no more
        try:
            file = self._system.open(leaf, _READ, dir_fd=fd)
        except OSError as error:
            if isinstance(failed := disk_failure(f"{path}: cannot be opened", error), Busy):
                raise failed from error
            return Verdict.SEND
        try:
            now = self._system.fstat(file)
            if stamp_of(now) != stamp_of(found) or now.st_nlink != 1:
                return Verdict.SEND
            changed = attributes.give(self._system, file, now, entry.mode, entry.mtime_ns)
        finally:
            self._system.close(file)
        self._to_sync(path)
        return Verdict.MADE if changed else Verdict.SAME

    def _to_sync(self, path: str) -> None:
        """It is to be acknowledged, and whoever put it there may not have made it durable."""
        above = path.rpartition("/")[0]
        with self._tree.parent(path, make=True, unsynced=self._changes.unsynced):
            self._changes.entered(above)
        self._changes.file(path)


def _comparable(one: str, other: str) -> bool:
    """Whether two written roots are over extents of the same size."""
    return one.rpartition(":")[0] == other.rpartition(":")[0]
