"""The sockets a receiver listens on."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tdx.config import DEFAULT_PORT, Address
from tdx.control.connection import bound_to
from tdx.errors import ConfigError
from tdx.identity.port import Place
from tdx.identity.rows import pack

log = logging.getLogger(__name__)

BACKLOG: Final = 512
WAITING_AT_MOST: Final = 4096
"""Connections that may wait at a socket that was passed, however long its queue was made."""

LOOPBACK: Final = "127.0.0.1"


def listen(host: str, port: int, interface: str | None = None) -> list[socket.socket]:
    """Listening sockets for every address of ``host``; ConfigError where one cannot be bound.

    With ``interface`` only what comes in by it is accepted: a source address alone proves
    nothing about the way in.
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind, protocol)
            bound.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if interface is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
    except OSError as error:
        for listener in bound:
            listener.close()
        where = f"{host}:{port}" if interface is None else f"{host}:{port} on {interface}"
        another = "; stop what listens there, or choose another address with --listen"
        advice = another if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot listen on {where}: {error.strerror}{advice}") from None
    return bound


def _tie(listener: socket.socket, interface: str) -> None:
    """From now on take only what comes in by ``interface``. Connections that wait already may have come by
    another way: they are ended, and whoever made them comes again."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        for _ in range(WAITING_AT_MOST):
            listener.accept()[0].close()
    except BlockingIOError:
        return
    except OSError as error:
        log.warning("cannot bind to %s: %s", interface, error.strerror)


@dataclass(frozen=True, slots=True)
class _Spot:
    """An address to listen on. ``index`` is the number that the interface has now: an interface
    that was made anew has another one, and a socket bound to the old one hears nothing."""

    host: str
    port: int
    interface: str | None = None
    index: int = 0


class Listeners:
    """Listens on the ``asked`` addresses; where none are, on loopback and on every address that
    this machine has on a mesh, also on those that come later (:meth:`refresh`). Where sockets were
    ``inherited``, on these instead.

    An address of a mesh is bound to its interface. This machine's own processes reach it
    nevertheless: the kernel counts their packets as coming in where the address is.
    """

    def __init__(
        self,
        asked: Sequence[Address],
        places: Callable[[], Sequence[Place]],
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self._asked = asked
        self._places = places
        self._inherited = inherited
        self._tied: set[socket.socket] = set()
        """Those inherited that need not, or cannot, be bound to an interface once more."""
        self._open: dict[_Spot, list[socket.socket]] = {}
        self._ports: dict[str, int] = {}
        """What an address of a mesh was given where any port was asked for: the same when it comes back."""

    def open(self) -> list[socket.socket]:
        """Open what is there now. Blocks briefly. ConfigError where an address cannot be used."""
        if self._inherited:
            if self._asked:
                log.info("listening on the sockets that were passed, not on the addresses configured")
            self._tie_inherited()
            return list(self._inherited)
        try:
            return [listener for spot in self._wanted() for listener in self._listen(spot)]
        except ConfigError:
            self.close()
            raise

    def refresh(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """Follow the meshes: what was opened now, and what is of no use any more (and still to be
        closed). Blocks briefly."""
        if self._inherited:
            self._tie_inherited()
            return [], []
        wanted = [spot for spot in self._wanted() if spot.interface is not None]
        stale = [spot for spot in self._open if spot.interface is not None and spot not in wanted]
        gone = [listener for spot in stale for listener in self._open.pop(spot)]
        opened: list[socket.socket] = []
        for spot in wanted:
            if spot not in self._open:
                try:
                    opened += self._listen(spot)
                except ConfigError as error:
                    log.warning("%s", error.message)
        return opened, gone

    def close(self) -> None:
        for listeners in (*self._open.values(), self._inherited):
            for listener in listeners:
                listener.close()
        self._open.clear()

    def _tie_inherited(self) -> None:
        """Bind those that are at an address of a mesh to its interface, unless whoever opened them has."""
        places = {pack(place.host): place.interface for place in self._places()}
        for listener in self._inherited:
            interface = places.get(pack(listener.getsockname()[0]))
            if interface is not None and listener not in self._tied:
                self._tied.add(listener)
                if not bound_to(listener):
                    _tie(listener, interface)

    def _listen(self, spot: _Spot) -> list[socket.socket]:
        if spot.interface is None:
            found = listen(spot.host, spot.port)
        else:
            found = listen(spot.host, spot.port or self._ports.get(spot.host, 0), spot.interface)
            self._ports[spot.host] = found[0].getsockname()[1]
        self._open[spot] = found
        return found

    def _wanted(self) -> list[_Spot]:
        places = {pack(place.host): place for place in self._places()}
        asked = self._asked or [
            (LOOPBACK, DEFAULT_PORT),
            *((place.host, DEFAULT_PORT) for place in places.values()),
        ]
        spots: list[_Spot] = []
        for host, port in asked:
            place = places.get(pack(host))
            if place is None:
                spots.append(_Spot(host, port))
                continue
            with contextlib.suppress(OSError):  # it has gone since
                spots.append(_Spot(host, port, place.interface, socket.if_nametoindex(place.interface)))
        return spots
