"""A disk that is slow to read: ``python slow_files.py MOUNTPOINT FOLDER BYTES_A_SECOND`` (FUSE).

The files of FOLDER, to be read only.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped]


class SlowFiles(mfusepy.Operations):  # type: ignore[misc]
    use_ns = True

    def __init__(self, folder: Path, rate: float) -> None:
        self._folder = folder
        self._rate = rate

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        try:
            found = os.lstat(f"{self._folder}{path}")
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno or errno.EIO) from error
        names = ("st_mode", "st_nlink", "st_size", "st_mtime_ns", "st_ctime_ns")
        return {name.removesuffix("_ns"): getattr(found, name) for name in names}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(f"{self._folder}{path}")]

    def open(self, path: str, flags: int) -> int:
        return os.open(f"{self._folder}{path}", os.O_RDONLY)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        data = os.pread(fh, size, offset)
        time.sleep(len(data) / self._rate)
        return data

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0


def main() -> None:
    mountpoint, folder, rate = sys.argv[1:]
    files = SlowFiles(Path(folder), float(rate))
    mfusepy.FUSE(files, mountpoint, foreground=True, nothreads=True, ro=True)


if __name__ == "__main__":
    main()
