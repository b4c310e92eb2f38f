"""P10: what a push costs before its first byte: a file of 1 KiB, exec to exit."""

from __future__ import annotations

import statistics
import sys

from perf import targets
from perf.content import KIB, random_file, scratch
from perf.contest import contest
from perf.contestants.tdx import Tdx
from perf.lineup import NGINX, RSYNC, SCP, TDX
from perf.model import Outcome, Settings
from perf.processes import timed
from perf.tables import seconds_of, series_of


def run(settings: Settings) -> Outcome:
    rounds = 4 * settings.rounds
    with scratch(settings.disk) as home:
        source = random_file(home / "source", KIB)
        contestants = (TDX, Tdx("tdx (TLS)", tls=True), NGINX, RSYNC, SCP)
        table = contest("1 KiB, exec to exit", contestants, source, settings, rounds=rounds)
    bare = statistics.median(timed([sys.executable, "-c", "pass"]).seconds for _ in range(rounds))
    notes = (f"Python alone, which tdx is written in, takes {bare:.3f} s to start and end.",)
    seconds = seconds_of(series_of(table, TDX.name).runs)
    return Outcome("start", "Start-up", notes, (table,), (targets.P10.reached_by(seconds),))
