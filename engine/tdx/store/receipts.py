"""Receipts: what has been published, and by whom, in SQLite in the state directory.

A receipt is kept for as long as its upload's sender may ask for it; who was the last to
publish a path, and what is known of the content there, until the file is found gone.

One database serves every receiver of this user; rows are told apart by the id of the
store folder. Safe between threads (one connection under a lock) and between processes
(SQLite's own locks, write-ahead log).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from tdx.errors import ConfigError, StorageError, StorageUnusable
from tdx.model import FileName, Outcome, Owner, Receipt, UploadId
from tdx.store.known import KnownFile, Stamp

T = TypeVar("T")

log = logging.getLogger(__name__)

MOST_PATHS: Final = 8
"""Earlier copies of one name that are compared with what is being pushed again."""

_PATIENCE: Final = 30.0
"""Seconds to wait for another process's write."""

_CACHE_KIB: Final = 8192
"""Pages of one transaction that do not fit are written to the log twice."""

_LOGGED_PAGES: Final = 4000
"""Pages in the log at which a commit copies them into the database, and syncs that."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS receipts (
    store TEXT NOT NULL,
    upload TEXT NOT NULL,
    owner TEXT NOT NULL,
    key TEXT,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    root TEXT NOT NULL,
    verified INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    published_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (store, upload)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS receipts_by_key ON receipts (store, owner, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS receipts_by_name ON receipts (store, owner, name, size);
CREATE INDEX IF NOT EXISTS receipts_by_expiry ON receipts (store, expires_at);
CREATE TABLE IF NOT EXISTS files (
    store TEXT NOT NULL,
    path TEXT NOT NULL,
    owner TEXT NOT NULL,
    size INTEGER NOT NULL,
    upload TEXT NOT NULL,
    PRIMARY KEY (store, path)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_owner ON files (store, owner);
CREATE TRIGGER IF NOT EXISTS files_are_published AFTER INSERT ON receipts WHEN NEW.outcome = 'published'
BEGIN
    DELETE FROM files WHERE store = NEW.store AND path = NEW.path;
    INSERT INTO files VALUES (NEW.store, NEW.path, NEW.owner, NEW.size, NEW.upload);
END;
CREATE TABLE IF NOT EXISTS roots (
    store TEXT NOT NULL,
    path TEXT NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    root TEXT NOT NULL,
    durable INTEGER NOT NULL,
    span INTEGER NOT NULL,
    PRIMARY KEY (store, path)
) WITHOUT ROWID;
"""

_AT_ONCE: Final = 256
"""Rows of one statement. The interpreter's lock is given up and taken for each statement, not each row."""

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


class Receipts:
    """The receipts of one store folder."""

    def __init__(self, state: Path, store: str) -> None:
        """``store`` is the folder's id. ConfigError where the state directory cannot be used."""
        self._store = store
        self._path = state / "receipts.sqlite3"
        self._lock = threading.Lock()
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._database = _open_or_replaced(self._path)
        except (OSError, sqlite3.Error, _Broken) as error:
            raise ConfigError(f"{state}: the receipts cannot be kept there: {error}") from error

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
        with self._cursor() as cursor, self._database:
            cursor.execute("BEGIN IMMEDIATE")
            _insert(cursor, _INSERT, values, _RECEIPT_VALUES)
            _insert(cursor, _REMEMBER, learnt, _KNOWN_VALUES)

    def get(self, upload: UploadId) -> Receipt | None:
        return self._one(_BY_UPLOAD, upload)

    def by_key(self, owner: Owner, key: str) -> Receipt | None:
        """The newest receipt for this owner's key."""
        return self._one(_BY_KEY, owner, key)

    def paths(self, owner: Owner, name: FileName, size: int) -> list[str]:
        """Where this owner's files that were pushed as ``name``, with this size, ended up: the newest
        :data:`MOST_PATHS`."""
        with self._cursor() as cursor:
            cursor.execute(_PATHS, (self._store, owner, name, size, MOST_PATHS))
            return [str(path) for (path,) in cursor.fetchall()]

    def numbered(
        self, owner: Owner, wanted: Sequence[tuple[FileName, int]]
    ) -> dict[tuple[str, int], list[str]]:
        """The same as :meth:`paths` for many names and sizes at once; those of which there are any."""
        found: dict[tuple[str, int], list[str]] = {}
        with self._cursor() as cursor:
            for some in _cut(wanted):
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
        with self._cursor() as cursor:
            cursor.execute(query, values)
            return [
                PublishedFile(FileName(path), int(size), UploadId(upload))
                for path, size, upload in cursor.fetchall()
            ]

    def forget_files(self, gone: Sequence[PublishedFile]) -> None:
        """Drop these of :meth:`files`, unless their paths were published anew meanwhile."""
        rows = [(self._store, each.path, each.upload) for each in gone]
        with self._cursor() as cursor, self._database:  # the latter ends the transaction, either way
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany("DELETE FROM files WHERE store = ? AND path = ? AND upload = ?", rows)

    def remember(self, known: Sequence[KnownFile]) -> None:
        """Durably store what is known of these files, in place of what was."""
        with self._cursor() as cursor, self._database:
            cursor.execute("BEGIN IMMEDIATE")
            _insert(cursor, _REMEMBER, self._values_of(known), _KNOWN_VALUES)

    def _values_of(self, known: Iterable[KnownFile]) -> list[object]:
        values: list[object] = []
        for path, stamp, root, durable, span in known:
            values += (self._store, path, *stamp, root, durable, span)
        return values

    def known(self, paths: Sequence[str] | None = None) -> dict[str, KnownFile]:
        """What is remembered of the files at these paths, or of all; by path."""
        found: dict[str, KnownFile] = {}
        some: Sequence[str]
        with self._cursor() as cursor:
            if paths is None:
                cursor.execute(_KNOWN, (self._store,))
                _take_known(cursor, found)
            for some in _cut(paths or ()):
                cursor.execute(f"{_KNOWN} AND path IN ({_marks(some)})", (self._store, *some))
                _take_known(cursor, found)
        return found

    def forget(self, known: Sequence[KnownFile]) -> None:
        """Drop these, unless something else has been remembered of their paths meanwhile."""
        rows = [(self._store, each.path, each.stamp.inode, each.stamp.ctime_ns) for each in known]
        with self._cursor() as cursor, self._database:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.executemany(
                "DELETE FROM roots WHERE store = ? AND path = ? AND inode = ? AND ctime_ns = ?", rows
            )

    def expire(self, now: float) -> None:
        with self._cursor() as cursor:
            cursor.execute("DELETE FROM receipts WHERE store = ? AND expires_at < ?", (self._store, now))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _one(self, query: str, *values: str) -> Receipt | None:
        with self._cursor() as cursor:
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

    @contextmanager
    def _cursor(self) -> Generator[sqlite3.Cursor]:
        with self._lock:
            try:
                cursor = self._database.cursor()
                try:
                    yield cursor
                finally:
                    cursor.close()
            except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
                raise StorageError(f"the receipts cannot be read or written: {error}") from error
            except sqlite3.Error as error:
                # Not a database any more, or a broken one: no other try will go better.
                raise StorageUnusable(
                    f"the receipts in {self._path} cannot be used: {error}; restart the receiver, "
                    "which puts them aside"
                ) from error


def _cut(items: Sequence[T], size: int = _AT_ONCE) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _insert(cursor: sqlite3.Cursor, statement: str, values: Sequence[object], width: int) -> None:
    """Rows of so many values each."""
    row = f"({_marks(values[:width])})"
    for some in _cut(values, _AT_ONCE * width):
        cursor.execute(statement + ", ".join([row] * (len(some) // width)), some)


def _take_known(cursor: sqlite3.Cursor, found: dict[str, KnownFile]) -> None:
    for path, inode, size, mtime_ns, ctime_ns, root, durable, span in cursor.fetchall():
        stamp = Stamp(inode, size, mtime_ns, ctime_ns)
        found[path] = KnownFile(path, stamp, root, bool(durable), span)


class _Broken(Exception):
    """What should be the database is none, or not a whole one."""


def _open_or_replaced(path: Path) -> sqlite3.Connection:
    """The database; a broken one is put aside for a new one. What is lost with it is little
    (``docs/store.md``), and without it nothing could be received until somebody came to see."""
    try:
        return _open(path)
    except _Broken:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            return _open(path)  # another process has made it anew
        except _Broken as error:
            aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
            log.warning("the receipts are broken (%s): they begin anew; the old ones are in %s", error, aside)
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{aside}{suffix}")
        return _open(path)
    finally:
        os.close(folder)


def _open(path: Path) -> sqlite3.Connection:
    """_Broken, or another sqlite3.Error."""
    database = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOGGED_PAGES}")
        # Looks at a hundred thousand receipts in 0.1 s.
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _Broken(verdict)
        database.executescript(_SCHEMA)
    except BaseException as error:
        database.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _Broken(str(error)) from error
        raise
    return database
