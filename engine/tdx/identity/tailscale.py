"""The ``tailscale`` provider: machines of a tailnet, as the tailscaled of this machine knows them.

With an interface of its own (TUN), who calls from a mesh address is that address's node,
provided that the connection can only have come in by that interface. With userspace
networking, tailscaled itself connects to loopback on behalf of the caller, and knows which
port it used for whom.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from tdx.errors import IdentityUnavailable
from tdx.identity import netdev, procnet, sockdiag
from tdx.identity.local import interface_of, is_address_of_this_machine
from tdx.identity.localapi import LocalApi, Node, Status, default_socket
from tdx.identity.port import Endpoint, KnownPeer, Link, Place
from tdx.identity.rows import is_loopback, pack
from tdx.identity.settings import TailscaleSettings
from tdx.model import Identity, Owner

NAME: Final = "tailscale"

_MESH_6: Final = bytes.fromhex("fd7a115ca1e0")

log = logging.getLogger(__name__)


def is_mesh_address(packed: bytes) -> bool:
    """Whether it is in 100.64.0.0/10 or fd7a:115c:a1e0::/48, from which tailnets take theirs."""
    if len(packed) == 4:
        return packed[0] == 100 and packed[1] & 0xC0 == 64
    return packed.startswith(_MESH_6)


class TailscaleProvider:
    """Implements :class:`tdx.identity.port.Mesh`. Keeps nothing between calls.

    All but :meth:`covers` raise IdentityUnavailable where tailscaled is slow, or says what it
    should not. ``this_machine`` says whether a numeric address is this machine's own.
    """

    def __init__(
        self,
        settings: TailscaleSettings,
        this_machine: Callable[[str], bool] = is_address_of_this_machine,
    ) -> None:
        self._enabled = settings.enabled
        self._api = LocalApi(settings.socket or default_socket())
        self._this_machine = this_machine

    @property
    def name(self) -> str:
        return NAME

    def covers(self, address: str) -> bool:
        """Mesh addresses of other machines; and loopback, from where tailscaled may proxy.
        None at all without its socket."""
        packed = pack(address)
        if packed is None or not self._present:
            return False
        return is_loopback(packed) or (is_mesh_address(packed) and not self._this_machine(address))

    def whois(self, link: Link) -> Identity | None:
        """The node at the other end. None on loopback means that tailscaled has nothing to
        do with the connection; elsewhere also that it may have come in by another way."""
        packed = pack(link.remote.host)
        if packed is None or not self.covers(link.remote.host):
            return None
        if is_loopback(packed):
            return self._proxied(link, _written(packed, link.remote.port))
        status = self._api.status()
        tunnel = self._tunnel(status)
        if tunnel is None:
            log.warning("%s is a mesh address, but %s", link.remote.host, _not_up(status))
            return None
        if link.interface != tunnel or pack(link.local.host) not in _own_addresses(status):
            log.warning(
                "a connection from %s to %s may have come in by another way than %s, so its address "
                "proves nothing; listen on this machine's own mesh address",
                link.remote.host,
                link.local.host,
                tunnel,
            )
            return None
        return self._node_at(link.remote.host, packed, status.own)

    def confirms(self, destination: Endpoint) -> Identity | None:
        """The node at a mesh address, as far as there is an :meth:`interface` to bind to."""
        packed = pack(destination.host)
        if packed is None or is_loopback(packed) or not self.covers(destination.host):
            return None
        status = self._api.status()
        if self._tunnel(status) is None:
            log.warning("%s is a mesh address, but %s", destination.host, _not_up(status))
            return None
        return self._node_at(destination.host, packed, status.own)

    def interface(self, address: str) -> str | None:
        """The interface that holds this machine's own mesh addresses. None with userspace networking.

        IdentityUnavailable also where the mesh is down: a moment later it might vouch
        for an address that was reached by another way.
        """
        packed = pack(address)
        if packed is None or is_loopback(packed) or not self.covers(address):
            return None
        status = self._api.status()
        if status.own is None:
            raise IdentityUnavailable(f"{address} cannot be reached by Tailscale: {_not_up(status)}")
        return self._tunnel(status)

    def places(self) -> Sequence[Place]:
        """One for each mesh address that an interface of this machine holds; none without tailscaled."""
        status = self._status()
        tunnel = None if status is None else self._tunnel(status)
        if status is None or status.own is None or tunnel is None:
            return []
        held = interfaces()
        return [Place(host, tunnel) for host in status.own.addresses if pack(host) in held]

    def own_names(self) -> Sequence[str]:
        """Names and, since with userspace networking no connection shows them, addresses."""
        status = self._status()
        if status is None:
            return ()
        return (*status.own_names, *(() if status.own is None else status.own.addresses))

    def peers(self) -> Sequence[KnownPeer]:
        """The other nodes; none on a machine without tailscaled's socket. IdentityUnavailable also
        where tailscaled is not connected."""
        if not self._present:
            return []
        status = self._api.status(peers=True)
        if status.own is None:
            raise IdentityUnavailable(f"Tailscale names no peers: {_not_up(status)}")
        return [
            KnownPeer(
                peer.names, _identity(peer.node, status.own), peer.node.addresses, peer.online, peer.path
            )
            for peer in status.peers
        ]

    @property
    def _present(self) -> bool:
        return self._enabled and os.path.exists(self._api.path)

    def _status(self) -> Status | None:
        """None where there is no tailscaled."""
        return self._api.status() if self._present and self._api.daemon() is not None else None

    def _proxied(self, link: Link, caller: str) -> Identity | None:
        daemon = self._api.daemon()
        if daemon is None:
            log.debug("nothing listens on %s: no tailscaled, nothing that it could proxy", self._api.path)
            return None
        status = self._api.status()
        # With an interface, tailscaled proxies for nobody whom it could name, and takes long to say so.
        node = None if status.tun else self._api.whois(caller)
        if node is not None:
            if status.own is None:
                raise IdentityUnavailable(f"tailscaled names the caller at {caller}, but {_not_up(status)}")
            if node.stable_id == status.own.stable_id:
                raise IdentityUnavailable(
                    f"{caller} is some user of this very machine who goes through tailscaled; "
                    "push to 127.0.0.1 instead"
                )
            return _identity(node, status.own)
        if _holds(daemon, link):
            raise IdentityUnavailable(
                f"tailscaled carries the connection from {caller} and does not say for whom; "
                "`tailscale serve` and `funnel` cannot be used in front of a receiver"
            )
        return None

    def _node_at(self, address: str, packed: bytes, own: Node | None) -> Identity | None:
        node = self._api.whois(address.partition("%")[0])
        if node is None:
            log.info("no node of the tailnet has the address %s", address)
            return None
        if packed not in map(pack, node.addresses):
            raise IdentityUnavailable(f"tailscaled was asked about {address} and told of another address")
        if own is None or node.stable_id == own.stable_id:
            return None
        return _identity(node, own)

    def _tunnel(self, status: Status) -> str | None:
        """The one interface that holds this machine's own mesh addresses."""
        if not status.tun or status.own is None:
            return None
        held = interfaces()
        names = {name for address in _own_addresses(status) for name in held.get(address, ())}
        return names.pop() if len(names) == 1 else None


def interfaces() -> dict[bytes, set[str]]:
    """The interfaces that hold each address of this machine. IdentityUnavailable where the
    system does not list them."""
    names: dict[bytes, set[str]] = {}
    try:
        for each in netdev.held():
            packed = pack(each.address)
            if packed is not None:
                names.setdefault(packed, set()).add(each.interface)
    except OSError as error:
        raise IdentityUnavailable(f"cannot list the interfaces of this machine: {error}") from error
    return names


def _own_addresses(status: Status) -> set[bytes]:
    addresses = () if status.own is None else status.own.addresses
    return {packed for packed in map(pack, addresses) if packed is not None}


def _identity(node: Node, own: Node) -> Identity:
    """``node`` as this machine, ``own``, sees it. What is tagged belongs to nobody."""
    same_user = node.user_id == own.user_id != 0 and not node.tags and not own.tags
    return Identity(
        Owner(f"{NAME}:{node.stable_id}"),
        NAME,
        node.login,
        node.name,
        node.tags,
        node.capabilities,
        own=same_user,
    )


def _not_up(status: Status) -> str:
    if status.own is None:
        return f"tailscaled is not connected ({status.state}); run `tailscale up`"
    if not status.tun:
        return "tailscaled has no interface here (userspace networking)"
    return "no single interface holds this machine's own mesh addresses"


def _written(packed: bytes, port: int) -> str:
    # tailscaled compares, so that an IPv4-mapped address would be another one.
    if len(packed) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, packed)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{port}"


def _holds(process: int, link: Link) -> bool:
    """Whether ``process`` holds the other end of ``link``, a connection inside this machine. False also
    where its descriptors cannot be seen, as those of other users: their uid tells them from this one."""
    theirs, ours = pack(link.remote.host), pack(link.local.host)
    if process <= 0 or theirs is None or ours is None:
        return False
    local, remote = (theirs, link.remote.port), (ours, link.local.port)
    try:
        try:
            rows = sockdiag.lookup(local, remote, interface_of(link.remote.host))
        except (OSError, ValueError):
            rows = [row for row in procnet.read() if row.local == local and row.remote == remote]
        wanted = {f"socket:[{row.inode}]" for row in rows if row.inode}
        with os.scandir(f"/proc/{process}/fd") as entries:
            return any(_target(entry.path) in wanted for entry in entries)
    except (OSError, ValueError, OverflowError):
        return False


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""
