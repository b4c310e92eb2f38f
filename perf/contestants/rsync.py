"""rsync, to a daemon of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perf.contestants.programs import HOST, Serving, installed, listening, reserved, says
from perf.model import Running

_CONFIGURATION: Final = """\
address = {host}
port = {port}
pid file = {home}/rsyncd.pid
lock file = {home}/rsyncd.lock
log file = {home}/rsyncd.log
use chroot = no
reverse lookup = no
{user}
[target]
path = {target}
read only = no
transfer logging = no
"""


@dataclass(frozen=True)
class Rsync:
    """``rsync -W --inplace`` to a daemon: whole files, no delta search, no temporary file to rename.

    Tuned: no shell in between and no encryption; no chroot, no name lookup, no log of each file; not
    compressed. rsync checks each file with its own whole-file checksum (XXH3-128 where both ends are 3.2
    or newer). It has ``--fsync``, which would be one per file: ``then_sync`` is what it does better with,
    one ``sync`` of the target's filesystem after it, within the time measured.

    ``delta``: as it is by default, sending what differs from an earlier copy, and into a temporary file.
    """

    then_sync: bool = False
    delta: bool = False

    @property
    def name(self) -> str:
        return "rsync && sync" if self.then_sync else "rsync"

    @property
    def does(self) -> str:
        durable = "one sync at the end" if self.then_sync else "no fsync"
        return f"no encryption, its own XXH3-128, {durable}"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        program = installed("rsync", "rsync")
        if self.then_sync:
            installed("sync", "coreutils")
        user = f"uid = {os.geteuid()}\ngid = {os.getegid()}" if os.geteuid() == 0 else ""
        with reserved() as port:
            configuration = home / "rsyncd.conf"
            configuration.write_text(
                _CONFIGURATION.format(host=HOST, port=port, home=home, user=user, target=target)
            )
            own = [program, "--daemon", "--no-detach", f"--config={configuration}"]

            def copy(source: Path) -> Sequence[str]:
                kept = "-rlpt" if source.is_dir() else "-t"
                whole = ["-rlptW" if source.is_dir() else "-W", "--inplace"]
                flags = [kept] if self.delta else whole
                alone = [program, *flags, str(source), f"rsync://{HOST}:{port}/target/"]
                if not self.then_sync:
                    return alone
                return ["sh", "-c", 'where=$1; shift; "$@" && sync -f "$where"', "sh", str(target), *alone]

            with listening(own, home / "rsyncd.err", port) as process:
                yield Serving((process.pid,), target, copy)

    def version(self) -> str:
        return " ".join(says(installed("rsync", "rsync"), "--version").split()[:3])
