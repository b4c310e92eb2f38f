"""The sender's memory of the roots of whole files, so that what has not changed need not be read again.

One SQLite database in the state directory: for each file (device and inode) the root that its content had
in the state that stat told of (size, mtime, ctime). A file in any other state is not known. Nobody can set a
ctime, so a change shows also where size and mtime are as before.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tdx.integrity import ALGORITHM, DIGEST_SIZE, Root, extent_size_for
from tdx.store.database import log_ahead

DATABASE: Final = "roots.sqlite3"

KEPT_DAYS: Final = 60
"""For so long a file is remembered that no run has come across."""

_DAY: Final = 86400
_NOTED_AGAIN: Final = 7
"""Days after which it is written down that a file has been come across again: not in every run."""

_PATIENCE: Final = 2.0
"""Seconds to wait for another process's write; to go on without is no great loss."""

_AT_ONCE: Final = 500
"""Files of one query. SQLite may allow no more than 999 variables."""

_SOURCE: Final = struct.Struct(">QQ")
_STATE: Final = struct.Struct(">qqq")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS roots (
    source BLOB PRIMARY KEY,
    state BLOB NOT NULL,
    root BLOB NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID"""


class Roots:
    """Never raises for what the disk or SQLite does: what cannot be read is not known, and what cannot be
    written is forgotten. Methods may be called from several threads at once, and several
    processes may share the database."""

    def __init__(self, state: Path, now: float) -> None:
        """``now`` in seconds since the Unix epoch. The database in the folder ``state`` is opened, and
        made, when it is first needed."""
        self._path = state / DATABASE
        self._today = int(now // _DAY)
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._usable = True
        self._new: dict[bytes, tuple[bytes, bytes]] = {}
        self._seen_again: list[bytes] = []

    def known(self, statuses: Sequence[os.stat_result]) -> list[str | None]:
        """The written root of each of these files, as they are now; None where it is not known. Blocks."""
        sources = [_source(each) for each in statuses]
        rows: dict[bytes, tuple[bytes, bytes, int]] = {}

        def look(database: sqlite3.Connection) -> None:
            for at in range(0, len(sources), _AT_ONCE):
                some = sources[at : at + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"SELECT source, state, root, used FROM roots WHERE source IN ({marks})"  # noqa: S608
                for source, state, root, used in database.execute(query, some):
                    rows[source] = (state, root, used)

        with self._lock:
            self._use(look)
            return [
                self._root_of(source, status, rows.get(source))
                for source, status in zip(sources, statuses, strict=True)
            ]

    def _root_of(
        self, source: bytes, status: os.stat_result, row: tuple[bytes, bytes, int] | None
    ) -> str | None:
        if row is None:
            return None
        state, root, used = row
        if state != _state(status) or len(root) != DIGEST_SIZE:
            return None
        if used <= self._today - _NOTED_AGAIN:
            self._seen_again.append(source)
        return f"{ALGORITHM}:{extent_size_for(status.st_size)}:{root.hex()}"

    def remember(self, status: os.stat_result, root: str) -> None:
        """What was read had this root. The caller vouches that the file was in this state all the while,
        and that any later change shows in it (``tdx.data.source.settled``). Kept in memory until
        :meth:`save`."""
        parsed = Root.parse(root)
        if parsed.extent_size == extent_size_for(status.st_size):
            with self._lock:
                self._new[_source(status)] = (_state(status), parsed.value)

    @property
    def unsaved(self) -> int:
        """How many files have been remembered since the last :meth:`save`."""
        return len(self._new)

    def save(self) -> None:
        """Write down what is new. Blocks."""
        with self._lock:
            new = [(source, *value, self._today) for source, value in self._new.items()]
            seen = [(self._today, source) for source in self._seen_again]
            self._new, self._seen_again = {}, []
            if new or seen:
                self._use(lambda database: self._write(database, new, seen))

    def _write(
        self,
        database: sqlite3.Connection,
        new: Sequence[tuple[bytes, bytes, bytes, int]],
        seen: Sequence[tuple[int, bytes]],
    ) -> None:
        with database:  # ends the transaction, either way
            database.execute("BEGIN IMMEDIATE")
            database.executemany("UPDATE roots SET used = ? WHERE source = ?", seen)
            database.executemany("INSERT OR REPLACE INTO roots VALUES (?, ?, ?, ?)", new)
            # The number that SQLite keeps for its users is the day on which this was done last.
            if database.execute("PRAGMA user_version").fetchone() != (self._today,):
                database.execute("DELETE FROM roots WHERE used < ?", (self._today - KEPT_DAYS,))
                database.execute(f"PRAGMA user_version = {self._today}")

    def close(self) -> None:
        """Save, and let go of the database. Blocks. Idempotent."""
        self.save()
        with self._lock:
            self._usable = False
            self._let_go()

    @classmethod
    def prune(cls, state: Path, now: float, older_than: float) -> int:
        """Forget the files that no run has come across since ``older_than`` seconds before ``now``, or since
        the midnight before that; how many."""
        removed = 0
        if not (state / DATABASE).exists():
            return removed
        roots = cls(state, now)

        def work(database: sqlite3.Connection) -> None:
            nonlocal removed
            before = int((now - older_than) // _DAY)
            removed = database.execute("DELETE FROM roots WHERE used <= ?", (before,)).rowcount

        with roots._lock:
            roots._use(work)
        roots.close()
        return removed

    def _use(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Have ``work`` done, if it can be. After a failure the database is left alone, and one that is
        none, or broken, is removed, so that the next run begins anew."""
        if not self._usable:
            return
        try:
            if self._database is None:
                self._database = self._open()
            work(self._database)
        except (sqlite3.Error, OSError, ValueError) as error:
            self._usable = False
            self._let_go()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                for suffix in ("-wal", "-shm", ""):
                    with contextlib.suppress(OSError):
                        os.unlink(f"{self._path}{suffix}")

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(
            self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            log_ahead(database, _PATIENCE)
            # After a power cut the last rows may be missing, and none is wrong.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _let_go(self) -> None:
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None


def _source(status: os.stat_result) -> bytes:
    return _SOURCE.pack(status.st_dev, status.st_ino)


def _state(status: os.stat_result) -> bytes:
    return _STATE.pack(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
