"""P1 and P3: one large file, page cache to tmpfs over loopback, against whatever people would use."""

from __future__ import annotations

from perf import targets
from perf.content import GIB, random_file, scratch
from perf.contest import contest
from perf.lineup import BARE, CP, NGINX, PEERS, RSYNC, SCP, TDX
from perf.model import Outcome, Settings, Target
from perf.tables import time_ratios


def run(settings: Settings) -> Outcome:
    with scratch(settings.disk) as home:
        source = random_file(home / "source", settings.sized(3 * GIB))
        table = contest("One file, page cache to tmpfs", (TDX, CP, BARE, *PEERS), source, settings)
    found: list[Target] = []
    if as_long := time_ratios(table, TDX.name, CP.name):
        found.append(targets.P1.reached_by(as_long))
    for goal, peer in ((targets.P3_NGINX, NGINX), (targets.P3_RSYNC, RSYNC), (targets.P3_SCP, SCP)):
        if faster := time_ratios(table, peer.name, TDX.name):
            found.append(goal.reached_by(faster))
    notes = (
        (
            "The source is in the page cache, the target a tmpfs, everything on one machine: what is "
            "measured is the program and the processor, not a disk or a wire."
        ),
        (
            "tdx verifies every byte at both ends and keeps a journal; what the others leave out is "
            "in the table. On a tmpfs, fsync costs nothing for anybody."
        ),
        (
            "The targets are against nginx with its default body buffer of 16 KiB, and scp with AES-128-GCM; "
            "nginx with the best buffer there is and scp with its default cipher are there for comparison."
        ),
        (
            "bare TCP is no program that anybody uses: two connections, sendfile at one end, receive and "
            "write at the other (perf/bare.py), the least that goes over TCP here, whatever is on top of it."
        ),
        (
            "tdx takes BBR, this system's congestion control, off what goes to the very machine it runs on, "
            "as its pacing costs a quarter there (docs/decisions/008-one-large-push.md); the peers run as "
            "they come."
        ),
        (
            "croc has no server that stays up: its figure has the start of the receiver in it, and "
            "all bytes pass through its relay. A run of croc whose two ends fail to agree on a key is "
            "repeated."
        ),
    )
    return Outcome("single", "One large file, everybody", notes, (table,), tuple(found))
