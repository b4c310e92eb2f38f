"""Looking, step by step, at everything that a push to one peer needs."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from tdx.control.client import Client
from tdx.control.connection import endpoint_of
from tdx.control.dial import Dialer, connect, reason_of
from tdx.control.discovery import find_device
from tdx.control.hello import Hello, ask_hello
from tdx.control.probing import LARGEST, SMALLEST, Probe, Probed
from tdx.control.resolve import AS_GIVEN, Peer, Resolver, Route
from tdx.control.sending import MOST_STREAMS
from tdx.control.workers import Workers
from tdx.errors import IdentityUnavailable, NoSpace, ProtocolError, TdxError, Unreachable, UsageError
from tdx.identity.local import NAME as LOCAL
from tdx.identity.port import KnownPeer
from tdx.identity.providers import identities_of
from tdx.identity.settings import IdentitySettings
from tdx.identity.tls import NAME as TLS
from tdx.identity.tls import TlsIdentities
from tdx.metrics import Metrics
from tdx.model import Conflict, Identity
from tdx.policy.bottleneck import name_bottleneck
from tdx.policy.retry import RetryPolicy
from tdx.version import VERSION

CONNECT_SECONDS: Final = 5.0
STALL_SECONDS: Final = 10.0
TRIES: Final = 3
"""Connections whose quickest tells the round trip."""

CLOCKS_AGREE: Final = 5.0
"""Seconds that two clocks may differ before somebody should look: the Date field has no fractions."""

T = TypeVar("T")


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Step:
    """What one look has shown. ``advice`` is what to do about it; ``exit_code`` is that of a failure
    and else 0; ``facts`` are the same for programs."""

    name: str
    state: State
    text: str
    advice: str = ""
    exit_code: int = 0
    facts: Mapping[str, object] = field(default_factory=dict[str, object])


class Doctor:
    """Examines the way to one peer. ``report`` gets each step as it is done; ``size`` in bytes is
    that of the upload that measures, which is never published; ``amount`` writes bytes for people.
    UsageError for an impossible size."""

    def __init__(
        self,
        peer: Peer,
        settings: IdentitySettings,
        state: Path,
        size: int,
        report: Callable[[Step], None],
        amount: Callable[[float], str],
    ) -> None:
        if not SMALLEST <= size <= LARGEST:
            raise UsageError(f"--size is between {SMALLEST >> 20}M and {LARGEST >> 30}G")
        self._peer = peer
        self._size = size
        self._report = report
        self._amount = amount
        self._workers = Workers(bodies=MOST_STREAMS)
        self._identities = identities_of(settings, os.getuid())
        self._devices = TlsIdentities(state)
        find = find_device if settings.discover else None
        self._resolver = Resolver(self._identities, self._devices, self._workers, find)
        self._exit_code = 0

    async def run(self) -> int:
        """The exit code of the first failure, or 0. Cancelled, it leaves nothing at the peer."""
        try:
            await self._examine()
        finally:
            self._workers.close()
        return self._exit_code

    async def _examine(self) -> None:
        routes = await self._attempt("name", self._look_up())
        if routes is None:
            return
        routes = await self._reach(routes)
        if not routes:
            return
        found = await self._identify(routes)
        if found is None:
            return
        identity, dialer = found
        await self._show_path(identity)
        metrics, policy = Metrics(VERSION), RetryPolicy(retries=2)
        client = Client(dialer, self._workers, metrics, policy, STALL_SECONDS)
        try:
            await self._ask(client)
        finally:
            client.close()

    # --- reporting -----------------------------------------------------------

    def _say(self, name: str, text: str, **facts: object) -> None:
        self._report(Step(name, State.OK, text, facts=facts))

    def _warn(self, name: str, text: str, advice: str, **facts: object) -> None:
        self._report(Step(name, State.WARN, text, advice, facts=facts))

    def _fail(self, name: str, error: TdxError, advice: str = "") -> None:
        self._exit_code = self._exit_code or error.exit_code
        facts = {"code": error.code}
        self._report(Step(name, State.FAILED, error.message, advice, error.exit_code, facts))

    async def _attempt(self, name: str, work: Awaitable[T]) -> T | None:
        """The result; None where it failed, which is then reported."""
        try:
            return await work
        except TdxError as error:
            self._fail(name, error)
            return None

    # --- getting there -------------------------------------------------------

    async def _look_up(self) -> list[Route]:
        """Where to try: also what is announced, so that it can be compared."""
        failed: TdxError | None = None
        try:
            routes = await self._resolver.routes(self._peer)
        except TdxError as error:
            routes, failed = [], error
        known = {route.address for route in routes}
        announced = [
            route for route in await self._resolver.announced(self._peer) if route.address not in known
        ]
        routes += announced
        if not routes:
            raise failed or Unreachable(f"{self._peer.host} has no address to connect to")
        for route in routes:
            where = endpoint_of(route.address)
            text = f"{self._peer.host} is {where.host} port {where.port}, according to {route.source}"
            if route.source == AS_GIVEN:
                text = f"{where.host} port {where.port}, as it was given"
            if route.silent is not None:
                advice = f"somebody else did not say whether it knows the name: {route.silent.message}"
                self._warn("name", text, advice, address=where.host, port=where.port, source=route.source)
            else:
                self._say("name", text, address=where.host, port=where.port, source=route.source)
        return routes

    async def _reach(self, routes: Sequence[Route]) -> list[Route]:
        """Those that take a connection."""
        found = await asyncio.gather(*(self._connect(route) for route in routes))
        good = [route for route, tried in zip(routes, found, strict=True) if not isinstance(tried, TdxError)]
        for route, tried in zip(routes, found, strict=True):
            where = endpoint_of(route.address)
            place = f"{where.host} port {where.port}"
            facts = {"address": where.host, "port": where.port}
            if not isinstance(tried, TdxError):
                by = "" if route.interface is None else f" by {route.interface}"
                text = f"{place} takes connections{by}; {_milliseconds(tried)} there and back"
                self._say("reach", text, round_trip=tried, interface=route.interface, **facts)
            elif good:
                advice = "another address works; have the receiver listen there too, or remove this one"
                self._warn("reach", tried.message, advice, **facts)
            else:
                advice = (
                    "is `tdx serve` running there, and listening on that address? does a firewall let "
                    f"TCP port {where.port} in?"
                )
                self._fail("reach", tried, advice)
        return good

    async def _connect(self, route: Route) -> float | TdxError:
        """Seconds to there and back, or why not."""
        loop = asyncio.get_running_loop()
        where = endpoint_of(route.address)
        best = CONNECT_SECONDS
        for _ in range(TRIES):
            with socket.socket(route.family, socket.SOCK_STREAM) as sock:
                started = loop.time()
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await connect(sock, route)
                except OSError as error:  # TimeoutError among them
                    return Unreachable(
                        f"cannot connect to {where.host} port {where.port}: {reason_of(error)}"
                    )
                best = min(best, loop.time() - started)
        return best

    async def _identify(self, routes: Sequence[Route]) -> tuple[Identity, Dialer] | None:
        """Who the peer is and what leads there: the first of these ways at whose end it is itself."""
        failures: list[TdxError] = []
        good: tuple[Identity, Dialer] | None = None
        for route in routes:
            dialer = Dialer(self._peer, self._identities, self._devices, self._workers, routes=[route])
            try:
                good = await self._who_answers(dialer), dialer
                break
            except TdxError as error:
                failures.append(error)
        for failure in failures:
            if good is None:
                self._fail("identity", failure)
            else:
                self._warn("identity", failure.message, "another address leads to it; remove this one")
        return good

    async def _who_answers(self, dialer: Dialer) -> Identity:
        connection = await dialer.dial()
        try:
            where = connection.link.remote
            if connection.tls is not None:
                identity = await self._workers.asked(self._devices.whois, connection.tls.certificate)
                shown_by = "by its paired key, over TLS 1.3"
            else:
                identity = await self._workers.asked(self._identities.confirm, where)
                local = identity is not None and identity.provider == LOCAL
                shown_by = "by the uid of the process that listens" if local else "by its address on the mesh"
        finally:
            connection.close()
        if identity is None:
            raise Unreachable(f"who listens at {where.host} port {where.port} has gone meanwhile")
        self._say(
            "identity",
            f"it is {identity}, {shown_by}",
            owner=identity.owner,
            provider=identity.provider,
            user=identity.user,
            node=identity.node,
        )
        return identity

    async def _show_path(self, identity: Identity) -> None:
        if identity.provider in (LOCAL, TLS):
            text = "inside this machine" if identity.provider == LOCAL else "by the ordinary network"
            self._say("path", text, path=None)
            return
        path = await self._workers.asked(self._path_to, identity)
        if "relay" in path:
            advice = (
                "let UDP through on one side, so that the two reach each other directly (tailscale netcheck)"
            )
            self._warn("path", f"packets take a detour: {path}", advice, path=path)
        else:
            self._say(
                "path", path or f"{identity.provider} does not say which way packets go", path=path or None
            )

    def _path_to(self, identity: Identity) -> str:
        for mesh in self._identities.meshes:
            if mesh.name == identity.provider:
                try:
                    peers: Sequence[KnownPeer] = mesh.peers()
                except IdentityUnavailable:
                    continue
                for peer in peers:
                    if peer.identity.owner == identity.owner:
                        return peer.path
        return ""

    # --- what it says --------------------------------------------------------

    async def _ask(self, client: Client) -> None:
        asked = time.time()
        hello = await self._attempt("permission", ask_hello(client))
        if hello is None:
            return
        middle = (asked + time.time()) / 2
        self._show_permission(hello)
        roomy = self._show_space(hello)
        self._show_clock(hello, middle)
        if roomy:
            await self._measure(client, hello)

    def _show_permission(self, hello: Hello) -> None:
        you, grant = hello.you, hello.grant
        who = f"{you.get('user') or ''} on {you.get('node')}".removeprefix(" on ")
        text = f"the receiver (tdx {hello.version}) takes this machine for {who} [{you.get('owner')}]"
        if grant:
            text += f"; rule `{grant.get('rule')}` lets it push {_granted(hello, self._amount)}"
        self._say("permission", text, version=hello.version, you=you, grant=grant)

    def _show_space(self, hello: Hello) -> bool:
        """Whether there is room for what measures."""
        free = hello.free_bytes
        if free is None:
            self._fail("space", ProtocolError("the receiver does not say how much space it has"))
        elif free < self._size:
            advice = "make room there, or lower `reserve` in its configuration"
            self._fail("space", NoSpace(f"only {self._amount(free)} are free there"), advice)
        else:
            self._say("space", f"{self._amount(free)} are free there", free_bytes=free)
            return True
        return False

    def _show_clock(self, hello: Hello, middle: float) -> None:
        if hello.at is None:
            self._warn("clock", "the receiver does not say what time it is", "look at its clock yourself")
            return
        ahead = hello.at - middle
        if abs(ahead) <= CLOCKS_AGREE:
            self._say("clock", f"the clocks agree to within {CLOCKS_AGREE:g} s", ahead=round(ahead, 1))
        else:
            text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this one"
            advice = "have both follow NTP; until then the times of pushed files look wrong there"
            self._warn("clock", text, advice, ahead=round(ahead, 1))

    # --- how fast ------------------------------------------------------------

    async def _measure(self, client: Client, hello: Hello) -> None:
        bounds = (hello.max_file, hello.quota, hello.limit)
        size = min([self._size, *(bound for bound in bounds if bound is not None)])
        if size < SMALLEST:
            text = f"not measured: at most {self._amount(size)} may be sent at a time"
            self._warn("throughput", text, "ask the receiver's owner for a larger max_file or quota")
            return
        conflict = next((mode for mode in Conflict if mode in hello.conflicts), None)
        if conflict is None:
            self._warn("throughput", "not measured: no conflict mode is granted", "ask the receiver's owner")
            return
        probed = await self._attempt("throughput", Probe(client, size, conflict).run())
        if probed is None:
            return
        self._show_throughput(probed)
        if not probed.withdrawn:
            text = "the receiver did not confirm that it removed what was sent to measure"
            self._warn("throughput", text, "it expires by itself; `tdx gc` there removes it at once")

    def _show_throughput(self, probed: Probed) -> None:
        bottleneck = name_bottleneck(probed.ours, probed.theirs)
        rate = probed.sent / max(probed.seconds, 1e-9)
        why = f"the bottleneck is the {bottleneck}" if bottleneck else "too quick to name a bottleneck"
        took = f"{self._amount(probed.sent)} in {_seconds(probed.seconds)}, none of it kept"
        text = f"{self._amount(rate)}/s: {took}; {why}"
        ours = {
            stage: None if seconds <= 0 else probed.sent / seconds
            for stage, seconds in (("read", probed.ours.read), ("hash", probed.ours.hash))
        }
        if ours["hash"] is not None:
            text += f"; this machine hashes {self._amount(ours['hash'])}/s"
        self._say(
            "throughput",
            text,
            rate=round(rate),
            bytes=probed.sent,
            seconds=round(probed.seconds, 3),
            bottleneck=bottleneck,
            ours=probed.ours.as_dict(),
            theirs=probed.theirs.as_dict(),
        )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds:.2g} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds >= 0.001 else 2}f} ms"


def _granted(hello: Hello, amount: Callable[[float], str]) -> str:
    into = hello.grant.get("into")
    parts = [f"into {into}/" if into else "into its folder"]
    if len(hello.conflicts) < len(Conflict):
        parts.append(f"--conflict {' or '.join(map(str, hello.conflicts)) or 'none'} only")
    for bound, word in ((hello.quota, "quota"), (hello.max_file, "largest file")):
        if bound is not None:
            parts.append(f"{word} {amount(bound)}")
    return ", ".join(parts)
