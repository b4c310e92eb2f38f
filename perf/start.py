"""P10: a push of 1 KiB, exec to exit."""

from __future__ import annotations

from pathlib import Path

from perf.harness import TDX, machine, random_file, receiver, scratch, spread, timed


def run(rounds: int, folder: Path) -> None:
    print(f"start-up: push of 1 KiB, exec to exit, {rounds} rounds; {machine()}")
    with scratch(folder) as home:
        (home / "inbox").mkdir()
        seconds: list[float] = []
        bare: list[float] = []
        with receiver(home / "inbox", home / "state") as serving:
            for number in range(rounds):
                source = random_file(home / f"small-{number}", 1024)
                seconds.append(
                    timed(
                        [*TDX, "push", str(source), serving.address, "-q", "--state", str(home / "own")]
                    ).seconds
                )
                bare.append(timed([TDX[0], "-c", "pass"]).seconds)
    print(f"tdx push       {spread(seconds, ' s')}  (goal 0.25 s, gate 0.4 s)")
    print(f"python alone   {spread(bare, ' s')}")
