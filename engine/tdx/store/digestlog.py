"""The sender's memory of its own digests, so that a resume does not read the whole source.

One text file per source: a header naming the state of the source that it is
valid for, then a line per extent: ``INDEX DIGEST CHECK``, the check being the first 16
hex digits of the XXH3-128 of header, index and digest. Because the header goes into
it, a line written by a run that still saw an older state of the source is invalid
in the log of the newer one. Lines may repeat; the last valid one counts.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tdx.integrity import DIGEST_SIZE, digest_of

_SUFFIX: Final = ".digests"
_CHECK_DIGITS: Final = 16


class DigestLog:
    """Extent digests of one source, in memory and, where the folder allows it, on disk.

    Never raises for what the disk does: without a usable folder it forgets at the end.
    Methods may be called from several threads at once, and several processes may
    keep the log of one source.
    """

    def __init__(self, path: Path, header: str) -> None:
        self._path = path
        self._header = header
        self._lock = threading.Lock()
        self._digests: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self._descriptor: int | None = None
        self._writable = True

    @classmethod
    def open(
        cls, folder: Path, source_id: str, stat_key: str, extent_size: int, *, trustworthy: bool
    ) -> DigestLog:
        """The log of ``source_id`` in ``folder``, which is made if missing.

        Digests recorded for another ``stat_key`` or extent size are not seen, and go with the
        first new one written. ``trustworthy``: the source is not young (see
        ``Source.young``); otherwise nothing is taken from the past.
        """
        # The name of the file is hashed so that whatever the id is, it stays in the folder.
        path = folder / (digest_of(source_id.encode(errors="surrogatepass")).hex() + _SUFFIX)
        header = f"tdx-digests 1 {extent_size} {digest_of(stat_key.encode(errors='surrogatepass')).hex()}"
        log = cls(path, header)
        if trustworthy:
            log._load()
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent. What is appended afterwards stays in memory."""
        with self._lock:
            self._writable = False
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def digests(self) -> dict[int, bytes]:
        """A snapshot: extent index → digest, from the past where valid, and of this run."""
        with self._lock:
            return self._digests.copy()

    def append(self, index: int, digest: bytes, *, trusted: bool) -> None:
        """Remember a digest: one small write, no sync. ``trusted`` says whether the source
        was no longer young when the reading of this extent began; otherwise only this run knows."""
        with self._lock:
            self._digests[index] = digest
            if trusted:
                self._write(index, digest)

    @staticmethod
    def prune(folder: Path, now: float, older_than: float) -> int:
        """Remove logs last written more than ``older_than`` seconds before ``now`` (seconds
        since the Unix epoch); how many."""
        removed = 0
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                if entry.suffix != _SUFFIX:
                    continue
                with contextlib.suppress(OSError):
                    if entry.lstat().st_mtime < now - older_than:
                        entry.unlink()
                        removed += 1
        return removed

    def _load(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            with open(descriptor, encoding="ascii", errors="replace", newline="\n", closefd=False) as file:
                lines = file.read().split("\n")
        except OSError:
            return
        finally:
            os.close(descriptor)
        if lines[0] != self._header:
            return
        for line in lines[1:]:
            record = self._parse(line)
            if record is not None:
                self._digests[record[0]] = self._written[record[0]] = record[1]

    def _write(self, index: int, digest: bytes) -> None:
        if not self._writable or self._written.get(index) == digest:
            return
        line = self._line(index, digest)
        try:
            if self._descriptor is None:
                self._descriptor = self._open_for_append()
            if os.write(self._descriptor, line) != len(line):
                # A full disk. The next line would go on in the middle of this one.
                self._writable = False
        except OSError:
            self._writable = False
        self._written[index] = digest

    def _open_for_append(self) -> int:
        """A descriptor at the end of the log, which is started anew unless it is ours."""
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = (self._header + "\n").encode()
        descriptor = os.open(self._path, flags | os.O_CREAT, 0o600)
        try:
            if os.pread(descriptor, len(head), 0) != head:
                os.ftruncate(descriptor, 0)
                self._put(descriptor, head)
                # Whatever was read from an earlier file of this state is in it no longer.
                self._written.clear()
            elif os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) != b"\n":
                self._put(descriptor, b"\n")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def _put(descriptor: int, data: bytes) -> None:
        if os.write(descriptor, data) != len(data):
            raise OSError("short write")

    def _line(self, index: int, digest: bytes) -> bytes:
        return f"{index} {digest.hex()} {self._check(index, digest)}\n".encode()

    def _check(self, index: int, digest: bytes) -> str:
        return digest_of(f"{self._header} {index} {digest.hex()}".encode()).hex()[:_CHECK_DIGITS]

    def _parse(self, line: str) -> tuple[int, bytes] | None:
        """The record in a line; None for one that is torn, corrupt or another state's."""
        try:
            index_text, digest_text, check = line.split(" ")
            index, digest = int(index_text), bytes.fromhex(digest_text)
        except ValueError:
            return None
        if index < 0 or len(digest) != DIGEST_SIZE or check != self._check(index, digest):
            return None
        return index, digest
