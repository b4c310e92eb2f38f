"""One request about entries of a tree: what is made, in which order, and how all of it is made durable.

Folders come first, then links, which both change the times of the folders they lie in; then files are
looked at, and at last folders get their attributes. One sync makes all of it durable before anything is said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tdx.errors import TdxError, disk_failure
from tdx.model import Conflict, Owner
from tdx.proto.tree import Entry, FileEntry, FolderEntry, LinkEntry
from tdx.store.changes import Changes
from tdx.store.port import GoOn, Told
from tdx.store.publish_context import PublishContext
from tdx.store.tree_files import TreeFiles
from tdx.store.tree_folders import TreeFolders
from tdx.store.tree_links import TreeLinks
from tdx.store.turn import Turn

log = logging.getLogger(__name__)


class TreeRequest:
    """See :meth:`tdx.store.port.Store.take_entries`; used once."""

    def __init__(
        self,
        context: PublishContext,
        owner: Owner,
        conflict: Conflict,
        entries: Sequence[Entry],
        go_on: GoOn,
    ) -> None:
        self._context = context
        self._entries = entries
        self._turn = Turn(context.turns)
        self._results: list[Told | TdxError | None] = [None] * len(entries)
        self._changes = changes = Changes(context)
        folders = [(place, each) for place, each in enumerate(entries) if isinstance(each, FolderEntry)]
        self._folders = TreeFolders(context, conflict, folders, changes, go_on, self._tell)
        self._links = TreeLinks(context, conflict, changes, go_on, self._tell)
        self._files = TreeFiles(context, owner, conflict, changes, self._turn, go_on, self._tell)

    def run(self) -> list[Told | TdxError]:
        """OSError too."""
        try:
            with self._turn:
                return self._run()
        finally:
            self._links.close()
            self._changes.close()

    def _run(self) -> list[Told | TdxError]:
        links = [(place, each) for place, each in enumerate(self._entries) if isinstance(each, LinkEntry)]
        files = [(place, each) for place, each in enumerate(self._entries) if isinstance(each, FileEntry)]
        paths = [each.name for each in self._entries if not isinstance(each, FolderEntry)]
        with self._turn.aside():
            known = self._context.receipts.known(paths)
        self._folders.make()
        self._links.make(links, known)
        self._files.look(files, known)
        self._folders.give_attributes()
        with self._turn.aside():
            failed = self._changes.settle()
            self._remember(failed)
        return [self._result(each, failed) for each in self._results]

    def _tell(self, place: int, said: Told | TdxError | OSError) -> None:
        if isinstance(said, OSError):
            said = disk_failure(f"{self._entries[place].name}: cannot be looked at or made", said)
        self._results[place] = said

    def _remember(self, failed: dict[str, TdxError]) -> None:
        learnt = self._links.learnt | self._files.learnt
        rows = [each for path, each in learnt.items() if path not in failed]
        if rows:
            try:
                self._context.receipts.remember(rows)
            except TdxError as error:
                log.warning("what is known of files cannot be remembered: %s", error)

    @staticmethod
    def _result(found: Told | TdxError | None, failed: dict[str, TdxError]) -> Told | TdxError:
        assert found is not None, "every entry is told of"
        return failed.get(found.path, found) if isinstance(found, Told) else found
