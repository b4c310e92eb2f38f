"""What a receiver's folder shows to its user."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Every file below ``folder`` but those of the store's own ``.tdx``, sorted; the store is not even looked
    into, where uploads come and go while a receiver runs."""
    found: list[Path] = []
    for top, folders, files in os.walk(folder):
        if Path(top) == folder and ".tdx" in folders:
            folders.remove(".tdx")
        found += [path for name in files if (path := Path(top, name)).is_file()]
    return sorted(found)
