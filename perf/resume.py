"""P4 and P5: resuming the partial of a 100 GiB sparse file, and the memory of both ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from perf.harness import ENVIRONMENT, GIB, MIB, TDX, PeakPss, Receiver, machine, receiver, scratch, spread

POLL_SECONDS = 0.002
PATIENCE_SECONDS = 120.0


def sparse_file(path: Path, size: int, ends: int) -> None:
    """``size`` bytes: ``ends`` random ones at each end, a hole between."""
    with path.open("wb") as file:
        for start in (0, size - ends):
            file.seek(start)
            for _ in range(ends // MIB):
                file.write(os.urandom(MIB))
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))


@dataclass(frozen=True)
class Resumed:
    """``seconds`` from exec of the second push to the first byte that the receiver
    accepted; ``again`` bytes that travelled twice; ``peak`` PSS of both ends."""

    seconds: float
    again: int
    peak: int


def run(size: int, ends: int, rounds: int, folder: Path) -> None:
    print(
        f"resume: {size / GIB:g} GiB sparse, {ends / GIB:g} GiB of data at each end, "
        f"{rounds} rounds in {folder}; {machine()}"
    )
    found: list[Resumed] = []
    with scratch(folder) as home:
        source = home / "source"
        sparse_file(source, size, ends)
        for number in range(rounds):
            place = home / f"round-{number}"
            (place / "inbox").mkdir(parents=True)
            with receiver(place / "inbox", place / "state") as serving:
                found.append(_round(serving, source, 2 * ends, home / "own"))
            print(
                f"  round {number + 1}: first new byte after {found[-1].seconds:.3f} s, "
                f"{found[-1].again / MIB:.1f} MiB again, {found[-1].peak / MIB:.0f} MiB PSS"
            )
    print(f"first new byte  {spread([one.seconds for one in found], ' s')}  (goal 0.5 s, gate 2 s)")
    print(
        f"sent again      {spread([one.again / MIB for one in found], ' MiB')}  (goal: one extent a stream)"
    )
    print(f"memory          {spread([one.peak / MIB for one in found], ' MiB')}  (goal 160 MiB, both ends)")


def _round(serving: Receiver, source: Path, data: int, state: Path) -> Resumed:
    command = [*TDX, "push", str(source), serving.address, "--resume", "--json", "--state", str(state)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    _wait_for(serving, data * 3 // 8)  # inside the first stretch of data
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = _when_still(serving)
    started = time.perf_counter()
    second = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    with PeakPss([serving.pid, second.pid]) as memory:
        _wait_for(serving, before + 1)
        seconds = time.perf_counter() - started
        output, errors = second.communicate(timeout=PATIENCE_SECONDS)
    if second.returncode != 0:
        raise RuntimeError(f"the resumed push exited with {second.returncode}: {errors.strip()}")
    result = json.loads(output.splitlines()[-1])
    return Resumed(seconds, before + result["sent_bytes"] - data, memory.peak)


def _wait_for(serving: Receiver, received: float) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while serving.counter("tdx_received_bytes_total") < received:
        if time.monotonic() > deadline:
            raise RuntimeError("the receiver's byte counter stands still")
        time.sleep(POLL_SECONDS)


def _when_still(serving: Receiver) -> int:
    """The byte counter once nothing moves it any more."""
    before = -1.0
    while (now := serving.counter("tdx_received_bytes_total")) != before:
        before = now
        time.sleep(0.2)
    return int(now)
