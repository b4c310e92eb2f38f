"""Devices on the local network (zeroconf: multicast DNS, RFC 6762, and DNS-SD, RFC 6763).

An announcement is a hint about where to knock, and anybody on the network can make one: who
opens is shown by the device key, in TLS, before anything is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tdx.config import format_address
from tdx.errors import Unreachable
from tdx.identity.netdev import held
from tdx.identity.port import Endpoint, Place
from tdx.identity.rows import pack

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

    from tdx.control.receiver import Receiver

SERVICE: Final = "_tdx._tcp.local."
KEY_DIGITS: Final = 16
"""How much of a device key is announced: enough to be found by whoever knows the rest."""

LOOK_SECONDS: Final = 2.0
MORE_SECONDS: Final = 0.3
"""How long to wait for others that announce the key that was found: all but one of them lie."""

FOLLOW_SECONDS: Final = 15.0
"""How often an announcer looks whether this machine still has the same addresses."""

MOST_HEARD: Final = 256
"""Announcements that are looked at; a flood must not fill the memory."""

MOST_ADDRESSES: Final = 8

_KEY: Final = re.compile(rb"[0-9a-f]{%d}" % KEY_DIGITS)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody says: that the device whose key begins with ``key`` (:data:`KEY_DIGITS` hex
    digits) listens at these numeric ``addresses``."""

    key: str
    addresses: tuple[str, ...]
    port: int

    @property
    def places(self) -> tuple[str, ...]:
        """``HOST:PORT`` of each address."""
        return tuple(format_address((address, self.port)) for address in self.addresses)

    def names(self, key: str) -> bool:
        """Whether the device of that whole key may be meant."""
        return key.startswith(self.key)


# --- looking ------------------------------------------------------------------


async def look(seconds: float = LOOK_SECONDS, key: str | None = None) -> list[Announcement]:
    """What is announced on the networks of this machine, in stable order. With the ``key`` of a
    device only what names it, and no longer than it takes to hear that. Unreachable where nobody
    can be asked."""
    from zeroconf import ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    heard: dict[str, Announcement] = {}
    tasks: dict[str, asyncio.Task[None]] = {}
    enough = asyncio.Event()

    async def ask(name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if await info.async_request(asked.zeroconf, seconds * 1000):
            said = announcement_of(info)
            if said is not None and (key is None or said.names(key)):
                heard[name] = said
                if key is not None:
                    enough.set()

    def on_change(
        zeroconf: Zeroconf,  # noqa: ARG001  zeroconf's signature
        service_type: str,  # noqa: ARG001
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            heard.pop(name, None)
        elif len(tasks) < MOST_HEARD and (name not in tasks or tasks[name].done()):
            tasks[name] = asyncio.create_task(ask(name))

    try:
        asked = AsyncZeroconf()
    except (OSError, RuntimeError) as error:
        raise Unreachable(f"cannot look for devices on the local network: {_reason(error)}") from error
    try:
        browser = AsyncServiceBrowser(asked.zeroconf, SERVICE, handlers=[on_change])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await enough.wait()
                await asyncio.sleep(MORE_SECONDS)
        await browser.async_cancel()
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        await asked.async_close()
    return sorted(dict.fromkeys(heard.values()), key=lambda each: (each.key, each.port, each.addresses))


async def find_device(key: str) -> list[Announcement]:
    """What names the device of that key, as far as anybody can be asked; see
    :data:`tdx.control.resolve.Find`."""
    try:
        return await look(LOOK_SECONDS, key)
    except Unreachable as error:
        log.warning("%s", error.message)
        return []


def announcement_of(info: ServiceInfo) -> Announcement | None:
    """What a service says, as far as it can be meant: None for what names no key, or no address
    of another machine."""
    key = info.properties.get(b"key")
    if key is None or _KEY.fullmatch(key) is None or info.port is None or not 0 < info.port < 65536:
        return None
    addresses = [text for text in info.parsed_addresses() if _is_elsewhere(text)]
    if not addresses:
        return None
    return Announcement(key.decode(), tuple(dict.fromkeys(addresses))[:MOST_ADDRESSES], info.port)


def _is_elsewhere(text: str) -> bool:
    """Whether a packet to that address can leave this machine, to one machine, by itself."""
    address = ipaddress.ip_address(text)
    if address.version == 6 and address.is_link_local:
        return False  # of any interface: nobody says which
    return not (address.is_loopback or address.is_multicast or address.is_unspecified)


# --- announcing ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Presence:
    """Where a receiver is on the local network: its addresses by port, and the IPv4 addresses of
    the interfaces that hold them, by which questions come."""

    addresses: tuple[tuple[int, tuple[str, ...]], ...]
    interfaces: tuple[str, ...]


def presence_of(listening: Iterable[Endpoint], meshes: Sequence[Place]) -> Presence:
    """What there is to announce of the addresses ``listening``, ``0.0.0.0`` and ``::`` among them.

    Loopback, the meshes and IPv6's link-local addresses are left out: nobody finds this machine there
    by asking the local network.
    """
    here = held()
    own = {pack(place.host) for place in meshes}
    carriers = {place.interface for place in meshes}
    wanted: dict[int, set[bytes | None]] = {}
    for endpoint in listening:
        wanted.setdefault(endpoint.port, set()).add(pack(endpoint.host))
    found: dict[int, dict[str, None]] = {}
    interfaces: dict[str, None] = {}
    for each in here:
        text, packed = each.address, pack(each.address)
        if packed is None or packed in own or each.interface in carriers or not _is_elsewhere(text):
            continue
        beside = [other.address for other in here if other.interface == each.interface]
        for port, hosts in wanted.items():
            if packed in hosts or bytes(len(packed)) in hosts:
                found.setdefault(port, {})[text] = None
                interfaces.update((other, None) for other in beside if len(pack(other) or b"") == 4)
    return Presence(
        tuple((port, tuple(sorted(addresses))) for port, addresses in sorted(found.items())),
        tuple(sorted(interfaces)),
    )


async def announce(receiver: Receiver, listening: Sequence[Endpoint]) -> None:
    """Tell the local network where ``receiver`` listens until this task is cancelled, and take it
    back then. Addresses that come and go are followed. What goes wrong is logged, and tried again."""

    def where() -> Presence:
        return presence_of(listening, receiver.identities.places())

    told: Presence | None = None
    speaking: AsyncZeroconf | None = None
    try:
        while True:
            try:
                now = await receiver.workers.asked(where)
                if now != told:
                    if speaking is not None:
                        await speaking.async_close()
                    told = speaking = None
                    key = (await receiver.workers.on_disk(lambda: receiver.devices.device)).key
                    speaking = await _speak(key[:KEY_DIGITS], now)
                    told = now
            except Exception as error:  # of a library that talks with strangers
                log.warning("cannot announce this receiver on the local network: %s", _reason(error))
                log.debug("announcing failed", exc_info=True)
            await asyncio.sleep(FOLLOW_SECONDS)
    finally:
        if speaking is not None:
            await speaking.async_close()


async def _speak(key: str, presence: Presence) -> AsyncZeroconf | None:
    """Announce until the result is closed; None where there is nothing to announce."""
    if not presence.interfaces:
        log.warning(
            "announce = true, but this receiver listens on no address of a local network with IPv4; "
            "listen on one as well: tdx serve --listen ADDRESS:PORT"
        )
        return None
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

    speaking = AsyncZeroconf(interfaces=list(presence.interfaces))
    try:
        for port, addresses in presence.addresses:
            name = f"{key}-{port}"
            info = ServiceInfo(
                SERVICE,
                f"{name}.{SERVICE}",
                port=port,
                properties={"key": key},
                server=f"tdx-{name}.local.",
                parsed_addresses=list(addresses),
            )
            await (await speaking.async_register_service(info))  # pyright: ignore[reportUnknownMemberType]
            log.info(
                "announced on the local network: %s", ", ".join(Announcement(key, addresses, port).places)
            )
    except BaseException:
        await speaking.async_close()
        raise
    return speaking


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
