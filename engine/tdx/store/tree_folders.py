"""The folders of a tree: made where they are missing, and given their attributes once nothing more is made
in them."""

from __future__ import annotations

from collections.abc import Sequence

from tdx.errors import TdxError
from tdx.model import Conflict
from tdx.proto.tree import FolderEntry, Verdict
from tdx.store import attributes
from tdx.store.changes import Changes
from tdx.store.paths import WALKS
from tdx.store.port import GoOn, Told
from tdx.store.publish_context import PublishContext
from tdx.store.rules import OWNER_BITS
from tdx.store.tree_entries import Tell, by_folder

Listed = tuple[int, FolderEntry]
"""An entry and its place in the request."""


class TreeFolders:
    """The folders of one request: :meth:`make`, then :meth:`give_attributes`."""

    def __init__(
        self,
        context: PublishContext,
        conflict: Conflict,
        folders: Sequence[Listed],
        changes: Changes,
        go_on: GoOn,
        tell: Tell,
    ) -> None:
        self._context = context
        self._system = context.system
        self._tree = context.tree
        self._conflict = conflict
        self._changes = changes
        self._go_on = go_on
        self._tell = tell
        # From the top, so that each is made for its own entry and not on the way to another one.
        self._folders = sorted(folders, key=lambda each: each[1].name.count("/"))
        self._made: set[str] = set()
        self._refused: set[int] = set()

    def make(self) -> None:
        for above, folders in by_folder(self._folders).items():
            self._go_on()
            waiting, walks = folders, WALKS
            try:
                while waiting:
                    walks -= 1
                    waiting = self._make_in(above, waiting, last=not walks)
            except (TdxError, OSError) as error:
                self._refuse(folders, error)

    def _make_in(self, above: str, folders: Sequence[Listed], *, last: bool) -> list[Listed]:
        """Make these. Those that are yet to be, since somebody who tidies up has removed them, or what they
        lie in, meanwhile: none where this is the ``last`` try."""
        left: list[Listed] = []
        with self._tree.parent(folders[0][1].name, make=True, unsynced=self._changes.unsynced) as (fd, _):
            self._changes.entered(above.rstrip("/"))
            for place, entry in folders:
                try:
                    self._make(fd, entry.name[len(above) :], entry)
                except FileNotFoundError as error:
                    if last:
                        self._refuse([(place, entry)], error)
                    else:
                        left.append((place, entry))
                except (TdxError, OSError) as error:
                    self._refuse([(place, entry)], error)
        return left

    def _make(self, fd: int, leaf: str, entry: FolderEntry) -> None:
        self._context.names.check_doubt(entry.name)
        missing = self._tree.look_in(fd, leaf, entry.name) is None
        inner = self._tree.enter(fd, leaf, entry.name, make=True, unsynced=self._changes.unsynced)
        self._system.close(inner)
        self._changes.entered(entry.name)
        if missing:
            self._made.add(entry.name)

    def give_attributes(self) -> None:
        """And say of each folder what came of it. One that somebody has removed since was there."""
        for above, folders in by_folder(self._folders).items():
            waiting = [each for each in folders if each[0] not in self._refused]
            if not waiting:
                continue
            try:
                with self._tree.parent(waiting[0][1].name) as (fd, _):
                    for place, entry in waiting:
                        self._give_one(fd, entry.name[len(above) :], place, entry)
            except FileNotFoundError:
                for place, entry in waiting:
                    self._tell(place, Told(Verdict.MADE, entry.name))
            except (TdxError, OSError) as error:
                self._refuse(waiting, error)

    def _give_one(self, fd: int, leaf: str, place: int, entry: FolderEntry) -> None:
        try:
            self._tell(place, Told(self._give(fd, leaf, entry), entry.name))
        except FileNotFoundError:
            self._tell(place, Told(Verdict.MADE, entry.name))
        except (TdxError, OSError) as error:
            self._refuse([(place, entry)], error)

    def _give(self, fd: int, leaf: str, entry: FolderEntry) -> Verdict:
        made = entry.name in self._made
        verdict = Verdict.MADE if made else Verdict.SAME
        inner = self._tree.enter(fd, leaf, entry.name)
        try:
            found, mode = self._system.fstat(inner), entry.mode | OWNER_BITS
            if not made and self._conflict is Conflict.SKIP:
                return verdict
            if attributes.differ(found, mode, entry.mtime_ns) and attributes.give(
                self._system, inner, found, mode, entry.mtime_ns
            ):
                self._changes.folder(entry.name)
                verdict = Verdict.MADE
        finally:
            self._system.close(inner)
        return verdict

    # --- each and all ---------------------------------------------------------------------

    def _refuse(self, folders: Sequence[Listed], error: TdxError | OSError) -> None:
        for place, _ in folders:
            if place not in self._refused:
                self._refused.add(place)
                self._tell(place, error)
