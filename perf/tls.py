"""P8: one large file over TLS on loopback, page cache to tmpfs, tdx and ``scp`` (AES-GCM) in turn."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perf.harness import (
    GIB,
    TDX,
    PeakPss,
    cpu_seconds,
    machine,
    random_file,
    read_once,
    receiver,
    same_content,
    scratch,
    spread,
    timed,
    warm,
)
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted

CIPHER = "aes128-gcm@openssh.com"
NAME = "receiver"


def run(size: int, pairs: int, source_in: Path, into: Path) -> None:
    """Print the ratio of each pair, the medians, and where the CPU went.

    Both contestants read the same file from the page cache, encrypt it, and write it to ``into``, which
    is warmed before every run; what arrived is compared outside the clock.
    """
    print(f"push over TLS against scp: {size / GIB:g} GiB, to {into}, {pairs} pairs; {machine()}")
    with scratch(source_in) as home, scratch(into) as target:
        source = random_file(home / "source", size)
        inbox = target / "inbox"
        inbox.mkdir()
        pushes: list[float] = []
        copies: list[float] = []
        sender_cpu: list[float] = []
        receiver_cpu: list[float] = []
        scp_cpu: list[float] = []
        with (
            sshd(home / "ssh") as server,
            receiver(inbox, home / "state") as serving,
            PeakPss([serving.pid]) as memory,
        ):
            introduce(home / "own", home / "state", serving.address)
            for pair in range(pairs):
                read_once(source)
                warm(target, size)
                before = cpu_seconds(serving.pid)
                pushed = timed([*TDX, "push", str(source), NAME, "--json", "--state", str(home / "own")])
                receiver_cpu.append(cpu_seconds(serving.pid) - before)
                take_away(inbox / "source", source)
                read_once(source)
                warm(target, size)
                before = server.cpu_seconds()
                copied = timed(server.scp(source, target / "copy"))
                scp_cpu.append(copied.cpu + server.cpu_seconds() - before)
                take_away(target / "copy", source)
                pushes.append(pushed.seconds)
                copies.append(copied.seconds)
                sender_cpu.append(pushed.cpu)
                print(
                    f"  pair {pair + 1}: tdx {pushed.seconds:.2f} s, scp {copied.seconds:.2f} s, "
                    f"{copied.seconds / pushed.seconds:.2f} times faster"
                )
    ratios = [b / a for a, b in zip(pushes, copies, strict=True)]
    print(f"tdx push     {spread(pushes, ' s')}, {size / statistics.median(pushes) / 1e9:.2f} GB/s")
    print(f"scp          {spread(copies, ' s')}, {size / statistics.median(copies) / 1e9:.2f} GB/s")
    print(f"scp/tdx      {spread(ratios)}  (goal 5, gate 3)")
    print(f"CPU seconds  sender {spread(sender_cpu)}, receiver {spread(receiver_cpu)}, ", end="")
    print(f"scp and sshd {spread(scp_cpu)}")
    print(f"memory       receiver's peak PSS {memory.peak / (1 << 20):.0f} MiB")


def take_away(copy: Path, source: Path) -> None:
    if not same_content(source, copy):
        raise RuntimeError("what arrived differs")
    copy.unlink()


def introduce(sender: Path, receiving: Path, address: str) -> None:
    """Let the two state directories' devices trust each other, as `tdx pair` would."""
    for state, other, name, addresses in (
        (sender, receiving, NAME, (address,)),
        (receiving, sender, "sender", ()),
    ):
        device = TlsIdentities(other).device
        trusted = Trusted(name, device.key, device.certificate, addresses, added=time.time())
        TlsIdentities(state).trust.add(trusted)


@dataclass(frozen=True)
class Sshd:
    """A running sshd of our own, which takes ``key`` and nothing else."""

    pid: int
    port: int
    key: Path
    known_hosts: Path

    def cpu_seconds(self) -> float:
        """User plus system time of all sessions, once they have ended (proc(5), fields 16 and 17 of stat)."""
        while Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text():
            time.sleep(0.01)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def scp(self, source: Path, target: Path) -> list[str]:
        """The command that copies through it."""
        options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={self.known_hosts}"]
        flags = [part for option in options for part in ("-o", option)]
        where = f"{getpass.getuser()}@127.0.0.1:{target}"
        own = ["-F", "none", "-q", "-c", CIPHER, "-P", str(self.port), "-i", str(self.key)]
        return ["scp", *own, *flags, str(source), where]


@contextmanager
def sshd(home: Path) -> Iterator[Sshd]:
    """An sshd on a free loopback port, with keys made for it in ``home``."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise SystemExit("this scenario needs an sshd: apt-get install openssh-server")
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)]
        subprocess.run(make, check=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    kind, public, *_ = (home / "host.pub").read_text().split()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {public}\n")
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {home / 'host'}\n"
        f"AuthorizedKeysFile {home / 'user.pub'}\nStrictModes no\nPasswordAuthentication no\n"
        f"PermitRootLogin yes\nPidFile none\nCiphers {CIPHER}\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = subprocess.Popen([program, "-D", "-f", str(home / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        answers(port, process)
        yield Sshd(process.pid, port, home / "user", home / "known_hosts")
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens there; RuntimeError where ``process`` has ended instead."""
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"sshd ended at once with {process.returncode}")
