"""Entries of a tree in a store in memory: what the port promises of them, but for durability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tdx.errors import BadName, Exists, StorageError, TdxError
from tdx.integrity import Root, digest_of
from tdx.model import Conflict, FileName, Owner
from tdx.proto.names import numbered
from tdx.proto.tree import Entry, FileEntry, FolderEntry, LinkEntry, Verdict
from tdx.store.memory_disk import Attributes, MemoryDisk
from tdx.store.port import Existing, GoOn, Told
from tdx.store.rules import MOST_COPIES, OWNER_BITS, free_number

LookAlikes = Callable[[Owner, FileName, int], list[Existing]]

_MADE: Final = Attributes(0o755, 0)


class MemoryTree:
    """One request of ``owner``, under the disk's lock. ``look_alikes`` is the store's."""

    def __init__(self, disk: MemoryDisk, owner: Owner, conflict: Conflict, look_alikes: LookAlikes) -> None:
        self._disk = disk
        self._owner = owner
        self._conflict = conflict
        self._look_alikes = look_alikes
        self._made: set[str] = set()
        self._changed = False

    def take_all(self, entries: Sequence[Entry], go_on: GoOn) -> list[Told | TdxError]:
        """See :meth:`tdx.store.port.Store.take_entries`."""
        results: dict[int, Told | TdxError] = {}
        for place in sorted(range(len(entries)), key=lambda each: entries[each].name.count("/")):
            go_on()
            try:
                results[place] = self._take(entries[place])
            except TdxError as error:
                results[place] = error
        if self._changed and self._disk.syncs_fail:
            raise StorageError("the entries of a tree cannot be made durable")
        return [results[place] for place in range(len(entries))]

    def _take(self, entry: Entry) -> Told:
        if isinstance(entry, FolderEntry):
            return Told(self._folder(entry), entry.name)
        if isinstance(entry, LinkEntry):
            return self._link(entry)
        verdict, path = self._file(entry)
        return Told(verdict, path)

    def _folder(self, entry: FolderEntry) -> Verdict:
        path: str = entry.name
        self._disk.check_path(path)
        if path in self._disk.files or path in self._disk.links:
            raise BadName(f"{path}: is there and is not a folder")
        if not self._disk.is_folder(path):
            self._disk.folders[path] = _MADE
            self._made.add(path)
        verdict = Verdict.MADE if path in self._made else Verdict.SAME
        wanted = Attributes(entry.mode | OWNER_BITS, entry.mtime_ns)
        if verdict is Verdict.SAME and self._conflict is Conflict.SKIP:
            return verdict
        if self._disk.folders.get(path) != wanted:
            self._disk.folders[path] = wanted
            self._changed = True
            return Verdict.MADE
        return verdict

    def _link(self, entry: LinkEntry) -> Told:
        path: str = entry.name
        above, slash, leaf = path.rpartition("/")
        above += slash
        copies = range(1, MOST_COPIES + 1) if self._conflict is Conflict.RENAME else ()
        for each in (leaf, *(numbered(leaf, number) for number in copies)):
            if self._disk.links.get(above + each) == entry.target:
                return Told(Verdict.SAME, above + each)
        if self._disk.taken(path):
            if self._conflict is Conflict.RENAME:
                path = above + free_number(leaf, lambda each: self._disk.taken(above + each))
            elif self._conflict is Conflict.ERROR or self._disk.is_folder(path):
                raise Exists(f"{path}: is there already", path=path)
            elif self._conflict is Conflict.SKIP:
                return Told(Verdict.SKIPPED, path)
        self._disk.files.pop(path, None)
        self._disk.links[path] = entry.target
        self._changed = True
        return Told(Verdict.MADE, path)

    def _file(self, entry: FileEntry) -> tuple[Verdict, str]:
        path: str = entry.name
        if not self._disk.taken(path):
            return Verdict.SEND, path
        if self._conflict is Conflict.SKIP:
            return Verdict.SKIPPED, path
        if self._conflict is Conflict.RENAME:
            paths = [each.path for each in self._look_alikes(self._owner, entry.name, entry.size)]
        else:
            there = self._disk.files.get(path)
            paths = [path] if there is not None and len(there) == entry.size else []
        for each in paths:
            if entry.root is None:
                return Verdict.ASK, each
            if self._root(each, entry.root) == entry.root:
                return self._same(each, entry), each
        if self._conflict is Conflict.ERROR or (
            self._conflict is Conflict.OVERWRITE and self._disk.is_folder(path)
        ):
            raise Exists(f"{path}: is there already", path=path)
        return Verdict.SEND, path

    def _root(self, path: str, wanted: str) -> str:
        content, size = self._disk.files[path], Root.parse(wanted).extent_size
        digests = [digest_of(content[at : at + size]) for at in range(0, len(content), size)]
        return str(Root.over(digests, len(content), size))

    def _same(self, path: str, entry: FileEntry) -> Verdict:
        wanted = Attributes(entry.mode, entry.mtime_ns)
        if self._conflict is not Conflict.OVERWRITE or self._disk.attributes.get(path) == wanted:
            return Verdict.SAME
        self._disk.attributes[path] = wanted
        self._changed = True
        return Verdict.MADE
