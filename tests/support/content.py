"""Files that the tests push, and an opinion on what arrived that shares no code with tdx."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
SEED: Final = "TDX_TEST_SEED"
"""Environment variable: the seed of a test that chooses at random, to see the same again."""


def random_file(path: Path, size: int) -> Path:
    """A file of ``size`` random bytes."""
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 4 * MIB)))
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chosen_seed() -> int:
    """A new seed each time, or the one that the environment asks for."""
    given = os.environ.get(SEED)
    return random.randrange(1 << 32) if given is None else int(given)
