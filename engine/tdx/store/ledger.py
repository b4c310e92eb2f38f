"""An upload's journal file together with the state it says: what one claim reads and appends to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from tdx.errors import disk_failure
from tdx.model import UploadSpec
from tdx.store.folders import Folder
from tdx.store.journal import Record, Session, State, encode, replay, runs
from tdx.store.syscalls import System


class Ledger:
    """Appends records to a claimed folder's journal and keeps the state in step.

    ``writing`` is held by whoever decides on records and appends them, and for as long as the disk
    likes; ``lock`` only for the instant in which the state changes. Under either the
    state can be read, so that a look at it never waits for the disk.
    """

    def __init__(self, system: System, folder: Folder, spec: UploadSpec, session: Session) -> None:
        """Replay the journal, cut it where it is torn, and begin a session in it.

        NoSpace, StorageError.
        """
        self._system = system
        self._folder = folder
        self._name = spec.name
        self.writing = threading.Lock()
        self.lock = threading.Lock()
        self._tell: Callable[[int], None] | None = None
        self._lost = 0
        """Bytes that nobody was told of yet."""
        self.state = State(spec.extent_size, spec.length, spec.holes)
        try:
            self._end, self._chain = replay(folder.read_journal(), self.state, folder.upload)
            system.ftruncate(folder.journal, self._end)
        except OSError as error:
            raise disk_failure(f"{spec.name}: the journal cannot be opened", error) from error
        self.append([Record.session(session)])

    def append(self, records: list[Record]) -> None:
        """Under ``writing``, without ``lock``. A record counts only once all of it is written; what a
        failure leaves behind is overwritten by the next, and the chain of checksums excludes
        anything after that. NoSpace, StorageError."""
        chain = self._chain
        data = b""
        for record in records:
            encoded, chain = encode(record, chain)
            data += encoded
        at = self._end
        while data:
            try:
                done = self._system.pwrite(self._folder.journal, data, at)
            except InterruptedError:
                continue
            except OSError as error:
                raise disk_failure(f"{self._name}: the journal cannot be written", error) from error
            at += done
            data = data[done:]
        self._end = at
        self._chain = chain
        with self.lock:
            before = self.state.received
            for record in records:
                self.state.apply(record)
            self._lost += max(0, before - self.state.received)
        self._tell_lost()

    def tell_lost(self, lost: Callable[[int], None]) -> None:
        """See :meth:`tdx.store.port.Upload.tell_lost`."""
        with self.lock:
            self._tell = lost
        self._tell_lost()

    def lose_all(self) -> None:
        """Nothing of what has come is held any more."""
        with self.lock:
            self._lost += self.state.received
        self._tell_lost()

    def _tell_lost(self) -> None:
        with self.lock:
            lost, tell = self._lost, self._tell
            if tell is None or not lost:
                return
            self._lost = 0
        tell(lost)

    def forget(self, extents: Iterable[int]) -> None:
        """Under ``writing``: say that of these extents nothing is held. NoSpace, StorageError."""
        self.append([Record.invalidate(first, end) for first, end in runs(extents)])

    def sync(self) -> None:
        """Make the journal, and the folder it lies in, durable. OSError."""
        self._system.fdatasync(self._folder.journal)
        self._folder.root()
