"""Devices of tests: keys, certificates as they should and should not be, and TLS between two of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tdx.identity.device import Device, key_of
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import Trusted

PATIENCE: Final = 30.0
HELLO: Final = b"who are you?"


def of_unknown_kind(certificate: bytes) -> bytes:
    """The certificate (DER), its kind of key (ecPublicKey) another that there is not."""
    kind = bytes.fromhex("06072a8648ce3d0201")
    return certificate.replace(kind, kind[:-1] + b"\x09")


def trusted(device: Device, name: str, *addresses: str) -> Trusted:
    return Trusted(name, device.key, device.certificate, addresses, 1.0)


def trust(state: Path, name: str, other: Path, *addresses: str) -> Trusted:
    """Let the device whose state is ``state`` trust that of ``other`` under ``name``."""
    entry = trusted(TlsIdentities(other).device, name, *addresses)
    TlsIdentities(state).trust.add(entry, replace=True)
    return entry


def introduce(receiver: Path, sender: Path, address: str) -> None:
    """Let a receiver and a sender trust each other as ``nas`` (at ``address``) and ``laptop``, as
    after a pairing."""
    trust(sender, "nas", receiver, address)
    trust(receiver, "laptop", sender)


@dataclass(frozen=True)
class Made:
    """A certificate made by hand, and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def trusted(self, name: str) -> Trusted:
        return Trusted(name, key_of(self.der), self.der, (), 1.0)

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Its certificate and its key, as files."""
        folder.mkdir(exist_ok=True)
        certificate, key = folder / "made.pem", folder / "made.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key


def make(
    name: str,
    *,
    key: Any = None,
    signed_by: tuple[x509.Name, Any] | None = None,
    ca: bool | None = False,
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=1),
) -> Made:
    """``name``: its common name; ``signed_by``: an issuer and its key, or itself; ``ca`` None leaves
    the basic constraints out; ``begins`` and ``ends`` are relative to now."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = signed_by or (subject, key)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    return Made(builder.sign(signer, hashes.SHA256()), key)


def context_with(files: tuple[Path, Path] | None, protocol: int = ssl.PROTOCOL_TLS_CLIENT) -> ssl.SSLContext:
    """What somebody uses who believes everybody and shows this certificate, or none."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(*files)
    return context


@dataclass
class Met:
    """How a handshake over a real socket ended on each side, a read of the client included.
    ``seen``: the certificate that the server got."""

    server: BaseException | None = None
    client: BaseException | None = None
    seen: bytes | None = None
    answer: bytes = b""

    @property
    def well(self) -> bool:
        return self.server is None and self.client is None and self.answer == HELLO


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> Met:
    """Connect the two; the server says back what the client says."""
    met = Met()

    def serve(listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            with connection, server.wrap_socket(connection, server_side=True) as secure:
                met.seen = secure.getpeercert(True)
                secure.sendall(secure.recv(100))
        except OSError as error:
            met.server = error

    with socket.create_server(("127.0.0.1", 0)) as listener, _thread(serve, listener):
        listener.settimeout(PATIENCE)
        try:
            with (
                socket.create_connection(listener.getsockname(), PATIENCE) as connection,
                client.wrap_socket(connection) as secure,
            ):
                secure.sendall(HELLO)
                met.answer = secure.recv(100)
        except OSError as error:
            met.client = error
    return met


@contextlib.contextmanager
def _thread(work: Any, *arguments: Any) -> Iterator[None]:
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()
