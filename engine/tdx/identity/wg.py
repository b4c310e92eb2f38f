"""Asking ``wg`` about an interface: never for more than is needed, since its dump tells private keys."""

from __future__ import annotations

import os
import select
import subprocess
import time
from typing import Final

from tdx.errors import IdentityUnavailable

ANSWER_SECONDS: Final = 3.0
ANSWER_BYTES: Final = 4 << 20


class Wg:
    """``wg show INTERFACE``, which needs CAP_NET_ADMIN."""

    def __init__(
        self, interface: str, program: str = "wg", timeout: float = ANSWER_SECONDS, limit: int = ANSWER_BYTES
    ) -> None:
        self.interface = interface
        self._program = program
        self._timeout = timeout
        self._limit = limit

    def allowed_ips(self) -> str:
        """What it prints. IdentityUnavailable where it cannot be run, refuses, takes longer than
        ``timeout`` seconds or prints more than ``limit`` bytes."""
        return self._show("allowed-ips")

    def latest_handshakes(self) -> str:
        """As :meth:`allowed_ips`."""
        return self._show("latest-handshakes")

    def unavailable(self, reason: str) -> IdentityUnavailable:
        """The error for ``reason``, with what to do about it."""
        return IdentityUnavailable(
            f"cannot ask wg who is who on {self.interface}: {reason}; list the allowed_ips of each "
            "[[wireguard.peer]] in the configuration, or run tdx with CAP_NET_ADMIN"
        )

    def _show(self, what: str) -> str:
        command = [self._program, "show", self.interface, what]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        deadline = time.monotonic() + self._timeout
        try:
            process = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=subprocess.STDOUT)
        except OSError as error:
            raise self.unavailable(f"{self._program}: {os.strerror(error.errno or 0).lower()}") from None
        with process:
            try:
                said = self._read(process, deadline)
                code = process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                raise self.unavailable(f"no answer within {self._timeout:g} s") from None
            finally:
                process.kill()
        text = said.decode("utf-8", "replace")
        if code != 0:
            raise self.unavailable(next(iter(text.splitlines()), f"exit {code}"))
        return text

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        said = bytearray()
        ready = select.poll()
        ready.register(process.stdout, select.POLLIN)
        while ready.poll(max(deadline - time.monotonic(), 0) * 1000):
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return bytes(said)
            said += chunk
            if len(said) > self._limit:
                raise self.unavailable(f"more than {self._limit} bytes of answer")
        raise subprocess.TimeoutExpired(process.args, self._timeout)
