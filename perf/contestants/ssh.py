"""scp, to an sshd of its own."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.contestants.programs import HOST, Serving, installed, listening, reserved, says
from perf.model import Running
from perf.processes import wait_for_newcomers


@dataclass(frozen=True)
class Scp:
    """``scp`` to an sshd on loopback, which takes one key and nothing else.

    Tuned: ``cipher`` is one that the CPU has instructions for (``aes128-gcm@openssh.com``,
    ``aes256-gcm@openssh.com``); None leaves ssh its default, ChaCha20-Poly1305. No compression, no
    configuration of the machine's. Larger SFTP requests (``-X buffer``) and the older protocol (``-O``) gain
    nothing here. The time has the whole of it: connecting,
    key exchange, login and copying. ssh authenticates every packet; the file is not hashed.
    """

    cipher: str | None = "aes128-gcm@openssh.com"

    @property
    def name(self) -> str:
        return f"scp ({self.cipher.partition('@')[0]})" if self.cipher else "scp"

    @property
    def does(self) -> str:
        cipher = self.cipher.partition("@")[0].upper() if self.cipher else "ChaCha20-Poly1305"
        return f"{cipher}, login included, no hash, no fsync"

    @contextmanager
    def running(self, home: Path, target: Path) -> Iterator[Running]:
        daemon, scp = installed("sshd", "openssh-server"), installed("scp", "openssh-client")
        maker = installed("ssh-keygen", "openssh-client")
        for key in ("host", "user"):
            subprocess.run([maker, "-q", "-t", "ed25519", "-N", "", "-f", str(home / key)], check=True)
        if os.geteuid() == 0:
            # What sshd insists on as root: Debian's init script would have made it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with reserved() as port:
            kind, public, *_ = (home / "host.pub").read_text().split()
            (home / "known_hosts").write_text(f"[{HOST}]:{port} {kind} {public}\n")
            lines = [
                f"ListenAddress {HOST}:{port}",
                f"HostKey {home / 'host'}",
                f"AuthorizedKeysFile {home / 'user.pub'}",
                "StrictModes no",
                "PasswordAuthentication no",
                "PermitRootLogin yes",
                "PidFile none",
                "PrintMotd no",
                "UsePAM no",
                "UseDNS no",
                "Subsystem sftp internal-sftp",
                *([f"Ciphers {self.cipher}"] if self.cipher else []),
            ]
            (home / "sshd_config").write_text("\n".join(lines) + "\n")
            own = [daemon, "-D", "-e", "-f", str(home / "sshd_config")]
            with listening(own, home / "sshd.log", port) as process:
                alone = [process.pid]
                copy = self._copy(scp, home, port)
                there = f"{getpass.getuser()}@{HOST}:{target}/"
                try:
                    wait_for_newcomers(alone, alone)
                    yield Serving(
                        alone,
                        target,
                        lambda source: [*copy, *(["-r"] if source.is_dir() else []), str(source), there],
                    )
                finally:
                    # Sessions are no part of sshd's process group; they end with their connection.
                    wait_for_newcomers(alone, alone)

    def _copy(self, scp: str, home: Path, port: int) -> Sequence[str]:
        options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={home / 'known_hosts'}"]
        flags = [part for option in options for part in ("-o", option)]
        cipher = ["-c", self.cipher] if self.cipher else []
        return [scp, "-F", "none", "-q", *cipher, "-P", str(port), "-i", str(home / "user"), *flags]

    def version(self) -> str:
        return says(installed("ssh", "openssh-client"), "-V")
