"""croc, sender and receiver, through a relay of its own."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.contestants.programs import Serving, built, listening, reserved, says
from perf.model import Running

_HOST: Final = "127.0.0.2"
"""croc's relay takes 127.0.0.1 for every address of the machine."""

_HEX_HOST: Final = f"{int.from_bytes(socket.inet_aton(_HOST), sys.byteorder):08X}"
_PORTS: Final = 5
_FLAGS: Final = "--yes --quiet --ignore-stdin --no-compress"
_BOTH: Final = f"""\
"$0" {_FLAGS} send --no-local "$2" & sender=$!
until grep -q "$3" /proc/net/tcp; do kill -0 $sender || exit 1; sleep 0.01; done
"$0" {_FLAGS} --out "$1" --overwrite || {{ kill $sender; wait $sender; exit 1; }}
wait $sender
"""
"""A sender, and a receiver as soon as the sender has called the relay, which is when it has hashed the
file: of two that come in the other order, neither gets through ("could not secure channel"). A sender that
nobody came for is ended: the next one's receiver would take its connection for that of its own."""


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
    """On a busy machine the receiver may still be the first in the relay's room."""

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program = built("bin", "croc")
        with contextlib.ExitStack() as held:
            ports = [held.enter_context(reserved(_HOST)) for _ in range(_PORTS)]
            settings = {
                "HOME": str(home),
                "CROC_CONFIG_DIR": str(home / "croc"),
                "CROC_PASS": secrets.token_hex(16),
                "CROC_RELAY": f"{_HOST}:{ports[0]}",
            }
            surroundings = ["env", *(f"{name}={value}" for name, value in settings.items())]
            own = [*surroundings, program, "relay", "--host", _HOST]
            own += ["--ports", ",".join(map(str, ports))]
            process = held.enter_context(listening(own, home / "relay.log", ports[0], _HOST))
            # proc(5): a connection to the relay's address that is established.
            called = f"{_HEX_HOST}:{ports[0]:04X} 01 "

            def both(source: Path) -> Sequence[str]:
                # A new one each time: the relay may still have the last one's room.
                code = "-".join(secrets.token_hex(4) for _ in range(3))
                words = [_BOTH, program, str(target), str(source), called]
                return [*surroundings, f"CROC_SECRET={code}", "sh", "-c", *words]

            yield Serving((process.pid,), target, both)

    def version(self) -> str:
        return says(built("bin", "croc"), "--version")
