"""The key of this device, and what a certificate says of another one's.

A device is its public key: the certificate around it is self-signed, names nobody else, never
expires and cannot vouch for others. ``cryptography`` is imported only where it is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tdx.errors import ConfigError
from tdx.identity import private

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

KEY_FILE: Final = "key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
KEY_DIGITS: Final = 64

_BEGINS: Final = (2000, 1, 1)
_ENDS: Final = (9999, 12, 31, 23, 59, 59)
"""RFC 5280 section 4.1.2.5: the end of a certificate that has none."""

_LEAST_EC_BITS: Final = 256
_LEAST_RSA_BITS: Final = 2048


@dataclass(frozen=True)
class Device:
    """This device. ``certificate`` is DER; the files are PEM."""

    certificate: bytes
    certificate_file: Path
    key_file: Path

    @cached_property
    def key(self) -> str:
        """See :func:`key_of`."""
        return key_of(self.certificate)

    def sign(self, data: bytes) -> bytes:
        """An ECDSA signature (DER) over the SHA-256 of ``data``, for :func:`verify`."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return _load_key(self.key_file).sign(data, ec.ECDSA(hashes.SHA256()))


def load_or_make(folder: Path, name: str) -> Device:
    """The device whose key is in ``folder``; a new one, called ``name``, where there is none.

    However many processes do this at once, there is one key. ConfigError where the key is
    not this user's, others may read it, or its certificate is missing or damaged.
    """
    key_file, certificate_file = folder / KEY_FILE, folder / CERTIFICATE_FILE
    found = private.read(key_file, private.NOBODY_ELSE_READS)
    if found is None:
        private.make_folder(folder)
        with private.locked(folder):
            found = private.read(key_file, private.NOBODY_ELSE_READS)
            if found is None:
                # In this order a key always has its certificate, whenever the machine stops.
                key, certificate = _make(name)
                private.write(certificate_file, certificate, mode=0o644)
                private.write(key_file, key)
    return Device(_read_certificate(certificate_file, key_file), certificate_file, key_file)


def key_of(certificate: bytes) -> str:
    """SHA-256 of the SubjectPublicKeyInfo (DER) of a DER certificate, in 64 lower-case
    hexadecimal digits. ValueError where it is no certificate."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _public_key(_parse(certificate))
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def subject_of(certificate: bytes) -> bytes:
    """The subject (DER) of a DER certificate. ValueError where it is no certificate."""
    return _parse(certificate).subject.public_bytes()


def verify(certificate: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the device with this certificate (DER) made ``signature`` over ``data``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        public = _public_key(_parse(certificate))
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return False
        public.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


def unfit(certificate: bytes, now: float) -> str | None:
    """Why this certificate (DER) must not be trusted, in words; None where it may.

    ``now`` is in seconds since the Unix epoch. One that can vouch for others would let its
    owner make up devices.
    """
    from cryptography import x509

    try:
        parsed = _parse(certificate)
        extensions = parsed.extensions
        weakness = _weakness(_public_key(parsed))
        begins, ends = parsed.not_valid_before_utc, parsed.not_valid_after_utc
        parsed.subject.public_bytes()  # which the library reads no earlier
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return "it is no X.509 certificate that can be read"
    if weakness is not None:
        return weakness
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "it can vouch for other certificates (CA:TRUE)"
    except x509.ExtensionNotFound:
        return "it does not say that it cannot vouch for other certificates (CA:FALSE)"
    if not begins <= _moment(now) <= ends:
        return f"it is valid from {begins:%F} to {ends:%F} only"
    return None


def _weakness(public: object) -> str | None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    if isinstance(public, ec.EllipticCurvePublicKey):
        return None if public.key_size >= _LEAST_EC_BITS else f"its key has only {public.key_size} bits"
    if isinstance(public, rsa.RSAPublicKey):
        return None if public.key_size >= _LEAST_RSA_BITS else f"its key has only {public.key_size} bits"
    if isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return None
    return "its kind of key is not used in TLS 1.3"


def _moment(seconds: float) -> datetime:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def _parse(certificate: bytes) -> x509.Certificate:
    """ValueError where it is none."""
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(certificate)
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from error


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes:
    """ValueError also for a kind of key that nobody here knows."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return certificate.public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error


def _read_certificate(path: Path, key_file: Path) -> bytes:
    import ssl

    found = private.read(path, private.NOBODY_ELSE_WRITES)
    if found is None:
        raise ConfigError(
            f"{path}: the certificate of {key_file} is missing; put it back, "
            "or remove the key as well to start as a new device"
        )
    try:
        return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii"))
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged; put it back from a backup") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    found = private.read(path, private.NOBODY_ELSE_READS)
    if found is None:
        raise ConfigError(f"{path}: the key of this device is gone; put it back from a backup")
    try:
        key = load_pem_private_key(found[0], password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is damaged; put it back from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: holds another kind of key than tdx makes")
    return key


def _make(name: str) -> tuple[bytes, bytes]:
    """A new key and its certificate, both PEM."""
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # OpenSSL finds a trusted certificate by its subject: of two alike it may see only one.
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, hashlib.sha256(spki).hexdigest())]
    label = "".join(c for c in name if c.isprintable()).strip()[:64]
    if label:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, label))
    subject = x509.Name(attributes)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(*_BEGINS, tzinfo=UTC))
        .not_valid_after(datetime(*_ENDS, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
    )
