"""The library's face: one call that blocks, on a loop of its own."""

from __future__ import annotations

import asyncio
import os
from os import PathLike
from pathlib import Path

from tdx.config import state_directory
from tdx.control.progress import PushResult, Tally
from tdx.control.push import PushOptions
from tdx.control.resolve import Peer
from tdx.control.sender import Sender, SenderOptions


def push(
    path: str | PathLike[str],
    peer: str,
    options: PushOptions | None = None,
    sender: SenderOptions | None = None,
    tally: Tally | None = None,
) -> PushResult:
    """Push one file to ``peer`` (``HOST`` or ``HOST:PORT``); returns once it is durable there.

    Raises a :class:`tdx.errors.TdxError`; unless it says otherwise the partial is kept for a
    later push with ``options.resume``. ``tally`` may be read from another thread meanwhile.
    """
    chosen = options or PushOptions(state=state_directory(os.environ))

    async def run() -> PushResult:
        async with Sender(Peer.parse(peer), sender or SenderOptions()) as sending:
            return await sending.push_file(Path(path), chosen, tally or Tally())

    return asyncio.run(run())
