"""``tdx`` on a disk that is slow at a chosen moment: ``python slow_disk.py GATE COMMAND...``.

While the file GATE exists, the sync that a commit begins with does not return; GATE.reached
says that one has been called.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    gate, *arguments = sys.argv[1:]
    sync = os.fsync

    def slow_sync(fd: Any) -> None:
        if Path(os.readlink(f"/proc/self/fd/{fd}")).name == "data" and Path(gate).exists():
            Path(gate + ".reached").touch()
            while Path(gate).exists():
                time.sleep(0.001)
        sync(fd)

    os.fsync = slow_sync
    sys.argv[1:] = arguments
    from tdx_cli.main import main as tdx

    tdx()


if __name__ == "__main__":
    main()
