"""Over a mesh: Taildrop and tdx between two real nodes of a tailnet."""

from __future__ import annotations

from typing import Final

from perf.content import MIB, random_file, scratch
from perf.contest import contest
from perf.contestants.tailscale import MeshTdx, Taildrop, mesh
from perf.model import Outcome, Settings

SIZE: Final = 256 * MIB
ROUNDS: Final = 5
"""At least."""


def run(settings: Settings) -> Outcome:
    with (
        scratch(settings.disk) as home,
        mesh(home / "logs", settings.memory) as nodes,
    ):
        source = random_file(home / "source.bin", settings.sized(SIZE))
        contestants = (MeshTdx(nodes), Taildrop(nodes))
        rounds = max(ROUNDS, settings.rounds)
        table = contest("Over a tailnet, to memory", contestants, source, settings, rounds=rounds)
        version = contestants[1].version()
    notes = (
        (
            f"Two nodes of {version} in network namespaces joined by a bridge, with headscale as their "
            "control server; they reach each other directly. WireGuard runs in user space, in each "
            "node's tailscaled."
        ),
        (
            "The processor time and the memory of both tailscaled are counted with the receiver; they "
            "encrypt and decrypt for both contestants, on the processors that the contestants run on."
        ),
        (
            "tailscale file cp ends when the receiving tailscaled has the file; moving it to a folder "
            "with tailscale file get is not measured. tdx has verified and published it by then."
        ),
    )
    return Outcome("mesh", "Over a tailnet", notes, (table,))
