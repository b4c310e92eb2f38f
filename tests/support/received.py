"""What a receiver's folder shows to its user."""

from __future__ import annotations

import os
from pathlib import Path


def below(folder: Path) -> list[Path]:
    """Everything below ``folder`` but the store's own ``.tdx``, sorted; the store is not even looked into,
    where uploads come and go while a receiver runs."""
    found: list[Path] = []
    for top, folders, files in os.walk(folder):
        if Path(top) == folder and ".tdx" in folders:
            folders.remove(".tdx")
        found += [Path(top, name) for name in (*folders, *files)]
    return sorted(found)


def files_below(folder: Path) -> list[Path]:
    """The files among it, and links that lead to one."""
    return [path for path in below(folder) if path.is_file()]
