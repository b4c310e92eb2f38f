"""``python -m perf [SCENARIO]``: the benchmarks, each printing its figures and targets."""

from __future__ import annotations

import argparse
from pathlib import Path

from perf import copy, resume, start, tls
from perf.harness import GIB


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    parser.add_argument(
        "scenario", nargs="?", choices=["copy", "tls", "resume", "start", "all"], default="all"
    )
    parser.add_argument("--size", type=float, default=3.0, help="GiB of the file that copy and tls push")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each contestant")
    parser.add_argument("--source", type=Path, default=Path("/var/tmp"), help="where sources are made")
    parser.add_argument("--into", type=Path, default=Path("/dev/shm"), help="where copy and tls push to")
    parser.add_argument("--pump", help="force a sending pump in copy")
    given = parser.parse_args()
    if given.scenario in {"copy", "all"}:
        copy.run(int(given.size * GIB), given.pairs, given.source, given.into, given.pump)
    if given.scenario in {"tls", "all"}:
        tls.run(int(given.size * GIB), given.pairs, given.source, given.into)
    if given.scenario in {"resume", "all"}:
        resume.run(100 * GIB, GIB, given.pairs, given.source)
    if given.scenario in {"start", "all"}:
        start.run(4 * given.pairs, given.source)


if __name__ == "__main__":
    main()
