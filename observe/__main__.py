"""What there is to see of tdx: `make observe` starts a receiver, Prometheus, node_exporter and a Pushgateway
on loopback, lets pushes go well, wait, break off and fail, and tells where to look and what Prometheus says.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
TESTS: Final = str(ROOT / "tests")
TOLD: Final = 5.0
"""Seconds between the lines of the table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Observe until it is interrupted, or for as long as it is told."""
    parser = argparse.ArgumentParser(prog="python -m observe", description=__doc__)
    parser.add_argument("--seconds", type=float, help="end by itself after so long")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="then draw the dashboards into this folder")
    parser.add_argument("--quick", action="store_true", help="no pauses between the pushes")
    given = parser.parse_args(arguments)
    if TESTS not in sys.path:
        sys.path.append(TESTS)
    from observe.stack import missing

    if lacking := missing():
        print(
            f"observe: there is no {', '.join(lacking)}; `make test-deps` (as root) installs them",
            file=sys.stderr,
        )
        return 69
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _observe(given.seconds, given.plots, pause=0.0 if given.quick else 1.5)
    except KeyboardInterrupt:
        print("observe: ended")
        return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _observe(seconds: float | None, plots: Path | None, *, pause: float) -> int:
    from observe.schedule import rounds
    from observe.stack import Stack
    from observe.telling import Table, where
    from observe.traffic import Traffic
    from support.processes import Processes

    began = time.time()
    with tempfile.TemporaryDirectory(prefix="tdx-observe-") as name:
        folder = Path(name)
        with Processes(folder / "logs") as processes:
            stack = Stack(processes, folder / "stack")
            for line in where(stack, folder):
                print(line, flush=True)
            table = Table(stack.prometheus)
            with closing(Traffic(stack, folder / "files")) as traffic:
                told = 0.0
                for _ in rounds(traffic, pause=pause):
                    if time.time() - told >= TOLD:
                        told = time.time()
                        for line in table.lines():
                            print(line, flush=True)
                    if seconds is not None and time.time() - began >= seconds:
                        break
            if plots is not None:
                from observe.answers import Answers
                from observe.plots import draw

                end = time.time()
                answers = Answers(
                    stack.prometheus, began, end, interval=1, step=max(1, round((end - began) / 100))
                )
                for path in draw(answers, plots):
                    print(f"observe: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
