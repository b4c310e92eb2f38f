"""Somebody in between: takes the connections that were meant for a receiver, with keys of its own or
with a hand on the ciphertext. Each runs in a process, so that it can stand on another network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from support.devices import Made
from support.processes import Processes, wait_until

_LISTENING: Final = "listening"

_TERMINATES: Final = """
import contextlib, socket, ssl, sys, threading

host, port, to_host, to_port, certificate, key = sys.argv[1:]

def context(protocol):
    made = ssl.SSLContext(protocol)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.load_cert_chain(certificate, key)
    return made

server, client = context(ssl.PROTOCOL_TLS_SERVER), context(ssl.PROTOCOL_TLS_CLIENT)

def pass_on(source, destination):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
            destination.sendall(data)

def stand_between(connection):
    try:
        near = server.wrap_socket(connection, server_side=True)
    except OSError as error:
        print("turned away:", getattr(error, "reason", None) or error, flush=True)
        return
    print("believed", flush=True)
    far = client.wrap_socket(socket.create_connection((to_host, int(to_port))))
    threading.Thread(target=pass_on, args=(far, near), daemon=True).start()
    pass_on(near, far)

with socket.create_server((host, int(port))) as listener:
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=stand_between, args=(connection,), daemon=True).start()
"""

_MEDDLES: Final = """
import contextlib, socket, sys, threading

host, port, to_host, to_port, direction, after, times = sys.argv[1:]
left, lock = int(times), threading.Lock()

def pass_on(source, destination, meddle):
    global left
    done = 0
    with contextlib.suppress(OSError):
        while data := bytearray(source.recv(65536)):
            if meddle and done <= int(after) < done + len(data):
                with lock:
                    now, left = left > 0, left - 1
                if now:
                    data[int(after) - done] ^= 1
                    print("flipped", flush=True)
            done += len(data)
            destination.sendall(data)
        destination.shutdown(socket.SHUT_WR)

with socket.create_server((host, int(port))) as listener:
    print("listening", flush=True)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection((to_host, int(to_port)))
        for way, source, destination in (("there", near, far), ("back", far, near)):
            given = (source, destination, way == direction)
            threading.Thread(target=pass_on, args=given, daemon=True).start()
"""


def forged(certificate: bytes) -> Made:
    """A certificate that says everything that this one (DER) says, its name, serial number and key
    ids among it, around another key."""
    real = x509.load_der_x509_certificate(certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.issuer)
        .public_key(key.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    for extension in real.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return Made(builder.sign(key, hashes.SHA256()), key)


class Middle:
    """Listens at ``at`` and passes what comes on to ``to`` (both ``HOST:PORT``)."""

    def __init__(
        self, processes: Processes, script: str, at: str, to: str, prefix: Sequence[str], *arguments: str
    ) -> None:
        given = [*at.rsplit(":", 1), *to.rsplit(":", 1), *arguments]
        self._process = processes.run("middle", [*prefix, sys.executable, "-c", script, *given])
        wait_until(
            lambda: _LISTENING in self._process.stdout or not self._process.running, "the middle listens"
        )
        assert self._process.running, self._process.log()

    @property
    def told(self) -> list[str]:
        """What it says about its connections, a line each."""
        assert self._process.running, self._process.log()
        return self._process.stdout.splitlines()[1:]

    @property
    def read(self) -> bytes:
        """Everything that it could read, of both sides."""
        return self._process.err.read_bytes()


def terminating(
    processes: Processes, at: str, to: str, prefix: Sequence[str], made: Made, folder: Path
) -> Middle:
    """Speaks TLS to either side, with ``made``, and notes what it can read then."""
    certificate, key = made.files(folder)
    return Middle(processes, _TERMINATES, at, to, prefix, str(certificate), str(key))


def meddling(
    processes: Processes, at: str, to: str, prefix: Sequence[str], direction: str, after: int, times: int
) -> Middle:
    """Passes ciphertext on and flips one bit after so many bytes of a connection, on the first
    ``times`` connections that get so far. ``direction``: ``there`` to the receiver, or ``back``."""
    return Middle(processes, _MEDDLES, at, to, prefix, direction, str(after), str(times))
