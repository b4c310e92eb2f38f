"""A receiver that listens: its sockets, its connections, and its housekeeping."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Final

from tdx.control import events
from tdx.control.acceptor import Acceptor
from tdx.control.connection import endpoint_of
from tdx.control.conversations import Conversations
from tdx.control.listeners import Listeners
from tdx.control.receiver import Receiver
from tdx.errors import TdxError
from tdx.identity.port import Endpoint, Place
from tdx.metrics import Discard
from tdx.model import Outcome

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS: Final = 10.0
EXPIRY_SECONDS: Final = 3600.0


class Server:
    """Serves one :class:`Receiver` until :meth:`stop`."""

    def __init__(self, receiver: Receiver, inherited: Sequence[socket.socket] = ()) -> None:
        """``inherited`` are listening sockets to take connections from, instead of any of its own."""
        self._receiver = receiver
        self._listeners = Listeners(receiver.config.listen, self._places, inherited)
        self._conversations = Conversations(receiver)
        self._acceptor = Acceptor(self._conversations.hold)
        self._housekeeper: asyncio.Task[None] | None = None
        self.folder_gone = asyncio.Event()
        """Set once the folder that is received into has been removed: there is nothing left to serve."""

    async def start(self) -> list[Endpoint]:
        """Recover the store, then listen; the addresses listened on."""
        for receipt in await self._receiver.workers.on_disk(self._receiver.store.recover):
            events.recovered(receipt)
            if receipt.outcome is Outcome.PUBLISHED:
                self._receiver.metrics.published_bytes.add(receipt.size)
            self._receiver.published([receipt], None)
        await self._receiver.sessions.discard_orphans()
        listeners = await self._receiver.workers.asked(self._listeners.open)
        await self._learn_names()
        for listener in listeners:
            self._acceptor.listen(listener)
        self._housekeeper = asyncio.create_task(self._keep_house())
        return self.addresses

    @property
    def addresses(self) -> list[Endpoint]:
        """Where it listens now."""
        return list(dict.fromkeys(endpoint_of(each.getsockname()) for each in self._acceptor.listeners))

    async def stop(self) -> None:
        """Stop accepting, stop every body, keep every partial."""
        self._conversations.stopping = True
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        await self._acceptor.leave(*self._acceptor.listeners)
        if self._housekeeper is not None:  # which may wait for the disk
            await asyncio.wait([self._housekeeper])
        self._listeners.close()
        await self._receiver.sessions.close()
        await self._acceptor.close()
        await self._receiver.sessions.close()

    def _places(self) -> list[Place]:
        return self._receiver.identities.places()

    # --- background ----------------------------------------------------------

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        receiver, expired_at = self._receiver, -EXPIRY_SECONDS
        while True:
            try:
                if not await receiver.workers.on_disk(receiver.store.is_present):
                    self.folder_gone.set()
                    return
                await receiver.sessions.release_idle(loop.time())
                await self._follow_meshes()
                if loop.time() - expired_at >= EXPIRY_SECONDS:
                    expired_at = loop.time()
                    for partial in await receiver.workers.on_disk(receiver.expire):
                        receiver.metrics.discard(partial.received, Discard.ABANDONED)
                        events.expired(partial)
            except TdxError as error:
                log.warning("housekeeping: %s", error)
            except Exception:  # whatever it was, the next round must come
                log.exception("housekeeping failed")
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _follow_meshes(self) -> None:
        """Listen on addresses that have come up since, and no more on those that went."""
        opened, gone = await self._receiver.workers.asked(self._listeners.refresh)
        await self._acceptor.leave(*gone)
        for listener in gone:
            listener.close()
        for listener in opened:
            log.info("listening on %s too", endpoint_of(listener.getsockname()).host)
            self._acceptor.listen(listener)
        await self._learn_names()

    async def _learn_names(self) -> None:
        self._receiver.names = await self._receiver.workers.asked(self._receiver.identities.names)
