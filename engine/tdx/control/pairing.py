"""Pairing over the network: one waits with a code that is good for one try, the other answers."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tdx.config import DEFAULT_PORT, Address, format_address
from tdx.control.connection import endpoint_of
from tdx.control.dial import reason_of
from tdx.control.resolve import lookup_failure
from tdx.errors import ConfigError, PairingFailed, ProtocolError, Unreachable, UsageError
from tdx.identity.netdev import held
from tdx.identity.pairing import LONGEST_SAID_NAME, Met, Pairing, Role, new_code
from tdx.identity.tls import TlsIdentities
from tdx.identity.trust import LONGEST_NAME, Trusted, check_name, name_fault

CONNECT_SECONDS: Final = 10.0
EXCHANGE_SECONDS: Final = 30.0
"""How long the whole exchange may take, once the first byte of it was sent."""

MAX_SILENT: Final = 16
"""Connections that have sent nothing yet; with one more, the oldest is closed."""

_READ: Final = 4096
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound


@dataclass(frozen=True, slots=True)
class Terms:
    """``name``: what this machine calls itself (empty: its host name); ``alias``: what the other
    one shall be called here (None: as it says, or as before); ``port``: where this machine's
    receiver listens."""

    name: str = ""
    alias: str | None = None
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if self.alias is not None:
            check_name(self.alias)


class Invitation:
    """A code, and a socket on which exactly one try with it is taken.

    ``listen`` None: every address of this machine, at any free port. ConfigError where it cannot
    be listened on. Blocking; for one thread.
    """

    def __init__(self, tls: TlsIdentities, terms: Terms, listen: Address | None = None) -> None:
        self.code = new_code()
        self._tls = tls
        self._terms = terms
        self._device = tls.device  # made before anybody waits for it
        self._listener = _listen(listen)
        self._host = None if listen is None or listen[0] in _WILDCARDS else listen[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._listener.close()

    @property
    def addresses(self) -> list[str]:
        """``HOST:PORT`` for each address under which others may reach this, the likeliest first."""
        port = int(self._listener.getsockname()[1])
        hosts = _own_hosts() if self._host is None else [self._host]
        return [format_address((host, port)) for host in hosts]

    def wait(self, seconds: float) -> Trusted:
        """Wait so long for the one try; the device that is trusted from now on.

        The first connection that sends a byte is the try; one that sends none is not. PairingFailed
        where it fails or none comes; UsageError where its name is taken. Either way the code is used up.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            connection, data = self._first_to_speak(time.monotonic() + seconds, undo)
            self.close()
            undo.enter_context(connection)
            host = endpoint_of(connection.getpeername()).host
            deadline = time.monotonic() + EXCHANGE_SECONDS
            found = _Acquaintance(self._tls, self._terms, host)
            pairing = found.pairing(Role.LISTENER, self.code)
            _converse(connection, pairing, data, deadline)
            trusted = found.trust(pairing)
            # The other end trusts this one only once it has heard that it is trusted itself.
            _send(connection, pairing, pairing.conclude(), deadline)
            return trusted

    def _first_to_speak(self, deadline: float, undo: contextlib.ExitStack) -> tuple[socket.socket, bytes]:
        selector = undo.enter_context(selectors.DefaultSelector())
        silent: list[socket.socket] = []

        def close() -> None:
            for connection in silent:
                connection.close()

        undo.callback(close)
        selector.register(self._listener, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._listener:
                    with contextlib.suppress(OSError):  # it is gone already
                        connection, _ = ready.accept()
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ)
                        silent.append(connection)
                    gone = silent[:-MAX_SILENT]
                elif ready not in silent:
                    continue  # closed since the selector saw it
                elif data := _said(ready):
                    silent.remove(ready)
                    selector.unregister(ready)
                    return ready, data
                else:
                    gone = [ready]
                for connection in gone:
                    silent.remove(connection)
                    selector.unregister(connection)
                    connection.close()
        raise PairingFailed(
            "nobody answered in time, and the code is worth nothing now; run `tdx pair` again"
        )


def answer(tls: TlsIdentities, terms: Terms, address: Address, code: str) -> Trusted:
    """Pair with the one that waits at ``address``; the device that is trusted from now on.

    UnknownPeer, Unreachable, ProtocolError where something else listens there, PairingFailed,
    UsageError for what is no code, or where the name is taken. Blocks.
    """
    host, port = address
    found = _Acquaintance(tls, terms, host)
    pairing = found.pairing(Role.JOINER, code)
    with _connect(host, port) as connection:
        deadline = time.monotonic() + EXCHANGE_SECONDS
        try:
            _send(connection, pairing, pairing.begin(), deadline)
            _converse(connection, pairing, b"", deadline)
        except PairingFailed as error:
            if pairing.heard and not pairing.greeted:
                raise ProtocolError(
                    f"what listens at {format_address(address)} does not speak this version of tdx pairing; "
                    "HOST:PORT is what `tdx pair` prints, not where `tdx serve` listens"
                ) from error
            raise
        return found.trust(pairing)


class _Acquaintance:
    """The other device, from what it says of itself to an entry in the trust store. ``host`` is
    where it was met."""

    def __init__(self, tls: TlsIdentities, terms: Terms, host: str) -> None:
        self._tls = tls
        self._terms = terms
        self._host = host

    def pairing(self, role: Role, code: str) -> Pairing:
        name = (self._terms.name or os.uname().nodename or "device")[:LONGEST_SAID_NAME]
        return Pairing(role, code, self._tls.device, name, self._terms.port, time.time(), self._accept)

    def trust(self, pairing: Pairing) -> Trusted:
        assert pairing.peer is not None
        trusted = self._entry(pairing.peer)
        self._tls.trust.add(trusted, replace=True)
        return trusted

    def _accept(self, met: Met) -> None:
        entry = self._entry(met)
        try:
            self._tls.trust.check(entry)
        except UsageError as error:
            raise UsageError(
                f"{error.message}; the code is used up: pair once more, with --as NAME here"
            ) from error

    def _entry(self, met: Met) -> Trusted:
        before = self._tls.trust.find(met.key)
        name = self._terms.alias or (before.name if before else _presentable(met))
        address = format_address((self._host, met.port))
        return Trusted(name, met.key, met.certificate, (address,), time.time())


def _presentable(met: Met) -> str:
    """What the other device calls itself, as far as that can be a name here."""
    fit = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in met.name)
    name = fit.lstrip("-_.")[:LONGEST_NAME]
    return name if name_fault(name) is None else f"device-{met.key[:8]}"


def _listen(address: Address | None) -> socket.socket:
    try:
        if address is None and socket.has_dualstack_ipv6():
            made = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            host, port = address or ("", 0)
            family = socket.AF_INET
            if host:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
                family = found[0][0]
            made = socket.create_server((host, port), family=family)
    except OSError as error:
        where = "any address" if address is None else format_address(address)
        # create_server appends the address, as Python writes it, to the system's words.
        system = not isinstance(error, socket.gaierror) and error.errno is not None
        reason = os.strerror(error.errno or 0) if system else error.strerror
        raise ConfigError(f"cannot listen on {where}: {reason}") from None
    made.setblocking(False)
    return made


def _own_hosts() -> list[str]:
    """Addresses of this machine that other machines may reach, IPv4 first, then its name."""
    found = [each.address for each in held() if each.zone == 0]  # one with a zone means nothing elsewhere
    found.sort(key=lambda host: ":" in host)
    hosts = [host for host in found if not host.startswith(("127.", "169.254.")) and host != "::1"]
    name = os.uname().nodename
    return [*hosts, name] if name and name != "localhost" else hosts or ["127.0.0.1"]


def _connect(host: str, port: int) -> socket.socket:
    where = format_address((host, port))
    try:
        return socket.create_connection((host, port), CONNECT_SECONDS)
    except (socket.gaierror, UnicodeError) as error:
        raise lookup_failure(host, error) from None
    except OSError as error:
        raise Unreachable(
            f"cannot reach {where}: {reason_of(error)}; does `tdx pair` wait there? "
            "It takes one try, and expires"
        ) from None


def _said(connection: socket.socket) -> bytes | None:
    """The first bytes of somebody who is ready to be read; nothing where they are gone."""
    try:
        return connection.recv(_READ)
    except OSError:
        return None


def _converse(connection: socket.socket, pairing: Pairing, data: bytes, deadline: float) -> None:
    """Answer ``data`` and what follows it, until the other device is known."""
    while True:
        _send(connection, pairing, pairing.receive(data), deadline)
        if pairing.peer is not None:
            return
        data = _within(connection, pairing, deadline, lambda: connection.recv(_READ))
        if not data:
            raise pairing.end()


def _send(connection: socket.socket, pairing: Pairing, data: bytes, deadline: float) -> None:
    def send() -> bytes:
        connection.sendall(data)
        return b""

    _within(connection, pairing, deadline, send)


def _within(connection: socket.socket, pairing: Pairing, deadline: float, step: Callable[[], bytes]) -> bytes:
    left = deadline - time.monotonic()
    try:
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        return step()
    except TimeoutError:
        raise PairingFailed("pairing failed: the other end is too slow; run `tdx pair` again") from None
    except OSError:
        raise pairing.end() from None
