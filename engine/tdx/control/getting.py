"""Moving on what has arrived: once, as soon as something is there, or for ever."""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tdx.errors import BadName, SourceError, TdxError
from tdx.model import Conflict, UploadId, shown
from tdx.store.inbox import Inbox
from tdx.store.moving import Moved, Mover
from tdx.store.receipts import ArrivedFile

POLL_SECONDS: Final = 0.25
"""How often it is asked whether the receipts have changed, which is a look at memory they share."""

RETRY_SECONDS: Final = 60.0
"""After this long a file that could not be moved is tried again."""

BATCH: Final = 256
"""Files that are made durable together, at most."""

BATCH_SECONDS: Final = 0.5


class Stop(Protocol):
    """Tells when to end. What it raises leaves every file whole, where it was or where it goes."""

    def check(self) -> None:
        """Raise why it is time to end, if it is."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep, no longer than until it is time to end."""
        ...


@dataclass(frozen=True, slots=True)
class GetOptions:
    """``names`` are those of files or folders, none: all. ``wait``: until there is one of each; ``loop``:
    what comes afterwards, too."""

    folder: Path
    state: Path
    destination: Path
    names: tuple[str, ...] = ()
    conflict: Conflict = Conflict.RENAME
    wait: bool = False
    loop: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one file: it lies at ``path`` now, was ``skipped`` for what lies there, or there was an
    error."""

    file: ArrivedFile
    path: Path | None
    skipped: bool = False
    error: TdxError | None = None


class Getting:
    """Moves files from one receiver's folder to a destination; the receiver may run, or not, or restart."""

    def __init__(
        self,
        options: GetOptions,
        stop: Stop,
        report: Callable[[Ended], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """BadName where the destination is no folder."""
        if not options.destination.is_dir():
            raise BadName(f"{shown(str(options.destination))}: is no folder to move to")
        self._options = options
        self._stop = stop
        self._report = report
        self._clock = clock
        self._wanted = {name: posixpath.normpath(name) for name in options.names}
        self._missing = set(self._wanted)
        self._inbox: Inbox | None = None
        self._mover: Mover | None = None
        self._version: object = None
        self._looked = False
        self._kept: dict[UploadId, tuple[float, str]] = {}
        """What stays where it is: when to try it again, and what was said of it."""
        self.ended = 0
        """Files that anything was said of."""

    def run(self) -> None:
        """Until what was asked for has been moved. SourceError for names that nothing has, unless they are
        waited for; what ``stop`` raises; ConfigError, StorageError where nothing can be read."""
        try:
            while True:
                self._stop.check()
                if self._has_changed():
                    self._pass()
                    if not self._options.loop and self._is_done():
                        break
                if not (self._options.loop or self._options.wait):
                    break
                self._stop.wait(POLL_SECONDS)
        finally:
            self._close()
        if self._missing and not self._options.loop:
            names = ", ".join(shown(name) for name in self._wanted if name in self._missing)
            raise SourceError(f"{names}: not in the inbox; `tdx inbox` lists what is")

    def _is_done(self) -> bool:
        return not self._missing if self._wanted else self.ended > 0

    # --- the receiver's folder -----------------------------------------------------------

    def _has_changed(self) -> bool:
        """Whether it is worth looking at all the files."""
        if self._inbox is not None and self._inbox.gone:
            self._close()
        if self._inbox is None:
            self._inbox = Inbox.find(self._options.folder, self._options.state)
            if self._inbox is None:
                return False
            self._mover = Mover(
                self._inbox, self._options.destination, self._options.conflict, self._stop.check
            )
        version, self._version = self._version, self._inbox.version()
        return version != self._version or any(self._clock() >= due for due, _ in self._kept.values())

    def _close(self) -> None:
        if self._mover is not None:
            self._mover.close()
        if self._inbox is not None:
            self._inbox.close()
        self._inbox = self._mover = self._version = None

    # --- files ------------------------------------------------------------------------------

    def _pass(self) -> None:
        """Move whatever is there and wanted."""
        inbox, mover, now = self._inbox, self._mover, self._clock()
        assert inbox is not None
        assert mover is not None
        files = [each for each in inbox.files() if self._wants(each.path)]
        self._kept = {each.upload: self._kept[each.upload] for each in files if each.upload in self._kept}
        begun = self._clock()
        try:
            for count, file in enumerate(files, 1):
                if self._kept.get(file.upload, (now, ""))[0] > now:
                    continue
                self._move(mover, file)
                if count % BATCH == 0 or self._clock() - begun >= BATCH_SECONDS:
                    self._settle(mover)
                    begun = self._clock()
        finally:
            self._settle(mover)

    def _wants(self, path: str) -> bool:
        if not self._wanted:
            return True
        matching = [
            name
            for name, wanted in self._wanted.items()
            if path == wanted or path.startswith(f"{wanted}/") or wanted == "."
        ]
        self._missing.difference_update(matching)
        return bool(matching)

    def _move(self, mover: Mover, file: ArrivedFile) -> None:
        self._stop.check()
        try:
            moved = mover.move(file)
        except TdxError as error:
            self._stop.check()
            self._keep(Ended(file, None, error=error), error.message)
            return
        if moved is not None and moved.skipped:
            self._keep(Ended(file, self._options.destination / moved.path, skipped=True), "")

    def _keep(self, ended: Ended, said: str) -> None:
        _, before = self._kept.get(ended.file.upload, (0.0, None))
        self._kept[ended.file.upload] = self._clock() + RETRY_SECONDS, said
        if before != said:
            self._tell(ended)

    def _settle(self, mover: Mover) -> None:
        for each in mover.settle():
            self._kept.pop(each.file.upload, None)
            self._tell(self._ended(each))

    def _ended(self, moved: Moved) -> Ended:
        return Ended(moved.file, self._options.destination / moved.path, error=moved.error)

    def _tell(self, ended: Ended) -> None:
        self.ended += 1
        self._report(ended)


def list_inbox(folder: Path, state: Path) -> Sequence[ArrivedFile]:
    """What has arrived in a receiver's folder and is still there, the newest last."""
    inbox = Inbox.find(folder, state)
    if inbox is None:
        return []
    with contextlib.closing(inbox):
        return inbox.files()
