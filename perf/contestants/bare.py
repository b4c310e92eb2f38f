"""The floor under everything that goes over TCP: :mod:`perf.bare`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf import bare
from perf.contestants.programs import Serving
from perf.model import Running
from perf.processes import said, server

_PROGRAM: Final = (sys.executable, "-I", "-S", str(Path(bare.__file__)))


@dataclass(frozen=True)
class Bare:
    """Two connections, sendfile to receive and write."""

    name: str = "bare TCP"
    does: str = "sendfile, receive, write; no names to trust, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        log = home / "bare.log"
        with server([*_PROGRAM, "serve", str(target)], log) as process:
            port = said(process, log, "listening ")
            words = [*_PROGRAM, "push"]
            yield Serving((process.pid,), target, lambda source: [*words, str(source), port])
