"""Receipts: what has been published, and by whom, in SQLite in the state directory.

A receipt is kept for as long as its upload's sender may ask for it; who was the last to
publish a path, and what is known of the content there, until the file is found gone.

One database serves every receiver of this user; rows are told apart by the id of the
store folder. Safe between threads (one connection under a lock) and between processes
(SQLite's own locks, write-ahead log).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tdx.model import FileName, Outcome, Owner, Receipt, UploadId
from tdx.store.database import Database, cut, insert, marks
from tdx.store.known import KnownFile, Stamp

MOST_PATHS: Final = 8
"""Earlier copies of one name that are compared with what is being pushed again."""

_RECEIPT_VALUES: Final = 12
_INSERT: Final = "INSERT OR IGNORE INTO receipts VALUES "
_KNOWN_VALUES: Final = 9
_REMEMBER: Final = "INSERT OR REPLACE INTO roots VALUES "
_KNOWN: Final = "SELECT path, inode, size, mtime_ns, ctime_ns, root, durable, span FROM roots WHERE store = ?"
_SELECT: Final = """
SELECT upload, owner, key, name, path, size, root, verified, outcome, published_at FROM receipts """
_BY_UPLOAD: Final = _SELECT + "WHERE store = ? AND upload = ?"
# The indexes are named: left to itself, the planner would rather look at every receipt of the store.
_BY_KEY: Final = (
    _SELECT + "INDEXED BY receipts_by_key WHERE store = ? AND owner = ? AND key = ? "
    "ORDER BY published_at DESC LIMIT 1"
)

_ARRIVED: Final = """
SELECT files.path, files.size, files.upload, files.owner,
       receipts.root, receipts.verified, receipts.published_at
FROM files LEFT JOIN receipts ON receipts.store = files.store AND receipts.upload = files.upload
WHERE files.store = ?"""

_PATHS: Final = """
SELECT path FROM receipts INDEXED BY receipts_by_name
WHERE store = ? AND owner = ? AND name = ? AND size = ?
GROUP BY path ORDER BY max(published_at) DESC LIMIT ?"""


_NUMBERED: Final = """
SELECT name, size, path FROM receipts INDEXED BY receipts_by_name
WHERE store = ? AND owner = ? AND (name, size) IN (VALUES {})
GROUP BY name, size, path ORDER BY max(published_at) DESC"""


class PublishedFile(NamedTuple):
    """Who was the last to publish a path made it this size, with that upload."""

    path: FileName
    size: int
    upload: UploadId


class ArrivedFile(NamedTuple):
    """A published file with what its receipt says of it; None, once that has expired."""

    path: FileName
    size: int
    upload: UploadId
    owner: Owner
    root: str | None
    verified: bool | None
    published_at: float | None

    @property
    def file(self) -> PublishedFile:
        return PublishedFile(self.path, self.size, self.upload)


class Receipts:
    """The receipts of one store folder."""

    def __init__(self, state: Path, store: str) -> None:
        """``store`` is the folder's id. ConfigError where the state directory cannot be used."""
        self._store = store
        self._database = Database(state)

    def put(self, receipt: Receipt, *, lifetime: float, known: KnownFile | None = None) -> None:
        """Durably store a receipt, for at least ``lifetime`` seconds; a second time changes nothing. With it
        goes what is known of the file."""
        self.put_many([receipt], lifetime=lifetime, known=[] if known is None else [known])

    def put_many(
        self, receipts: Sequence[Receipt], *, lifetime: float, known: Iterable[KnownFile] = ()
    ) -> None:
        """The same for many at once, and :meth:`remember` in the same step: all of them, or none where this
        raises."""
        # Flat lists: with an object for each row, the collection of garbage costs as much as the rows do.
        values: list[object] = []
        for receipt in receipts:
            values += (
                self._store,
                receipt.upload,
                receipt.owner,
                receipt.key,
                receipt.name,
                receipt.path,
                receipt.size,
                receipt.root,
                int(receipt.verified),
                receipt.outcome.value,
                receipt.published_at,
                receipt.published_at + lifetime,
            )
        learnt = self._values_of(known)
        with self._database.transaction() as cursor:
            insert(cursor, _INSERT, values, _RECEIPT_VALUES)
            insert(cursor, _REMEMBER, learnt, _KNOWN_VALUES)

    def get(self, upload: UploadId) -> Receipt | None:
        return self._one(_BY_UPLOAD, upload)

    def by_key(self, owner: Owner, key: str) -> Receipt | None:
        """The newest receipt for this owner's key."""
        return self._one(_BY_KEY, owner, key)

    def paths(self, owner: Owner, name: FileName, size: int) -> list[str]:
        """Where this owner's files that were pushed as ``name``, with this size, ended up: the newest
        :data:`MOST_PATHS`."""
        with self._database.cursor() as cursor:
            cursor.execute(_PATHS, (self._store, owner, name, size, MOST_PATHS))
            return [str(path) for (path,) in cursor.fetchall()]

    def numbered(
        self, owner: Owner, wanted: Sequence[tuple[FileName, int]]
    ) -> dict[tuple[str, int], list[str]]:
        """The same as :meth:`paths` for many names and sizes at once; those of which there are any."""
        found: dict[tuple[str, int], list[str]] = {}
        with self._database.cursor() as cursor:
            for some in cut(wanted):
                marks = ", ".join(["(?, ?)"] * len(some))
                values = [value for pair in some for value in pair]
                cursor.execute(_NUMBERED.format(marks), (self._store, owner, *values))
                for name, size, path in cursor.fetchall():
                    paths = found.setdefault((name, size), [])
                    if len(paths) < MOST_PATHS:
                        paths.append(path)
        return found

    def files(self, owner: Owner | None = None) -> list[PublishedFile]:
        """What was published here, of one owner or of all; one for each path."""
        query, values = "SELECT path, size, upload FROM files WHERE store = ?", [self._store]
        if owner is not None:
            query, values = query + " AND owner = ?", [*values, owner]
        with self._database.cursor() as cursor:
            cursor.execute(query, values)
            return [
                PublishedFile(FileName(path), int(size), UploadId(upload))
                for path, size, upload in cursor.fetchall()
            ]

    def arrived(self) -> list[ArrivedFile]:
        """As :meth:`files` of all owners, with what the receipts know."""
        with self._database.cursor() as cursor:
            cursor.execute(_ARRIVED, (self._store,))
            return [
                ArrivedFile(
                    FileName(path),
                    int(size),
                    UploadId(upload),
                    Owner(owner),
                    root,
                    None if verified is None else bool(verified),
                    published_at,
                )
                for path, size, upload, owner, root, verified, published_at in cursor.fetchall()
            ]

    def is_file(self, file: PublishedFile) -> bool:
        """Whether it is still among :meth:`files`."""
        with self._database.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM files WHERE store = ? AND path = ? AND upload = ?",
                (self._store, file.path, file.upload),
            )
            return cursor.fetchone() is not None

    def version(self) -> int:
        """Another number whenever another connection has changed the database since it was last asked."""
        with self._database.cursor() as cursor:
            cursor.execute("PRAGMA data_version")
            return int(cursor.fetchone()[0])

    def forget_files(self, gone: Sequence[PublishedFile]) -> None:
        """Drop these of :meth:`files`, unless their paths were published anew meanwhile."""
        rows = [(self._store, each.path, each.upload) for each in gone]
        with self._database.transaction() as cursor:
            cursor.executemany("DELETE FROM files WHERE store = ? AND path = ? AND upload = ?", rows)

    def remember(self, known: Sequence[KnownFile]) -> None:
        """Durably store what is known of these files, in place of what was."""
        with self._database.transaction() as cursor:
            insert(cursor, _REMEMBER, self._values_of(known), _KNOWN_VALUES)

    def _values_of(self, known: Iterable[KnownFile]) -> list[object]:
        values: list[object] = []
        for path, stamp, root, durable, span in known:
            values += (self._store, path, *stamp, root, durable, span)
        return values

    def known(self, paths: Sequence[str] | None = None) -> dict[str, KnownFile]:
        """What is remembered of the files at these paths, or of all; by path."""
        found: dict[str, KnownFile] = {}
        some: Sequence[str]
        with self._database.cursor() as cursor:
            if paths is None:
                cursor.execute(_KNOWN, (self._store,))
                _take_known(cursor, found)
            for some in cut(paths or ()):
                cursor.execute(f"{_KNOWN} AND path IN ({marks(some)})", (self._store, *some))
                _take_known(cursor, found)
        return found

    def forget(self, known: Sequence[KnownFile]) -> None:
        """Drop these, unless something else has been remembered of their paths meanwhile."""
        rows = [(self._store, each.path, each.stamp.inode, each.stamp.ctime_ns) for each in known]
        with self._database.transaction() as cursor:
            cursor.executemany(
                "DELETE FROM roots WHERE store = ? AND path = ? AND inode = ? AND ctime_ns = ?", rows
            )

    def expire(self, now: float) -> None:
        with self._database.cursor() as cursor:
            cursor.execute("DELETE FROM receipts WHERE store = ? AND expires_at < ?", (self._store, now))

    def close(self) -> None:
        self._database.close()

    def _one(self, query: str, *values: str) -> Receipt | None:
        with self._database.cursor() as cursor:
            cursor.execute(query, (self._store, *values))
            row: tuple[Any, ...] | None = cursor.fetchone()
        if row is None:
            return None
        upload, owner, key, name, path, size, root, verified, outcome, published_at = row
        return Receipt(
            upload=UploadId(upload),
            owner=Owner(owner),
            key=key,
            name=FileName(name),
            path=path,
            size=size,
            root=root,
            verified=bool(verified),
            outcome=Outcome(outcome),
            published_at=published_at,
        )


def _take_known(cursor: sqlite3.Cursor, found: dict[str, KnownFile]) -> None:
    for path, inode, size, mtime_ns, ctime_ns, root, durable, span in cursor.fetchall():
        stamp = Stamp(inode, size, mtime_ns, ctime_ns)
        found[path] = KnownFile(path, stamp, root, bool(durable), span)
