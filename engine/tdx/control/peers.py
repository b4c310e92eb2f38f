"""Every machine that somebody here knows: from the meshes, from pairing, from the local network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from tdx.control.client import Client
from tdx.control.dial import Dialer
from tdx.control.discovery import Announcement, look
from tdx.control.hello import ask_hello
from tdx.control.resolve import Peer, Resolver, Route
from tdx.control.workers import Workers
from tdx.errors import (
    ConfigError,
    ConnectionLost,
    IdentityUnavailable,
    Stalled,
    TdxError,
    UnknownPeer,
    Unreachable,
)
from tdx.identity.local import is_address_of_this_machine
from tdx.identity.port import KnownPeer, Mesh
from tdx.identity.providers import identities_of
from tdx.identity.settings import IdentitySettings
from tdx.identity.tls import TlsIdentities, identity_of
from tdx.identity.trust import Trusted
from tdx.identity.wireguard import NAME as WIREGUARD
from tdx.metrics import Metrics
from tdx.model import Identity
from tdx.policy.retry import RetryPolicy
from tdx.version import VERSION

AT_ONCE: Final = 32
"""Threads that wait for providers."""

SILENT: Final = (Unreachable, UnknownPeer, ConnectionLost, Stalled, IdentityUnavailable)
"""What nobody has said: a refusal by another address counts for more."""

PAIRED: Final = "paired"
DISCOVERED: Final = "discovered"

Complain = Callable[[str], None]
Routes = Callable[[], Awaitable[list[Route]]]


class Standing(StrEnum):
    """What became of a ``GET /v1/hello``."""

    REACHABLE = "reachable"
    REFUSES = "refuses"
    """Somebody answers, and does not let this machine in, is not the peer, or is no receiver."""
    NO_ANSWER = "no answer"
    OFFLINE = "offline"
    """The mesh says so; it was not tried."""
    NOT_PAIRED = "not paired"
    """Announced by somebody whose key is not known here; it was not tried."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One machine, as one provider knows it.

    ``identity`` is None for a device that was not paired, of which only the beginning of its key
    (``name``) is known. ``sources`` are ``tailscale``, ``wireguard INTERFACE``, ``paired`` and
    ``discovered``; ``addresses`` are ``HOST`` or ``HOST:PORT``, the best first; ``path`` is as in
    :class:`KnownPeer`; ``reason`` is why it is not reachable.
    """

    name: str
    identity: Identity | None
    sources: tuple[str, ...]
    addresses: tuple[str, ...]
    standing: Standing
    reason: str = ""
    path: str = ""

    @property
    def who(self) -> str:
        """The user, the tags of what belongs to nobody, or else the key."""
        if self.identity is None:
            return self.name
        return ", ".join(self.identity.tags) or self.identity.user or self.identity.owner.partition(":")[2]


async def list_peers(
    settings: IdentitySettings, state: Path, timeout: float, complain: Complain
) -> list[Seen]:
    """All that are known, each asked for its hello at the same time, and for ``timeout`` seconds at most.
    One for each provider and machine, in a stable order. ``complain`` gets a line for each
    provider that does not say what it knows. ConfigError.
    """
    workers = Workers(bodies=1, asking=AT_ONCE)
    try:
        return await _Asking(settings, TlsIdentities(state), workers, timeout, complain).run()
    finally:
        workers.close()


class _Asking:
    def __init__(
        self,
        settings: IdentitySettings,
        devices: TlsIdentities,
        workers: Workers,
        timeout: float,
        complain: Complain,
    ) -> None:
        self._identities = identities_of(settings, os.getuid())
        self._devices = devices
        self._resolver = Resolver(self._identities, devices, workers)
        self._workers = workers
        self._discover = settings.discover
        self._timeout = timeout
        self._complain = complain

    async def run(self) -> list[Seen]:
        trusted, announced, members = await asyncio.gather(
            self._workers.on_disk(self._devices.trust.entries),
            self._announced(),
            asyncio.gather(*(self._members(mesh) for mesh in self._identities.meshes)),
        )
        asked = [
            *(self._member(mesh, peer) for mesh, peers in members for peer in peers),
            *(self._device(each, announced) for each in trusted),
        ]
        seen = await asyncio.gather(*asked)
        seen = await self._with_paths(seen, [mesh for mesh, peers in members if peers])
        strangers = [each for each in announced if not any(each.names(known.key) for known in trusted)]
        return sorted([*seen, *map(_stranger, strangers)], key=_order)

    async def _members(self, mesh: Mesh) -> tuple[Mesh, Sequence[KnownPeer]]:
        try:
            return mesh, await self._workers.asked(mesh.peers)
        except IdentityUnavailable as error:
            self._complain(f"{mesh.name}: {error.message}")
            return mesh, ()

    async def _announced(self) -> list[Announcement]:
        """What other machines announce."""
        if not self._discover:
            return []
        try:
            found = await look(self._timeout)
        except Unreachable as error:
            self._complain(error.message)
            return []

        def elsewhere() -> list[Announcement]:
            return [each for each in found if not any(map(is_address_of_this_machine, each.addresses))]

        return await self._workers.on_disk(elsewhere)

    async def _member(self, mesh: Mesh, known: KnownPeer) -> Seen:
        name = known.names[0] if known.names else known.identity.node
        seen = Seen(
            name, known.identity, (_source(mesh, known),), known.addresses, Standing.OFFLINE, path=known.path
        )
        if known.online is False:
            return seen
        peer = Peer(name)
        return await self._asked(seen, peer, lambda: self._resolver.to_member(peer, known))

    async def _device(self, trusted: Trusted, announced: Iterable[Announcement]) -> Seen:
        peer = Peer(trusted.name)
        its = [each for each in announced if each.names(trusted.key)]
        sources = (PAIRED, DISCOVERED) if its else (PAIRED,)
        places = dict.fromkeys([*trusted.addresses, *(place for each in its for place in each.places)])

        async def routes() -> list[Route]:
            stored: list[Route] = []
            if trusted.addresses or not its:
                try:
                    stored = await self._resolver.to_device(peer, trusted)
                except TdxError:
                    if not its:
                        raise
            # What was heard just now is more likely to be answered than what was stored once.
            return [*await self._resolver.to_announced(peer, trusted, its), *stored]

        seen = Seen(trusted.name, identity_of(trusted), sources, tuple(places), Standing.NO_ANSWER)
        return await self._asked(seen, peer, routes)

    async def _asked(self, seen: Seen, peer: Peer, routes: Routes) -> Seen:
        try:
            async with asyncio.timeout(self._timeout):
                await self._hello(peer, await routes())
        except TimeoutError:
            return replace(
                seen, standing=Standing.NO_ANSWER, reason=f"nothing came within {self._timeout:g} s"
            )
        except ConfigError:
            raise  # it is this machine's own key or trust store, and the peer has not been asked
        except SILENT as error:
            return replace(seen, standing=Standing.NO_ANSWER, reason=error.message)
        except TdxError as error:
            return replace(seen, standing=Standing.REFUSES, reason=error.message)
        return replace(seen, standing=Standing.REACHABLE)

    async def _hello(self, peer: Peer, routes: list[Route]) -> None:
        """Try one route after the other, as a lying announcement must not hide the device."""
        failed: TdxError | None = None
        for each in routes:
            dialer = Dialer(peer, self._identities, self._devices, self._workers, routes=[each])
            policy = RetryPolicy(retries=0)
            client = Client(dialer, self._workers, Metrics(VERSION), policy, self._timeout)
            try:
                await ask_hello(client)
                return
            except TdxError as error:
                if failed is None or isinstance(failed, SILENT):
                    failed = error
            finally:
                client.close()
        raise failed or Unreachable(f"{peer.host} has no address to connect to")

    async def _with_paths(self, seen: Sequence[Seen], meshes: Iterable[Mesh]) -> list[Seen]:
        """The paths are those that the hellos took: before, an idle peer had none."""
        paths: dict[str, str] = {}
        for mesh in meshes:
            try:
                peers = await self._workers.asked(mesh.peers)
            except IdentityUnavailable:
                continue
            paths.update({peer.identity.owner: peer.path for peer in peers})
        return [
            replace(each, path=paths.get(each.identity.owner, each.path)) if each.identity else each
            for each in seen
        ]


def _source(mesh: Mesh, known: KnownPeer) -> str:
    if mesh.name != WIREGUARD:
        return mesh.name
    return f"{mesh.name} {mesh.interface(next(iter(known.addresses), ''))}"


def _stranger(announced: Announcement) -> Seen:
    return Seen(announced.key, None, (DISCOVERED,), announced.places, Standing.NOT_PAIRED)


def _order(seen: Seen) -> tuple[object, ...]:
    """Meshes first, then paired devices, then strangers."""
    owner = seen.identity.owner if seen.identity else ""
    of_no_mesh = seen.sources[0] in (PAIRED, DISCOVERED)
    return of_no_mesh, seen.identity is None, seen.sources[0], seen.name, owner, seen.addresses
