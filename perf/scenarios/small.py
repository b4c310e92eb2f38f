"""P6: many small files to a disk, durable at the end; all of one size, and as a source tree has them."""

from __future__ import annotations

import random
from typing import Final

from perf import targets
from perf.content import KIB, MIB, folder_of, scratch
from perf.contest import contest
from perf.lineup import CP_SYNC, RSYNC_SYNC, TDX
from perf.model import Outcome, Settings
from perf.tables import time_ratios

SMALLEST: Final = 100
LARGEST: Final = 5 * MIB
MEDIAN: Final = 4 * KIB
SIGMA: Final = 1.8
"""Of the logarithm of the sizes: a few large files have most of the bytes."""


def run(settings: Settings) -> Outcome:
    count = settings.sized(10_000)
    contestants = (TDX, RSYNC_SYNC, CP_SYNC)
    with scratch(settings.disk) as home:
        equal = folder_of(home / "equal", [16 * KIB] * count)
        same = contest(
            "Files of 16 KiB, durable", contestants, equal, settings, on_disk=True, aside=home / "done"
        )
        tree = folder_of(home / "tree", mixed_sizes(count // 2), per_folder=20)
        mixed = contest(
            "A source tree, durable", contestants, tree, settings, on_disk=True, aside=home / "done"
        )
    notes = (
        (
            "One command for the whole folder; its files are in the page cache, nothing is left to "
            "write back when a run begins, and all of it is on the disk when the command has ended."
        ),
        (
            "What arrived is kept until the end: ext4 passes over inodes that were freed lately, one by one, "
            "and so makes files many times slower for minutes after others have been deleted."
        ),
        (
            f"The source tree: nested folders of 20 files, sizes from {SMALLEST} B to {LARGEST // MIB} "
            f"MiB with a median of {MEDIAN // KIB} KiB, log-normal, the same every time."
        ),
    )
    ratios = time_ratios(same, TDX.name, RSYNC_SYNC.name)
    found = (targets.P6.reached_by(ratios),) if ratios else ()
    return Outcome("small", "Many small files", notes, (same, mixed), found)


def mixed_sizes(count: int, seed: int = 7) -> list[int]:
    """Log-normal sizes within the bounds, the same for the same seed."""
    chance = random.Random(seed)
    return [
        round(min(LARGEST, max(SMALLEST, MEDIAN * chance.lognormvariate(0, SIGMA)))) for _ in range(count)
    ]
