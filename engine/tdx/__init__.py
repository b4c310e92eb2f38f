"""tdx: point-to-point file transfer over private networks.

The library's face is :func:`push` (blocks) and, in a running loop, :class:`Sender`; a
receiver is :func:`serve`. They are imported when they are first used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdx.control.api import push
    from tdx.control.progress import PushResult, Tally
    from tdx.control.push import PushOptions
    from tdx.control.sender import Sender, SenderOptions
    from tdx.control.serve import serve

__all__ = ["PushOptions", "PushResult", "Sender", "SenderOptions", "Tally", "push", "serve"]

_HOMES = {
    "PushOptions": "push",
    "PushResult": "progress",
    "Sender": "sender",
    "SenderOptions": "sender",
    "Tally": "progress",
    "push": "api",
    "serve": "serve",
}

# Who uses the library decides what becomes of its log; unasked, nothing of it is written anywhere.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tdx.control.{_HOMES[name]}"), name)
