"""What the files, folders and links of one request have in common: their places in it, and how they are gone
through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from tdx.errors import TdxError
from tdx.proto.tree import FileEntry, FolderEntry, LinkEntry
from tdx.store.paths import folder_of
from tdx.store.port import Told

E = TypeVar("E", FileEntry, FolderEntry, LinkEntry)

Tell = Callable[[int, Told | TdxError | OSError], None]
"""Says of the entry at a place what came of it, or why it is refused."""


def by_folder(entries: Iterable[tuple[int, E]]) -> dict[str, list[tuple[int, E]]]:
    """Entries with their places, by the folder that they lie in, with its slash; in the order in which they
    come."""
    found: dict[str, list[tuple[int, E]]] = {}
    for place, entry in entries:
        found.setdefault(folder_of(entry.name), []).append((place, entry))
    return found
