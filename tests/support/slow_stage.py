"""``tdx`` with one slow stage: ``python slow_stage.py STAGE ARGUMENTS...``.

``sync``: the sync of a file's data takes three seconds more. ``hash``: every hash is taken many times over,
as on a slow CPU.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import xxhash

SYNC_SECONDS: Final = 3.0
TIMES: Final = 600


def slow_sync() -> None:
    sync = os.fsync

    def slower(fd: Any) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).name == "data":
            time.sleep(SYNC_SECONDS)
        sync(fd)

    os.fsync = slower


def slow_hash() -> None:
    hasher = xxhash.xxh3_128

    class Slower:
        def __init__(self) -> None:
            self._real, self._more = hasher(), hasher()

        def update(self, data: Any) -> None:
            self._real.update(data)
            for _ in range(TIMES):
                self._more.update(data)

        def digest(self) -> bytes:
            return self._real.digest()

    xxhash.xxh3_128 = Slower  # type: ignore[misc, assignment]


def main() -> None:
    stage, *sys.argv[1:] = sys.argv[1:]
    {"sync": slow_sync, "hash": slow_hash}[stage]()
    from tdx_cli.main import main as tdx

    tdx()


if __name__ == "__main__":
    main()
