"""The database of the receipts: SQLite in the state directory, opened, or begun anew where it is broken."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from tdx.errors import ConfigError, StorageError, StorageUnusable

T = TypeVar("T")

log = logging.getLogger(__name__)

DATABASE: Final = "receipts.sqlite3"
"""The file in the state directory."""

_PATIENCE: Final = 30.0
"""Seconds to wait for another process's write."""

_AGAIN: Final = 0.01
"""Seconds until the next try where SQLite does not wait by itself."""

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


class Database:
    """One connection under a lock. Safe between threads and, by SQLite's own locks, between processes."""

    def __init__(self, state: Path) -> None:
        """ConfigError where the directory ``state`` cannot be used."""
        self._path = state / DATABASE
        self._lock = threading.Lock()
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = _open_or_replaced(self._path)
        except (OSError, sqlite3.Error, _Broken) as error:
            raise ConfigError(f"{state}: the receipts cannot be kept there: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def cursor(self) -> Generator[sqlite3.Cursor]:
        with self._lock:
            try:
                cursor = self._connection.cursor()
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

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Cursor]:
        """All that is written in it is durable at its end, or nothing where that raises. Errors as for
        :meth:`cursor`."""
        with self.cursor() as cursor, self._connection:  # which ends it, either way
            cursor.execute("BEGIN IMMEDIATE")
            yield cursor


def cut(items: Sequence[T], size: int = _AT_ONCE) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def insert(cursor: sqlite3.Cursor, statement: str, values: Sequence[object], width: int) -> None:
    """Rows of so many values each."""
    row = f"({marks(values[:width])})"
    for some in cut(values, _AT_ONCE * width):
        cursor.execute(statement + ", ".join([row] * (len(some) // width)), some)


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
        log_ahead(database, _PATIENCE)
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


def log_ahead(database: sqlite3.Connection, patience: float) -> None:
    """Turn on write-ahead logging. SQLite does not wait for another process that turns it on in the same new
    database: each would wait for the other. Who is refused tries again, for ``patience`` seconds. Raises
    sqlite3.Error."""
    deadline = time.monotonic() + patience
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_AGAIN)
        else:
            return
