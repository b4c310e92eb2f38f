"""Two machines on a network that vouches for nobody, with the real commands on both: a laptop that
sends, and a nas that receives."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from support.content import sha256_of
from support.processes import PROGRAM, Curl, Processes, Push, Receiver, Running
from support.spaces import THERE, Cable

PORT: Final = 8390

SETTINGS: Final = "[tailscale]\nenabled = false\n[limits]\nrecheck_interval = 0.1\n"
"""The configuration of the receiver."""

IN_OTHER_WORDS: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'
"""A shell's script: run a command for which the names in a file are those of the machine."""


class Laptop:
    """The sending machine, whose names are in a file of its own."""

    def __init__(self, processes: Processes, between: Cable, area: Path) -> None:
        self._processes = processes
        self.state = area / "laptop"
        self._hosts = area / "hosts"
        self._names: dict[str, str] = {}
        self.believes("localhost", "127.0.0.1")
        self.prefix = [*between.near, "unshare", "--mount", "sh", "-c", IN_OTHER_WORDS, str(self._hosts)]
        self._environment = {**processes.environment, "TDX_STATE_DIR": str(self.state)}

    def believes(self, name: str, address: str) -> None:
        """From now on this is the address of that name, as far as anybody tells it."""
        self._names[name] = address
        self._hosts.write_text("".join(f"{where} {who}\n" for who, where in self._names.items()))

    def run(self, *arguments: str | Path) -> Running:
        command = [*self.prefix, *PROGRAM, *map(str, arguments)]
        return self._processes.run(str(arguments[0]), command, env=self._environment)

    def push(self, *arguments: str | Path) -> Push:
        return self._processes.push(*arguments, prefix=self.prefix, env=self._environment)

    def curl(self, *arguments: str | Path) -> Curl:
        return self._processes.curl(*arguments, prefix=self.prefix)

    def fails(self, code: int, *arguments: str | Path) -> str:
        """See :func:`failed`."""
        return failed(self.run(*arguments), code)


class Nas:
    """The receiving machine: listens on loopback, as it cannot but do here, and on the cable."""

    def __init__(self, processes: Processes, between: Cable, area: Path) -> None:
        (area / "nas").mkdir()
        self._processes = processes
        self._prefix = between.far
        self.state = area / "nas" / "state"
        self.configuration = area / "nas" / "tdx.toml"
        self.receiver: Receiver = processes.receiver(
            area / "inbox",
            self.state,
            program=[*between.far, *PROGRAM],
            also=(f"{THERE}:{PORT}",),
            config=SETTINGS,
        )

    @property
    def log(self) -> str:
        return self.receiver.process.stderr

    @property
    def audit(self) -> list[str]:
        """Lines about who was refused."""
        return [line for line in self.log.splitlines() if " tdx.audit: " in line]

    def run(self, *arguments: str) -> Running:
        command = [*self._prefix, *PROGRAM, *arguments, "--state", str(self.state)]
        return self._processes.run(arguments[0], command)

    def count(self, sample: str) -> float:
        """A metric; 0 where nothing has been counted yet."""
        host, port = self.receiver.metrics_address
        asked = self._processes.curl(f"http://{host}:{port}/metrics", prefix=self._prefix)
        assert asked.wait() == 0, asked.log()
        samples = (line.rpartition(" ") for line in asked.stdout.splitlines())
        return next((float(value) for name, _, value in samples if name == sample), 0.0)

    @property
    def received(self) -> float:
        return self.count('tdx_received_bytes_total{protocol="tdx"}')

    @property
    def received_plainly(self) -> float:
        """Of clients that know nothing of tdx."""
        return self.count('tdx_received_bytes_total{protocol="http"}')

    @property
    def refused(self) -> float:
        return self.count('tdx_refused_total{reason="forbidden"}')

    def has_received(self, source: Path) -> bool:
        return self.receiver.published == [source.name] and sha256_of(
            self.receiver.folder / source.name
        ) == sha256_of(source)

    def has_nothing(self) -> bool:
        return self.receiver.published == [] and self.receiver.partials == [] and self.received == 0


def failed(process: Running, code: int) -> str:
    """It must end with this exit code and one line about it: that line."""
    assert process.wait() == code, process.log()
    (line,) = process.stderr.splitlines()
    return line
