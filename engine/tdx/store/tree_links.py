"""The symbolic links of a tree: made beside the uploads, then given their names, so that a crash leaves none
in the making."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from tdx.errors import BadName, TdxError
from tdx.model import Conflict
from tdx.proto.names import numbered
from tdx.proto.tree import LinkEntry, Verdict
from tdx.store.bundles import BundleFolder
from tdx.store.changes import Changes
from tdx.store.known import LINK, KnownFile, linked
from tdx.store.port import GoOn, Told
from tdx.store.publish_context import PublishContext
from tdx.store.rules import MOST_COPIES
from tdx.store.tree_entries import Tell, by_folder

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})

Listed = tuple[int, LinkEntry]
"""An entry and its place in the request."""


class TreeLinks:
    """The links of one request: :meth:`make`, and :meth:`close` in any case."""

    def __init__(
        self, context: PublishContext, conflict: Conflict, changes: Changes, go_on: GoOn, tell: Tell
    ) -> None:
        self._context = context
        self._system = context.system
        self._tree = context.tree
        self._names = context.names
        self._conflict = conflict
        self._changes = changes
        self._go_on = go_on
        self._tell = tell
        self._staging: BundleFolder | None = None
        self._staged = 0
        self.learnt: dict[str, KnownFile] = {}
        """Those that will be durable, by path."""

    def make(self, links: Sequence[Listed], known: dict[str, KnownFile]) -> None:
        """Make what is missing, and say of each what came of it. ``known``: what is remembered of their
        paths."""
        for above, some in by_folder(links).items():
            self._go_on()
            told = 0
            try:
                unsynced = self._changes.unsynced
                with self._tree.parent(some[0][1].name, make=True, unsynced=unsynced) as (fd, _):
                    self._changes.entered(above.rstrip("/"))
                    for place, entry in some:
                        try:
                            said: Told | TdxError | OSError = self._take(fd, above, entry, known)
                        except (TdxError, OSError) as error:
                            said = error
                        self._tell(place, said)
                        told += 1
            except (TdxError, OSError) as error:
                for place, _ in some[told:]:
                    self._tell(place, error)

    def _take(self, fd: int, above: str, entry: LinkEntry, known: dict[str, KnownFile]) -> Told:
        leaf = entry.name[len(above) :]
        for each in self._candidates(leaf):
            path = above + each
            found = self._tree.look_in(fd, each, path)
            if found is None:
                break
            if self._leads(fd, each, found, entry.target):
                self._names.check_doubt(path)
                row = known.get(path)
                if row is None or row.root != LINK or not row.holds(found):
                    # Whoever put it there may not have made it durable.
                    self._note(above, path, found)
                return Told(Verdict.SAME, path)
        return self._make(fd, above, leaf, entry)

    def _candidates(self, leaf: str) -> list[str]:
        """The names at which the same link may be: its own, and those that earlier pushes gave it."""
        copies = MOST_COPIES if self._conflict is Conflict.RENAME else 0
        return [leaf, *(numbered(leaf, number) for number in range(1, copies + 1))]

    def _leads(self, fd: int, leaf: str, found: os.stat_result, target: str) -> bool:
        if not stat.S_ISLNK(found.st_mode):
            return False
        try:
            return self._system.readlink(leaf, dir_fd=fd) == target
        except OSError:
            return False  # it has been replaced just now

    def _make(self, fd: int, above: str, leaf: str, entry: LinkEntry) -> Told:
        while (name := self._names.choose(fd, leaf, entry.name, self._conflict)) is not None:
            path = above + name
            self._names.check_doubt(path)
            staging, staged = self._stage(entry)
            # The name may have been taken since it was chosen.
            try:
                self._names.move(staging.fd, staged, fd, name, entry.name, self._conflict)
            except (FileExistsError, IsADirectoryError):
                staging.drop(staged)
                continue
            except BaseException:
                staging.drop(staged)
                raise
            self._note(above, path, self._tree.look_in(fd, name, path))
            return Told(Verdict.MADE, path)
        return Told(Verdict.SKIPPED, entry.name)

    def _stage(self, entry: LinkEntry) -> tuple[BundleFolder, str]:
        """The link, with its time, in a folder that a crash leaves to the next start."""
        if self._staging is None:
            self._staging = self._context.bundles.make()
        staging, staged = self._staging, str(self._staged)
        self._staged += 1
        try:
            self._system.symlink(entry.target, staged, dir_fd=staging.fd)
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise BadName(f"{entry.name}: the receiver's filesystem has no symbolic links") from error
            raise
        # Not every filesystem has room for every date, or one for links.
        with contextlib.suppress(OSError, OverflowError):
            self._system.utime_of_link(staged, entry.mtime_ns, dir_fd=staging.fd)
        return staging, staged

    def _note(self, above: str, path: str, found: os.stat_result | None) -> None:
        """It is to be durable, and remembered then."""
        self._changes.name(above.rstrip("/"), path)
        if found is not None and (file := linked(path, found)) is not None:
            self.learnt[path] = file

    def close(self) -> None:
        """Remove what was staged; idempotent."""
        staging, self._staging = self._staging, None
        if staging is not None:
            with contextlib.suppress(OSError):
                staging.remove()
            staging.close()
