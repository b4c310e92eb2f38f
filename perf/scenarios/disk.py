"""P2: one large file to a disk, durable at the end."""

from __future__ import annotations

from perf import targets
from perf.content import GIB, random_file, scratch
from perf.contest import contest
from perf.lineup import CP_SYNC, DD, RSYNC_SYNC, TDX
from perf.model import Outcome, Settings
from perf.tables import time_ratios


def run(settings: Settings) -> Outcome:
    with scratch(settings.disk) as home:
        source = random_file(home / "source", settings.sized(3 * GIB))
        contestants = (TDX, DD, CP_SYNC, RSYNC_SYNC)
        warm = contest("One file to disk, durable", contestants, source, settings, on_disk=True)
        part = random_file(home / "part", settings.sized(GIB))
        cold = contest(
            "From disk to disk, source not cached",
            (TDX, DD),
            part,
            settings,
            on_disk=True,
            cold=True,
        )
    notes = (
        (
            "Unless it says otherwise, the source is in the page cache, and nothing is left to write "
            "back when a run begins. Everybody's file is on the disk when the command has ended."
        ),
        (
            "The disk is a virtual one whose speed changes from minute to minute: only ratios within "
            "a round say something about the programs."
        ),
    )
    ratios = time_ratios(warm, TDX.name, DD.name)
    return Outcome("disk", "One large file, durable", notes, (warm, cold), (targets.P2.reached_by(ratios),))
