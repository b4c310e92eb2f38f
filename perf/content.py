"""What is moved: sources that are made from a seed, and whether what arrived is the same."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from xxhash import xxh3_128

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
AGE_SECONDS: Final = 3600
"""How old sources are said to be: a file that was written a moment ago might still be changing."""


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder of our own below ``folder``, removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"tdx-perf-{os.getpid()}-{time.monotonic_ns():x}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def random_file(path: Path, size: int) -> Path:
    """A file that no compression helps with."""
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 8 * MIB)))
    return _aged(path)


def sparse_file(path: Path, size: int, ends: int) -> Path:
    """``size`` bytes: ``ends`` random ones at each end, a hole between."""
    ends = min(ends, size // 2)
    with path.open("wb") as file:
        for start in (0, size - ends):
            file.seek(start)
            left = ends
            while left:
                left -= file.write(os.urandom(min(left, 8 * MIB)))
        file.truncate(size)
    return _aged(path)


def folder_of(path: Path, sizes: Sequence[int], per_folder: int | None = None, seed: int = 1) -> Path:
    """A folder with a file of each size, the same bytes for the same seed: side by side, or with at most
    ``per_folder`` of them in one of its folders, which are nested up to three deep."""
    chance = random.Random(seed)
    pool = chance.randbytes(MIB)
    path.mkdir()
    place = path
    for number, size in enumerate(sizes):
        if per_folder is not None and number % per_folder == 0:
            group = number // per_folder
            place = path.joinpath(*(f"d{group // 9**level % 9}" for level in (2, 1, 0)[-(1 + group % 3) :]))
            place /= f"g{group}"
            place.mkdir(parents=True)
        _write_from(pool, chance, place / f"f{number:05}", size)
    return path


def _write_from(pool: bytes, chance: random.Random, path: Path, size: int) -> None:
    """Stretches of a pool of random bytes: fast to make, and no two files the same."""
    with path.open("wb") as file:
        left = size
        while left:
            start = chance.randrange(len(pool))
            left -= file.write(pool[start : start + left])
    _aged(path)


def _aged(path: Path) -> Path:
    then = time.time() - AGE_SECONDS
    os.utime(path, (then, then))
    return path


def size_of(source: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if source.is_dir():
        return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    return source.stat().st_size


def count_of(source: Path) -> int:
    return sum(path.is_file() for path in source.rglob("*")) if source.is_dir() else 1


# --- comparing -----------------------------------------------------------------


def same_content(source: Path, copy: Path) -> bool:
    """Whether a file, or everything in a folder, is there byte by byte under the same names."""
    if source.is_dir():
        return copy.is_dir() and _digests(source) == _digests(copy)
    if not copy.is_file() or copy.stat().st_size != source.stat().st_size:
        return False
    if _is_dense(source):
        return subprocess.run(["cmp", "-s", str(source), str(copy)], check=False).returncode == 0
    return _same_data(source, copy)


def remove(path: Path) -> None:
    """A file, or a folder with all it has."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file that are no holes (lseek(2), SEEK_DATA), half-open."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole, or the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _is_dense(path: Path) -> bool:
    status = path.stat()
    return status.st_blocks * 512 >= status.st_size


def _same_data(a: Path, b: Path) -> bool:
    """Compares where either file has data; where both have holes, both have zeros."""
    with a.open("rb", buffering=0) as one, b.open("rb", buffering=0) as other:
        ranges = [*data_ranges(one.fileno()), *data_ranges(other.fileno())]
        for start, end in ranges:
            for offset in range(start, end, MIB):
                length = min(MIB, end - offset)
                if os.pread(one.fileno(), length, offset) != os.pread(other.fileno(), length, offset):
                    return False
    return True


def _digests(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): xxh3_128(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }
