"""A disk that remembers what reached it: ``python recording_disk.py MOUNTPOINT CONTENT LOG``.

A filesystem of one file, ``disk``, with the bytes of CONTENT. Whoever makes a block device of it has
every write noted in LOG, and every flush, in order and before it is answered (:mod:`support.blocklog`).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import Any

import mfusepy  # type: ignore[import-untyped]

from support.blocklog import DISK, FLUSH, WRITE, encode


class RecordingDisk(mfusepy.Operations):  # type: ignore[misc]
    """Answers one call at a time, so that the order of the log is the order of things."""

    use_ns = True

    def __init__(self, content: int, log: int) -> None:
        self._content = content
        self._log = log

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != f"/{DISK}":
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": os.fstat(self._content).st_size}

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._content, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        note(self._log, encode(WRITE, offset, len(data)) + data)
        return os.pwrite(self._content, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        note(self._log, encode(FLUSH, 0, 0))
        return 0


def note(log: int, entry: bytes) -> None:
    if os.write(log, entry) != len(entry):
        raise OSError(errno.ENOSPC, "no room for the log")


def main() -> None:
    mountpoint, content, log = sys.argv[1:]
    disk = RecordingDisk(os.open(content, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_APPEND))
    mfusepy.FUSE(disk, mountpoint, foreground=True, nothreads=True)


if __name__ == "__main__":
    main()
