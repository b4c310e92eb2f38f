"""``tdx gc``, which takes away all that nobody uses, beside pushes that begin, die, go on and end."""

from __future__ import annotations

from pathlib import Path

from support.content import MIB, random_file, sha256_of
from support.processes import PROGRAM, Processes, Push, Receiver, Running
from support.soak import Soak

SIZE = 12 * MIB


def test_gc_never_takes_an_upload_that_is_in_use(
    processes: Processes, receiver: Receiver, area: Path, soak: Soak
) -> None:
    dice, rounds, killed = soak.dice, soak.rounds(4, 300), 0
    state = str(area / "receiver-state")
    command = [*PROGRAM, "gc", "--older-than", "0", "--state", state, "--dir", str(receiver.folder)]
    sources = [random_file(area / f"source{number}", SIZE) for number in range(3)]

    def gc() -> Running:
        return processes.run("gc", command)

    for number in range(rounds):
        pushes: dict[Path, Push] = {
            source: processes.push(
                source, receiver.address, "--resume", "--conflict", "overwrite", "--limit-rate", "12M"
            )
            for source in sources
        }
        victims = {source for source in sources if dice.random() < 0.4}
        for source in victims:
            before = receiver.staged + dice.randrange(4 * MIB)
            for _ in range(dice.randrange(1, 4)):
                assert gc().wait() == 0
                if receiver.staged > before:
                    break
            pushes[source].kill()
        while any(push.running for push in pushes.values()):
            assert gc().wait() == 0
        for source, push in pushes.items():
            if source in victims:
                killed += 1
                continue
            end = push.ends(0)
            assert end["event"] in ("done", "identical"), push.log()
            assert end["sent_bytes"] + end["resumed_bytes"] in (0, SIZE), "nothing was taken from under it"
            assert sha256_of(receiver.folder / source.name) == sha256_of(source)
            (receiver.folder / source.name).unlink()
        if dice.random() < 0.3 or number == rounds - 1:
            receiver.stop()
            assert gc().wait() == 0
            assert receiver.partials == []
            receiver.restart()
    soak.tell(f"{rounds} rounds, {killed} pushes killed, no upload taken away in use")
