"""croc, sender and receiver, through a relay of its own."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.contest import Running
from perf.contestants.programs import built, listening, reserved, says

_HOST: Final = "127.0.0.2"
"""croc's relay takes 127.0.0.1 for every address of the machine."""

_PORTS: Final = 5
_BOTH: Final = '"$0" --out "$1" --overwrite & "$0" send --no-local "$2" && wait $!'
"""A receiver and a sender: they find each other in the relay whoever comes first."""


@dataclass(frozen=True)
class Croc:
    """``croc send`` and ``croc``, which receives, through a ``croc relay`` that runs already.

    Tuned: not compressed (what is sent is random); four connections, its default; no progress shown; the
    relay is named, so that nobody waits half a second for the sender's own relay or asks the network who
    is there: the bytes pass through a relay's process either way. The time has both programs from exec to
    exit, key exchange (PAKE) included. croc hashes the whole file before sending and after receiving.
    """

    name: str = "croc"
    does: str = "AES-256-GCM, XXH64 at both ends, receiver's start included, no fsync"
    attempts: int = 3
    """On a busy machine the two now and then fail to agree on a key ("could not secure channel")."""

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program = built("bin", "croc")
        with contextlib.ExitStack() as held:
            ports = [held.enter_context(reserved(_HOST)) for _ in range(_PORTS)]
            settings = {
                "HOME": str(home),
                "CROC_CONFIG_DIR": str(home / "croc"),
                "CROC_PASS": secrets.token_hex(16),
                "CROC_SECRET": "-".join(secrets.token_hex(4) for _ in range(3)),
                "CROC_RELAY": f"{_HOST}:{ports[0]}",
            }
            surroundings = ["env", *(f"{name}={value}" for name, value in settings.items())]
            own = [*surroundings, program, "relay", "--host", _HOST]
            own += ["--ports", ",".join(map(str, ports))]
            process = held.enter_context(listening(own, home / "relay.log", ports[0], _HOST))
            yield _Serving((process.pid,), surroundings, program, target)

    def version(self) -> str:
        return says(built("bin", "croc"), "--version")


@dataclass(frozen=True)
class _Serving:
    servers: Sequence[int]
    surroundings: Sequence[str]
    program: str
    target: Path

    def command(self, source: Path) -> Sequence[str]:
        flags = "--yes --quiet --ignore-stdin --no-compress"
        both = _BOTH.replace('"$0"', f'"$0" {flags}')
        return [*self.surroundings, "sh", "-c", both, self.program, str(self.target), str(source)]

    def arrived(self, source: Path) -> Path:
        return self.target / source.name
