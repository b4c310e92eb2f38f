"""P8: one large file, encrypted, page cache to tmpfs over loopback."""

from __future__ import annotations

from perf import targets
from perf.content import GIB, random_file, scratch
from perf.contest import contest
from perf.contestants.tdx import Tdx
from perf.lineup import SCP, SCP_256, SCP_DEFAULT, TDX
from perf.model import Outcome, Settings
from perf.tables import time_ratios


def run(settings: Settings) -> Outcome:
    paired = Tdx("tdx (TLS)", tls=True)
    with scratch(settings.disk) as home:
        source = random_file(home / "source", settings.sized(3 * GIB))
        contestants = (paired, SCP_256, SCP, SCP_DEFAULT, TDX)
        table = contest("One file, encrypted", contestants, source, settings)
    notes = (
        (
            "tdx between paired devices speaks TLS 1.3 with AES-256-GCM and seals the file's bytes with the "
            "same cipher beneath it (docs/decisions/011-sealed-bodies.md): the target is against scp with "
            "that cipher, too. scp with AES-128-GCM and with its default cipher, and tdx in plain, are there "
            "for comparison."
        ),
        "scp authenticates every packet, and has neither a hash of the file nor an fsync.",
    )
    faster = time_ratios(table, SCP_256.name, paired.name)
    found = (targets.P8.reached_by(faster),) if faster else ()
    return Outcome("tls", "Encrypted: TLS against scp", notes, (table,), found)
