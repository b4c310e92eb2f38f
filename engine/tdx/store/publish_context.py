"""What is at hand wherever a store publishes many things at once: files of a bundle, entries of a tree."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from tdx.store.bundles import Bundles
from tdx.store.final_names import FinalNames
from tdx.store.paths import Tree
from tdx.store.receipts import Receipts
from tdx.store.syscalls import System

FEW: Final = 2
"""Up to this many directories are synced one by one, and names asked for; beyond, one more syncfs costs less,
and a list."""


@dataclass(frozen=True, slots=True)
class PublishContext:
    """What every publication of a store works with. ``as_one``: its filesystem can be synced as a whole;
    ``turns``: what :class:`Turn` is of."""

    system: System
    tree: Tree
    names: FinalNames
    receipts: Receipts
    bundles: Bundles
    as_one: bool
    turns: threading.Lock
