"""Streams and pumps: every way of moving the bytes, by one connection and by several."""

from __future__ import annotations

from typing import Final

from perf.content import GIB, random_file, scratch
from perf.contest import contest
from perf.contestants.tdx import Tdx
from perf.model import Outcome, Settings

STREAMS: Final = (1, 2, 4, 8)
SENDING: Final = ("sendfile", "buffered")
RECEIVING: Final = ("splice", "buffered")


def run(settings: Settings) -> Outcome:
    with scratch(settings.disk) as home:
        source = random_file(home / "source", settings.sized(GIB))
        tables = tuple(
            contest(
                "Streams and pumps",
                [
                    Tdx(
                        f"{sending} → {receiving}",
                        ("--streams", str(streams), "--pump", sending),
                        ("--pump", receiving),
                    )
                    for sending in SENDING
                    for receiving in RECEIVING
                ],
                source,
                settings,
                conditions={"streams": str(streams)},
                rounds=min(3, settings.rounds),
                with_memory=False,
            )
            for streams in STREAMS
        )
    notes = (
        (
            "1 GiB, page cache to tmpfs over loopback. A contestant is a pair of pumps, sending → "
            "receiving, forced with --pump; without it, tdx chooses by a probe."
        ),
        (
            "Loopback has no loss and no delay: here several connections can only cost. What they are "
            "for is in the scenario with the long link."
        ),
    )
    return Outcome("sweep", "Streams and pumps", notes, tables)
