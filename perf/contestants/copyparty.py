"""copyparty's server, and u2c, its parallel uploader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contestants.programs import HOST, Serving, built, listening, reserved, says
from perf.model import Running


@dataclass(frozen=True)
class Copyparty:
    """``u2c`` to copyparty: files in chunks, over several connections, each chunk hashed at both ends.

    Tuned: no thumbnails, no media tags, no log of each request; ``--wram`` lets it write to a tmpfs. Its
    own defaults for the rest: one process at the server, and u2c hashing on all cores while it uploads
    over two connections. More of either, or larger buffers, gain nothing here. u2c tells the server the
    hashes of all chunks first, so the source is read twice; the server refuses a chunk that does not
    have its hash.
    """

    name: str = "copyparty (u2c)"
    does: str = "no encryption, SHA-512 of each chunk at both ends, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program, uploader = built("peers", "bin", "copyparty"), built("peers", "bin", "u2c")
        surroundings = ["env", f"HOME={home}", f"XDG_CONFIG_HOME={home}", "PRTY_NO_TLS=1"]
        with reserved() as port:
            own = [*surroundings, program, "-q", "-i", HOST, "-p", str(port), "--hist", str(home / "hist")]
            own += ["--wram", "--no-thumb", "--no-crt", "-v", f"{target}::rw"]
            with listening(own, home / "copyparty.log", port) as process:
                upload = [uploader, "-ns", f"http://{HOST}:{port}/"]
                yield Serving((process.pid,), target, lambda source: [*upload, str(source)])

    def version(self) -> str:
        return says(built("peers", "bin", "copyparty"), "--version")
