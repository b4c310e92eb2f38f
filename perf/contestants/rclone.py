"""rclone, to its own WebDAV server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contestants.programs import HOST, Serving, installed, listening, reserved, says
from perf.model import Running


@dataclass(frozen=True)
class Rclone:
    """``rclone copy`` to ``rclone serve webdav``, four files at a time.

    Tuned: the server does not hash what it writes and read it again to compare (``--ignore-checksum``
    there: more than three times as fast; WebDAV has no hash to compare across the network, so this is all
    between the server and its own disk). Otherwise its defaults: four transfers at once, no cache of files on
    the server (``--vfs-cache-mode off``), so that a body goes straight to its place. Several streams for
    one file are something that its WebDAV backend cannot do; that backend also lets 10 ms pass between
    two requests, three for each file, which decides its time with small files. rclone compares sizes
    afterwards. ``--ignore-times``, because the server does not notice what is removed between two runs.
    """

    name: str = "rclone → its WebDAV"
    does: str = "no encryption, no hash (sizes compared), no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program = installed("rclone", "rclone")
        configuration = home / "rclone.conf"
        with reserved() as port:
            configuration.write_text(f"[target]\ntype = webdav\nurl = http://{HOST}:{port}\nvendor = other\n")
            base = [program, "--config", str(configuration), "--cache-dir", str(home / "cache")]
            own = [*base, "serve", "webdav", "--ignore-checksum", "--addr", f"{HOST}:{port}", str(target)]

            def copy(source: Path) -> Sequence[str]:
                into = f"target:{source.name}" if source.is_dir() else "target:"
                return [*base, "copy", "--ignore-times", str(source), into]

            with listening(own, home / "rclone.log", port) as process:
                yield Serving((process.pid,), target, copy)

    def version(self) -> str:
        return says(installed("rclone", "rclone"), "version")
