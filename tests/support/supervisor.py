"""What systemd does for a service, as far as a process can see: sockets that are open already, in the
descriptors from 3 on, and a socket that is told how the service is.

As a program, ``python supervisor.py FD,FD... COMMAND...`` becomes the command, with these descriptors.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

PATIENCE = 60.0


class Supervisor:
    """Takes what a service tells; use inside ``with``."""

    def __init__(self, path: Path | None = None) -> None:
        """Listens at ``path``, or else under an abstract name that the kernel picks."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("" if path is None else str(path))
        name = self._socket.getsockname()
        self.address = name if isinstance(name, str) else "@" + name[1:].decode()
        self.told: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def env(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address}

    def next(self, timeout: float = PATIENCE) -> str:
        self._socket.settimeout(timeout)
        message = self._socket.recv(4096).decode()
        self.told.append(message)
        return message

    def await_message(self, beginning: str, timeout: float = PATIENCE) -> str:
        """The next message that begins so; the others, before it, are kept in ``told``."""
        deadline = time.monotonic() + timeout
        while not (message := self.next(max(0.01, deadline - time.monotonic()))).startswith(beginning):
            pass
        return message

    def rest(self) -> list[str]:
        """What was told that has not been looked at."""
        found: list[str] = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return found


def activated(
    command: Sequence[str],
    sockets: Sequence[socket.socket],
    env: Mapping[str, str],
    stdout: int | None = None,
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` with these sockets passed to it."""
    numbers = [each.fileno() for each in sockets]
    return subprocess.Popen(
        [sys.executable, __file__, ",".join(map(str, numbers)), *command],
        pass_fds=numbers,
        env={
            **env,
            "LISTEN_FDS": str(len(numbers)),
            "LISTEN_FDNAMES": ":".join(["tdx.socket"] * len(numbers)),
        },
        stdout=stdout,
        stderr=stderr,
    )


def main() -> None:
    numbers, *command = sys.argv[1:]
    # First out of the way of the places that they go to.
    kept = [os.dup(int(number)) for number in numbers.split(",") if number]
    far = [os.dup2(number, 100 + index) for index, number in enumerate(kept)]
    for index, number in enumerate(far):
        os.dup2(number, 3 + index)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
