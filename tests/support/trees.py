"""Trees to push, and what is found of them where they arrive."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20

SIZES: Final = (
    (0.02, 0, 0),
    (0.7, 1, 2048),
    (0.985, 2048, 16384),
    (0.999, 16384, 300_000),
    (1.0, MIB, 5 * MIB),
)
"""Of a tree's files: up to which share which sizes, in bytes."""


def make_tree(top: Path, files: int, chance: random.Random) -> None:
    """So many files of mixed sizes and permissions in nested folders, some of them empty, some links."""
    top.mkdir(parents=True)
    folders = [top]
    for number in range(max(2, files // 20)):
        folders.append(chance.choice(folders[-20:]) / f"folder {number}")
        folders[-1].mkdir()
    content = random.Random(files).randbytes(6 * MIB)
    for number in range(files):
        share = chance.random()
        least, most = next((least, most) for up_to, least, most in SIZES if share <= up_to)
        size = chance.randint(least, most)
        start = chance.randint(0, len(content) - size)
        path = chance.choice(folders[::2]) / f"file {number}"
        path.write_bytes(content[start : start + size])
        path.chmod(chance.choice((0o644, 0o600, 0o755, 0o444)))
        os.utime(path, ns=(0, 1_500_000_000_000_000_000 + chance.randrange(10**17)))
        if number % 50 == 0:
            path.with_name(f"link {number}").symlink_to(path.name)
    for folder in reversed(folders):
        folder.chmod(chance.choice((0o755, 0o700, 0o750)))
        os.utime(folder, ns=(0, 1_500_000_000_000_000_000 + chance.randrange(10**17)))


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """Every file, folder and link under ``top`` by its path, with all that is to arrive but content."""
    return {str(path.relative_to(top)): _facts(path) for path in _under(top)}


def _under(top: Path) -> Iterator[Path]:
    yield top
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            yield Path(folder, name)


def _facts(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "link", found.st_mtime_ns, os.readlink(path)
    kind = "folder" if stat.S_ISDIR(found.st_mode) else "file"
    size = 0 if kind == "folder" else found.st_size
    return kind, found.st_mtime_ns, oct(stat.S_IMODE(found.st_mode)), size
