"""The ``tls`` provider: paired devices, known by the key they prove to have in TLS 1.3.

Whom OpenSSL lets in is decided by trust anchors: exactly the certificates in the trust store,
each of which vouches for itself alone. Who somebody is, is then looked up by the key.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tdx.errors import ConfigError
from tdx.identity.device import Device, key_of, load_or_make
from tdx.identity.port import KnownPeer
from tdx.identity.trust import OWNER_PREFIX, Trusted, TrustStore
from tdx.model import Identity, Owner

if TYPE_CHECKING:
    import ssl

NAME: Final = "tls"
DEVICE_FOLDER: Final = "device"

OP_ENABLE_KTLS: Final = 8
"""``ssl.OP_ENABLE_KTLS``, which Python names only since 3.12. A kernel without it takes no notice.
Only senders ask for it: at a receiver the kernel would take a body that comes beneath TLS for records."""


def identity_of(trusted: Trusted) -> Identity:
    """Whom a trusted device is taken for."""
    return Identity(Owner(OWNER_PREFIX + trusted.key), NAME, "", trusted.name, own=True)


class TlsIdentities:
    """The device and the trusted devices of one state directory. Threads may use it at once.

    What is here reads files; ConfigError where they cannot be used.
    """

    def __init__(self, state: Path) -> None:
        self.trust = TrustStore(state)
        self._folder = state / DEVICE_FOLDER
        self._lock = threading.Lock()
        self._device: Device | None = None
        self._server: tuple[Hashable, ssl.SSLContext] | None = None

    @property
    def device(self) -> Device:
        """This device; its key is made when it is asked for the first time."""
        with self._lock:
            if self._device is None:
                self._device = load_or_make(self._folder, os.uname().nodename)
            return self._device

    def server_context(self) -> ssl.SSLContext:
        """For connections that come in: every trusted device of this moment, and nobody else,
        passes the handshake. The same object until the trust store changes."""
        device = self.device
        stamp = self.trust.stamp()
        with self._lock:
            if self._server is not None and self._server[0] == stamp:
                return self._server[1]
        import ssl

        context = _context(ssl.PROTOCOL_TLS_SERVER, device, self.trust.entries())
        # A ticket would let a device in again without its certificate, after it was removed.
        context.num_tickets = 0
        with self._lock:
            self._server = stamp, context
        return context

    def client_context(self, trusted: Trusted) -> ssl.SSLContext:
        """For a connection to that one device: nobody else passes the handshake. That the other
        end refuses this device shows only at the first read, as TLS 1.3 has it."""
        import ssl

        context = _context(ssl.PROTOCOL_TLS_CLIENT, self.device, (trusted,))
        context.options |= OP_ENABLE_KTLS
        return context

    def whois(self, certificate: bytes | None) -> Identity | None:
        """The trusted device whose key is in ``certificate`` (DER, as ``getpeercert(True)`` gives
        it after a handshake); None for any other, and once it is trusted no more."""
        if certificate is None:
            return None
        entries = self.trust.entries()
        for each in entries:
            if each.certificate == certificate:
                return identity_of(each)
        try:
            key = key_of(certificate)
        except ValueError:
            return None
        return next((identity_of(each) for each in entries if each.key == key), None)

    def peers(self) -> list[KnownPeer]:
        """The trusted devices. Their addresses are as they were stored: ``HOST`` or ``HOST:PORT``,
        numeric or not."""
        return [
            KnownPeer((each.name.lower(),), identity_of(each), each.addresses)
            for each in self.trust.entries()
        ]

    def find(self, name: str) -> Trusted | None:
        """See :meth:`TrustStore.find`."""
        return self.trust.find(name)


def _context(protocol: int, device: Device, trusted: Iterable[Trusted]) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The trusted certificates are no roots; each is the end of its own chain.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_cert_chain(device.certificate_file, device.key_file)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{device.certificate_file} and {device.key_file} do not belong together or are damaged; "
            "put them back from a backup, or remove both to start as a new device"
        ) from error
    for each in trusted:
        try:
            context.load_verify_locations(cadata=each.certificate)
        except ssl.SSLError as error:
            raise ConfigError(
                f"the certificate of {each.name} is damaged: tdx trust remove {each.name}"
            ) from error
    return context
