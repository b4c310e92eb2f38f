"""Which event loop runs: uvloop for a receiver where it is installed, asyncio's own otherwise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

FORCE: Final = "TDX_LOOP"
"""Environment variable: ``asyncio`` keeps uvloop out."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the receiver's loop."""
    if os.environ.get(FORCE) != "asyncio":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop
