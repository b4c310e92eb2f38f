"""Publishing small files together, so that a crash at any moment leaves every final name either as it
was or carrying a whole file.

The files are written, with their attributes. Directories on the way to the final names are made and the
names chosen, and intents written. One syncfs makes all of this durable, intents before or after the
data as the kernel likes, for no name changes before it has returned. Then come the renames, a
sync of the directories, and the receipts in one transaction. A name that is taken between its choice and
its rename, or that two files of the bundle want, is chosen anew in another round of the same.
"""

from __future__ import annotations

import contextlib
import errno
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tdx.errors import Busy, TdxError, disk_failure
from tdx.integrity import MIN_EXTENT, root_of_small
from tdx.model import Conflict, Outcome, Owner, Receipt, UploadId
from tdx.store.bundles import LIFETIME, BundleFolder, Intent
from tdx.store.known import KnownFile, Moment, moment_of, published_at
from tdx.store.paths import WALKS, Unsynced
from tdx.store.port import Admit, BundledFile
from tdx.store.publish_context import FEW, PublishContext
from tdx.store.reading import extent_digests
from tdx.store.syscalls import UNSUPPORTED
from tdx.store.turn import Turn

_LISTED: Final = 256
"""A directory is listed that has no more bytes than this for each file that is to be looked for in it..."""

_BLOCK: Final = 4096
"""... or no more than the smallest one has on most filesystems."""

_UNHEARD_OF: Final = frozenset({errno.ENAMETOOLONG, errno.EILSEQ})
"""What makes a name impossible is told by looking for it."""


@dataclass(slots=True, eq=False)
class Staged:
    """A kept file: its place in the answer, what its bytes are staged as, and their inode. ``path`` is the
    final name, once it has been chosen, and ``moment`` when it got that, as far as it is known."""

    place: int
    file: BundledFile
    number: str
    inode: int
    path: str = ""
    moment: Moment | None = None


class Publication:
    """Publishes what lies in ``folder``; used once, in its ``turn``."""

    def __init__(
        self, context: PublishContext, folder: BundleFolder, owner: Owner, conflict: Conflict, turn: Turn
    ) -> None:
        self._context = context
        self._system = context.system
        self._tree = context.tree
        self._names = context.names
        self._folder = folder
        self._owner = owner
        self._conflict = conflict
        self._turn = turn
        self._as_one = context.as_one
        self._results: dict[int, Receipt | TdxError] = {}
        self._unsynced: Unsynced = {}
        self._unsure: list[Staged] = []
        """In place, in directories that are yet to be synced."""
        self._placed = False
        self._admit: Admit = _anything
        self.unfinished = False
        """The folder must stay, for the intents in it have yet to be finished."""

    def run(self, files: Sequence[Staged], admit: Admit) -> list[Receipt | TdxError]:
        """See :meth:`tdx.store.port.Bundle.publish`. OSError too."""
        self._admit = admit
        try:
            # Overwriting would not tell that a name is taken that is written in another way there.
            waiting = self._round(files, listed=self._conflict is not Conflict.OVERWRITE)
            while waiting:
                waiting = self._round(waiting, listed=False)
            self._sync_names()
            found = [self._results[each.place] for each in files]
            with self._turn.aside():
                self._context.receipts.put_many(
                    [each for each in found if isinstance(each, Receipt)],
                    lifetime=LIFETIME,
                    known=self._known(files),
                )
        except (TdxError, OSError):
            if self._placed:
                self.unfinished = True
                self._context.bundles.unrecorded(self._folder.name)
            raise
        return found

    def _round(self, waiting: Iterable[Staged], *, listed: bool) -> list[Staged]:
        """Publish as many as can be at once; those that are left. With ``listed``, names count as free that
        are not listed in their directory, where it is small: the rename tells what the list did not."""
        wanted: set[str] = set()
        folders: dict[str, list[Staged]] = {}
        left: list[Staged] = []
        for each in waiting:
            name = each.file.name
            if name in wanted:
                left.append(each)
            else:
                wanted.add(name)
                folders.setdefault(name[: name.rfind("/") + 1], []).append(each)
        there: list[Staged] = []
        chosen = {
            above: some
            for above, files in folders.items()
            if (some := self._choose(above, files, there, listed=listed))
        }
        receipts = self._make_durable(chosen, there)
        few = len(chosen) <= FEW or not self._as_one
        for above, files in chosen.items():
            left += self._place(above, files, receipts, few=few, listed=listed)
        return left

    # --- which name ---------------------------------------------------------------------

    def _choose(
        self, above: str, files: Sequence[Staged], there: list[Staged], *, listed: bool
    ) -> list[Staged]:
        """Those of these files, which go to the directory ``above``, that have a final name now. Of the
        others the outcome is known, and what they are identical to is added to ``there``."""
        chosen: list[Staged] = []
        try:
            with self._tree.parent(files[0].file.name, make=True, unsynced=self._unsynced) as (fd, _):
                names = self._names_in(fd, len(files)) if listed else None
                for each in files:
                    leaf = each.file.name[len(above) :]
                    try:
                        if names is None or leaf in names:
                            settled = self._settle(fd, leaf, each, there)
                            if settled is None:
                                self._folder.drop(each.number)
                                continue
                            leaf = settled
                        self._names.check_doubt(above + leaf)
                        self._admit(self._folder.id_of(each.number), each.file.size)
                        each.path = above + leaf
                        chosen.append(each)
                    except (TdxError, OSError) as error:
                        self._refuse(each, error)
        except (TdxError, OSError) as error:
            self._refuse_all(files, error)
            return []
        return chosen

    def _names_in(self, fd: int, count: int) -> set[str] | None:
        """All names in a directory, where that costs less than to ask for ``count`` of them; else None."""
        if count <= FEW or self._system.fstat(fd).st_size > max(_BLOCK, _LISTED * count):
            return None
        return set(self._system.listdir(fd))

    def _settle(self, fd: int, leaf: str, each: Staged, there: list[Staged]) -> str | None:
        """What to call the file in its directory; None where it is not published, for what is there."""
        file = each.file
        found = self._tree.look_in(fd, leaf, file.name)
        if found is None:
            return leaf
        if self._conflict is Conflict.SKIP:
            self._results[each.place] = self._receipt(each, file.name, found.st_size, Outcome.SKIPPED)
            return None
        same = stat.S_ISREG(found.st_mode) and found.st_size == file.size
        path = self._find_identical(file, same_size=same)
        if path is not None:
            self._names.check_doubt(path)
            each.path = path
            there.append(each)
            self._results[each.place] = self._receipt(each, path, file.size, Outcome.IDENTICAL)
            return None
        return self._names.choose(fd, leaf, file.name, self._conflict)

    def _find_identical(self, file: BundledFile, *, same_size: bool) -> str | None:
        """The path of a published file that has this content: of that name, or what an earlier push of it
        was numbered as."""
        if same_size and self._has(file.name, file):
            return file.name
        if self._conflict is Conflict.RENAME:
            for path in self._context.receipts.paths(self._owner, file.name, file.size):
                if path != file.name and self._has(path, file):
                    return path
        return None

    def _has(self, path: str, file: BundledFile) -> bool:
        try:
            fd = self._tree.open_file(path)
            if fd is None:
                return False
            try:
                if self._system.fstat(fd).st_size != file.size:
                    return False
                with self._turn.aside():
                    digests = extent_digests(self._system, fd, MIN_EXTENT)
            finally:
                self._system.close(fd)
        except Busy:
            raise  # it can be read at another time
        except (OSError, TdxError):
            return False  # what cannot be read is not known to be identical to anything
        return digests == ([file.digest] if file.size else [])

    def _receipt(self, each: Staged, path: str, size: int, outcome: Outcome) -> Receipt:
        file = each.file
        return Receipt(
            upload=self._folder.id_of(each.number),
            owner=self._owner,
            key=file.key,
            name=file.name,
            path=path,
            size=size,
            root=root_of_small(file.digest, file.size),
            verified=outcome is not Outcome.SKIPPED,
            outcome=outcome,
            published_at=time.time(),
        )

    def _refuse(self, each: Staged, error: TdxError | OSError) -> None:
        if isinstance(error, OSError):
            error = disk_failure(f"{each.file.name}: cannot be published", error)
        self._results[each.place] = error
        self._folder.drop(each.number)

    def _refuse_all(self, files: Iterable[Staged], error: TdxError | OSError) -> None:
        for each in files:
            self._refuse(each, error)

    # --- durability ---------------------------------------------------------------------

    def _make_durable(self, chosen: dict[str, list[Staged]], there: Sequence[Staged]) -> dict[int, Receipt]:
        """Everything but the final names; the receipts of those that are to get them, by place. A failure
        is final: nothing is acknowledged then."""
        files = [each for some in chosen.values() for each in some]
        receipts = {
            each.place: self._receipt(each, each.path, each.file.size, Outcome.PUBLISHED) for each in files
        }
        if not files and not there:
            return receipts
        try:
            if files:
                intents = [Intent(receipts[each.place], each.inode) for each in files]
                overwrites = self._conflict is Conflict.OVERWRITE
                self._folder.write_intents(intents, self._owner, overwrites=overwrites)
        except OSError as error:
            # No sync has failed, so nothing is in doubt: a disk that is full may have room later.
            raise disk_failure("small files cannot be made durable, and none was published", error) from error
        try:
            with self._turn.aside():
                if not self._sync_as_one():
                    self._sync_each(chosen, there)
        except OSError as error:
            self._tree.synced(self._unsynced, failed=True)
            for each in (*there, *self._unsure):
                self._names.doubt(each.path, error)
            raise disk_failure("small files cannot be made durable, and none was published", error) from error
        self._tree.synced(self._unsynced)
        self._unsynced.clear()
        return receipts

    def _sync_as_one(self) -> bool:
        """Sync the filesystem; False where that cannot be done. OSError."""
        if self._as_one:
            try:
                self._system.syncfs(self._folder.lock)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._as_one = False
        return self._as_one

    def _sync_each(self, chosen: dict[str, list[Staged]], there: Sequence[Staged]) -> None:
        self._folder.sync([each.number for files in chosen.values() for each in files])
        for above in chosen:
            with self._tree.parent(above + "a", make=True):
                pass  # on the way in, every directory has been synced
        for each in there:
            self._names.make_durable(each.path)

    # --- final names --------------------------------------------------------------------

    def _place(
        self,
        above: str,
        files: Sequence[Staged],
        receipts: dict[int, Receipt],
        *,
        few: bool,
        listed: bool,
    ) -> list[Staged]:
        """Rename these files into the directory ``above``; those whose names have been taken since. With
        ``few`` the directory is made durable too."""
        left: list[Staged] = []
        placed: list[Staged] = []
        waiting, walks = files, WALKS
        try:
            while waiting:
                walks -= 1
                with self._tree.parent(files[0].path, make=True) as (fd, _):
                    waiting = self._move_into(fd, above, waiting, placed, left, listed=listed, last=not walks)
                    if waiting:
                        continue  # somebody has removed the directory since it was made
                    self._placed = self._placed or bool(placed)
                    for each in placed:
                        self._results[each.place] = receipts[each.place]
                    self._remember(fd, above, placed)
                    if few:
                        self._sync_directory(fd, placed)
                    else:
                        self._unsure += placed
        except (TdxError, OSError) as error:
            self._refuse_all(files, error)
            return []
        return left

    def _move_into(
        self,
        fd: int,
        above: str,
        files: Sequence[Staged],
        placed: list[Staged],
        left: list[Staged],
        *,
        listed: bool,
        last: bool,
    ) -> Sequence[Staged]:
        """Rename these files into an open directory. Those that are yet to be, since it has been removed:
        none where this is the ``last`` try."""
        for index, each in enumerate(files):
            target, name = each.path[len(above) :], each.file.name
            try:
                self._names.move(self._folder.fd, each.number, fd, target, name, self._conflict)
                placed.append(each)
            except (FileExistsError, IsADirectoryError):
                left.append(each)
            except (TdxError, OSError) as error:
                if isinstance(error, FileNotFoundError) and not last and self._tree.is_removed(fd):
                    return files[index:]
                if listed and isinstance(error, OSError) and error.errno in _UNHEARD_OF:
                    left.append(each)
                else:
                    self._refuse(each, error)
        return ()

    def _remember(self, fd: int, above: str, placed: Sequence[Staged]) -> None:
        """When they got their names, so that they need not be read when their sender asks again."""
        if placed:
            with contextlib.suppress(OSError):
                first = self._system.stat(placed[0].path[len(above) :], dir_fd=fd)
                moment = moment_of(first, self._system.stat(placed[-1].path[len(above) :], dir_fd=fd))
                for each in placed:
                    each.moment = moment

    def _known(self, files: Iterable[Staged]) -> Iterator[KnownFile]:
        """What can be remembered of those that were published."""
        for each in files:
            receipt, file = self._results[each.place], each.file
            if each.moment is not None and isinstance(receipt, Receipt):
                known = published_at(
                    each.moment, each.path, each.inode, file.size, file.mtime_ns, receipt.root
                )
                if known is not None:
                    yield known

    def _sync_directory(self, fd: int, placed: Sequence[Staged]) -> None:
        try:
            if placed:
                with self._turn.aside():
                    self._system.fsync(fd)
        except OSError as error:
            self._not_durable(placed, error)

    def _sync_names(self) -> None:
        if self._unsure:
            try:
                with self._turn.aside():
                    self._system.syncfs(self._folder.lock)
            except OSError as error:
                self._not_durable(self._unsure, error)

    def _not_durable(self, placed: Iterable[Staged], error: OSError) -> None:
        # Their intents stay: the next start of the receiver finds them in place, and syncs again.
        self.unfinished = True
        for each in placed:
            self._results[each.place] = self._names.doubt(each.path, error)


def _anything(_upload: UploadId, _size: int) -> None:
    """Before it is known who is to be asked."""
