"""P1: one large file, page cache to tmpfs over loopback, tdx and ``cp`` in turn."""

from __future__ import annotations

import statistics
from pathlib import Path

from perf.harness import (
    GIB,
    TDX,
    PeakPss,
    cpu_seconds,
    machine,
    random_file,
    read_once,
    receiver,
    same_content,
    scratch,
    spread,
    timed,
    warm,
)


def run(size: int, pairs: int, source_in: Path, into: Path, pump: str | None) -> None:
    """Print the ratio of each pair, the medians, and where the CPU went.

    Both contestants read the same file from the page cache and write to ``into``, which is
    warmed before every run; what tdx wrote is compared outside the clock.
    """
    print(f"push against cp: {size / GIB:g} GiB, page cache to {into}, {pairs} pairs; {machine()}")
    with scratch(source_in) as home, scratch(into) as target:
        source = random_file(home / "source", size)
        inbox = target / "inbox"
        inbox.mkdir()
        pushes: list[float] = []
        copies: list[float] = []
        sender_cpu: list[float] = []
        receiver_cpu: list[float] = []
        with receiver(inbox, home / "state") as serving, PeakPss([serving.pid]) as memory:
            for pair in range(pairs):
                read_once(source)
                warm(target, size)
                before = cpu_seconds(serving.pid)
                command = [*TDX, "push", str(source), serving.address, "--json", "--state", str(home / "own")]
                pushed = timed(command + (["--pump", pump] if pump else []))
                receiver_cpu.append(cpu_seconds(serving.pid) - before)
                if not same_content(source, inbox / "source"):
                    raise RuntimeError("what arrived differs")
                (inbox / "source").unlink()
                read_once(source)
                warm(target, size)
                copied = timed(["cp", str(source), str(target / "copy")])
                (target / "copy").unlink()
                pushes.append(pushed.seconds)
                copies.append(copied.seconds)
                sender_cpu.append(pushed.cpu)
                print(
                    f"  pair {pair + 1}: tdx {pushed.seconds:.2f} s, cp {copied.seconds:.2f} s, "
                    f"ratio {pushed.seconds / copied.seconds:.2f}"
                )
    ratios = [a / b for a, b in zip(pushes, copies, strict=True)]
    print(f"tdx push     {spread(pushes, ' s')}, {size / statistics.median(pushes) / 1e9:.2f} GB/s")
    print(f"cp           {spread(copies, ' s')}, {size / statistics.median(copies) / 1e9:.2f} GB/s")
    print(f"ratio        {spread(ratios)}  (goal 1.0, gate 1.2)")
    print(f"CPU seconds  sender {spread(sender_cpu)}, receiver {spread(receiver_cpu)}")
    print(f"memory       receiver's peak PSS {memory.peak / (1 << 20):.0f} MiB")
